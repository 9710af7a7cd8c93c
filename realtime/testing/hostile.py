"""Messages that no client should send: each is answered ``bad_message``."""

from __future__ import annotations

import msgpack

__all__ = ["BAD_JSON", "BAD_MSGPACK"]

_DEEP = 100_000

BAD_JSON: dict[str, str] = {
    "nothing": "",
    "no JSON": "{",
    "prose": "hello",
    "single quotes": "{'type': 'echo'}",
    "something after the end": '{"type": "echo"} x',
    "two messages": '{"type": "echo"}{"type": "echo"}',
    "a list": '[{"type": "echo"}]',
    "a string": '"echo"',
    "a number": "1",
    "null": "null",
    "no type": "{}",
    "an empty type": '{"type": ""}',
    "a number as type": '{"type": 1}',
    "null as type": '{"type": null}',
    "a list as type": '{"type": ["echo"]}',
    "a long type": '{"type": "' + "x" * 256 + '"}',
    "a number as room": '{"type": "echo", "room": 1}',
    "a number as target": '{"type": "echo", "target": 1}',
    "numbers as targets": '{"type": "echo", "target": [1]}',
    "a fraction as ack": '{"type": "echo", "ack": 1.5}',
    "an object as ack": '{"type": "echo", "ack": {}}',
    "a long ack": '{"type": "echo", "ack": "' + "x" * 256 + '"}',
    "an ack past 64 bits": '{"type": "echo", "ack": 18446744073709551616}',
    "nested 100,000 deep": '{"type": "echo", "payload": ' + "[" * _DEEP + "]" * _DEEP + "}",
    "objects nested 100,000 deep": '{"type": "echo", "payload": ' + '{"a":' * _DEEP + "1" + "}" * _DEEP + "}",
    "nested without end": '{"type": "echo", "payload": ' + "[" * _DEEP,
    "an unknown key nested 100,000 deep": '{"type": "echo", "other": ' + "[" * _DEEP + "]" * _DEEP + "}",
    "a number past 64 bits": '{"type": "echo", "payload": 18446744073709551616}',
    "a number below 64 bits": '{"type": "echo", "payload": [{"a": -9223372036854775809}]}',
    "a number of 5,000 digits": '{"type": "echo", "payload": ' + "9" * 5_000 + "}",
    "a float without bounds": '{"type": "echo", "payload": 1e999}',
    "NaN": '{"type": "echo", "payload": NaN}',
    "Infinity": '{"type": "echo", "payload": [-Infinity]}',
    "a lone surrogate": '{"type": "echo", "payload": "\\ud800"}',
    "a lone surrogate as key": '{"type": "echo", "payload": {"\\udc00": 1}}',
    "a lone surrogate in the type": '{"type": "echo\\ud83d"}',
}

_ECHO = b"\x82\xa4type\xa4echo\xa7payload"  # an object of two whose second value comes next

BAD_MSGPACK: dict[str, bytes] = {
    "nothing": b"",
    "a reserved byte": b"\xc1",
    "half a message": _ECHO,
    "something after the end": _ECHO + b"\xc0\xc0",
    "a list": msgpack.packb([1]),
    "a string": msgpack.packb("echo"),
    "null": msgpack.packb(None),
    "no type": msgpack.packb({}),
    "an empty type": msgpack.packb({"type": ""}),
    "a number as type": msgpack.packb({"type": 1}),
    "bytes as type": msgpack.packb({"type": b"echo"}),
    "a long type": msgpack.packb({"type": "x" * 256}),
    "a number as room": msgpack.packb({"type": "echo", "room": 1}),
    "numbers as targets": msgpack.packb({"type": "echo", "target": [1]}),
    "a fraction as ack": msgpack.packb({"type": "echo", "ack": 1.5}),
    "nested 100,000 deep": _ECHO + b"\x91" * _DEEP + b"\xc0",
    "nested without end": _ECHO + b"\x91" * _DEEP,
    "numbers as keys": msgpack.packb({"type": "echo", "payload": {1: 2}}),
    "NaN": msgpack.packb({"type": "echo", "payload": float("nan")}),
    "infinity": msgpack.packb({"type": "echo", "payload": [float("inf")]}),
    "a lone surrogate": _ECHO + b"\xa3\xed\xa0\x80",
    "an extension": _ECHO + b"\xd4\x05\x00",
    "a timestamp": _ECHO + b"\xd6\xff\x00\x00\x00\x00",
    "a list that promises 4 billion items": _ECHO + b"\xdd\xff\xff\xff\xff",
    "a text that promises 4 GiB": _ECHO + b"\xdb\xff\xff\xff\xff",
}
