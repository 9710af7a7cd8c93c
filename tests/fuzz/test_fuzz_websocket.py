"""Any bytes, in any pieces: the protocol gives documented events and never raises.

Runs a few seconds by default. For a long run, say how many seconds each test may take::

    REALTIME_FUZZ_SECONDS=600 python -m pytest tests/fuzz/test_fuzz_websocket.py
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realtime.errors import FrameError, HandshakeError, PayloadNotUtf8, PayloadTooBig
from realtime.protocols.deflate import DeflateOptions, PerMessageDeflate, accept_offer, compress_once
from realtime.protocols.frames import encode_frame
from realtime.protocols.handshake import accept_handshake, check_response
from realtime.protocols.http import parse_request
from realtime.protocols.websocket import (
    BinaryReceived,
    CloseReceived,
    Event,
    Failed,
    PingReceived,
    PongReceived,
    Role,
    State,
    TextReceived,
    WebSocketProtocol,
)

SECONDS = float(os.environ.get("REALTIME_FUZZ_SECONDS", "0"))
MESSAGE_SIZE = 2000
FRAGMENTS = 20
KEY = bytes.fromhex("37fa213d")
FAILURES = {FrameError: 1002, PayloadNotUtf8: 1007, PayloadTooBig: 1009}

bounded = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def keep_on(test: Callable[[], None]) -> None:
    """Run a hypothesis test once, then again with fresh examples until REALTIME_FUZZ_SECONDS are over."""
    end = time.monotonic() + SECONDS
    test()
    while time.monotonic() < end:
        test()


def protocol(role: Role, deflate: bool) -> WebSocketProtocol:
    return WebSocketProtocol(
        role,
        message_size=MESSAGE_SIZE,
        fragments=FRAGMENTS,
        deflate=PerMessageDeflate(min_size=0) if deflate else None,
    )


def comparable(event: Event) -> object:
    if isinstance(event, Failed):
        return type(event.error), int(event.error.code)
    return event


def run(subject: WebSocketProtocol, pieces: list[bytes], max_messages: int | None = None) -> list[object]:
    """Feed the pieces, check every promise that holds for any input, and return the events."""
    events: list[Event] = []
    for piece in pieces:
        if max_messages is None:
            events += subject.receive_data(piece)
        else:
            events += subject.receive_data(piece, max_messages)
            while subject.has_pending:
                some = subject.receive_data(b"", max_messages)
                messages = [event for event in some if isinstance(event, (TextReceived, BinaryReceived))]
                assert len(messages) <= max_messages
                events += some
        assert not subject.has_pending
        assert held(subject) <= MESSAGE_SIZE * 1.2 + 200
    check(subject, events)
    return [comparable(event) for event in events]


def held(subject: WebSocketProtocol) -> int:
    """Bytes of input that the protocol still holds."""
    message = subject._message
    return len(subject._buffer) + len(subject._control) + (len(message._data) if message is not None else 0)


def check(subject: WebSocketProtocol, events: list[Event]) -> None:
    for event in events:
        if isinstance(event, TextReceived):
            event.data.decode()
        if isinstance(event, (TextReceived, BinaryReceived)):
            assert type(event.data) is bytes
            assert len(event.data) <= MESSAGE_SIZE
        elif isinstance(event, (PingReceived, PongReceived)):
            assert len(event.data) <= 125
        elif isinstance(event, CloseReceived):
            assert event.code == 1005 or 1000 <= event.code <= 4999
        else:
            assert event.error.code == FAILURES[type(event.error)]
    ends = [event for event in events if isinstance(event, (CloseReceived, Failed))]
    assert ends == ends[:1] == [event for event in events[-1:] if event in ends]
    assert (subject.state is State.CLOSED) == bool(ends)
    pings = sum(isinstance(event, PingReceived) for event in events)
    assert len(subject.data_to_send()) == min(pings, 1024) + bool(ends)
    subject.receive_eof()
    assert subject.state is State.CLOSED
    assert held(subject) == 0
    assert subject.close_code is not None


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    return [*pieces, data[position:]]


def assert_pieces_do_not_matter(role: Role, deflate: bool, data: bytes, sizes: list[int], some: int) -> None:
    whole = run(protocol(role, deflate), [data])
    bytewise = run(protocol(role, deflate), [data[i : i + 1] for i in range(len(data))])
    pieces = run(protocol(role, deflate), cut(data, sizes))
    stepwise = run(protocol(role, deflate), cut(data, sizes), some)
    if deflate:
        # zlib finds corrupt data before what it inflated can be looked at: only then may the code differ.
        whole, bytewise, pieces, stepwise = map(without_the_code, (whole, bytewise, pieces, stepwise))
    assert whole == bytewise
    assert whole == pieces
    assert whole == stepwise


def without_the_code(events: list[object]) -> list[object]:
    ambiguous = ((FrameError, 1002), (PayloadNotUtf8, 1007))
    return [ambiguous if event in ambiguous else event for event in events]


roles = st.sampled_from(list(Role))
sizes = st.lists(st.integers(1, 300), max_size=30)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(st.binary(max_size=200))
    if kind == 1:
        return draw(st.text(max_size=100)).encode(errors="replace")
    if kind == 2:
        return draw(st.sampled_from([b"", b"\xf0\x9f", b"\x98\x80", b"\xed\xa0", b"\xc3", b"\xa4", b"\xff"]))
    if kind == 3:
        return draw(st.sampled_from([b"\x03\xe8", b"\x03\xe8why", b"\x03", b"\x03\xed", b"\x0f\xa0\xff"]))
    if kind == 4:
        return compress_once(draw(st.binary(max_size=100)) * draw(st.sampled_from([1, 10, 1000])))
    return bytes(draw(st.sampled_from([125, 126, 127, 1999, 2000, 2001, 65536])))


@st.composite
def frames(draw: st.DrawFn, role: Role, deflate: bool) -> bytes:
    """Mostly right frames: right mask, opcodes in all states, compressed or not."""
    opcode = draw(st.sampled_from([0, 0, 0, 1, 1, 2, 8, 9, 10, draw(st.integers(0, 15))]))
    masked = (role is Role.SERVER) == (draw(st.integers(0, 50)) > 0)
    return encode_frame(
        opcode,
        draw(payloads()),
        fin=draw(st.integers(0, 2)) > 0,
        rsv1=deflate and opcode in (1, 2) and draw(st.booleans()),
        mask=KEY if masked else None,
    )


@st.composite
def streams(draw: st.DrawFn) -> tuple[Role, bool, bytes]:
    role, deflate = draw(roles), draw(st.booleans())
    return role, deflate, b"".join(draw(st.lists(frames(role, deflate), max_size=15)))


def test_any_bytes_in_any_pieces() -> None:
    @bounded
    @given(roles, st.booleans(), st.binary(max_size=500), sizes, st.integers(1, 3))
    def test(role: Role, deflate: bool, data: bytes, sizes: list[int], some: int) -> None:
        assert_pieces_do_not_matter(role, deflate, data, sizes, some)

    keep_on(test)


def test_mostly_valid_streams_in_any_pieces() -> None:
    @bounded
    @given(streams(), sizes, st.integers(1, 3))
    def test(stream: tuple[Role, bool, bytes], sizes: list[int], some: int) -> None:
        assert_pieces_do_not_matter(*stream, sizes, some)

    keep_on(test)


def valid_stream(chooser: random.Random, deflate: bool) -> tuple[bytes, int]:
    """Messages, whole and fragmented, with pings between, as a client would send them; and how many."""
    writer = WebSocketProtocol(Role.CLIENT, deflate=PerMessageDeflate(min_size=50) if deflate else None)
    parts: list[bytes] = []
    messages = chooser.randrange(1, 8)
    for _ in range(messages):
        message = ("grüße 😀 " * 200)[: chooser.choice((0, 1, 30, 120, 200))].encode()
        if chooser.random() < 0.5:
            parts.append(writer.encode_text(message))
            continue
        splits = sorted(chooser.choices(range(len(message) + 1), k=3))
        parts.append(encode_frame(1, message[: splits[0]], fin=False, mask=KEY))
        parts.append(encode_frame(0, message[splits[0] : splits[1]], fin=False, mask=KEY))
        parts.append(writer.ping(b"between"))
        parts.append(encode_frame(0, message[splits[1] :], mask=KEY))
    return b"".join(parts), messages


@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
def test_valid_streams_are_read_and_mutated_ones_survived(deflate: bool) -> None:
    end = time.monotonic() + SECONDS
    for seed in count():
        if seed >= 300 and time.monotonic() >= end:
            break
        chooser = random.Random(seed)
        data, messages = valid_stream(chooser, deflate)
        sizes = [chooser.randrange(1, 200) for _ in range(20)]
        events = run(protocol(Role.SERVER, deflate), cut(data, sizes))
        assert sum(isinstance(event, TextReceived) for event in events) == messages, seed
        broken = bytearray(data)
        for _ in range(chooser.randrange(1, 4)):
            position = chooser.randrange(len(broken))
            change = chooser.randrange(3)
            if change == 0:
                broken[position] ^= 1 << chooser.randrange(8)
            elif change == 1:
                del broken[position : position + chooser.randrange(1, 5)]
            else:
                broken[position:position] = chooser.randbytes(chooser.randrange(1, 5))
            if not broken:
                break
        assert_pieces_do_not_matter(Role.SERVER, deflate, bytes(broken), sizes, chooser.randrange(1, 4))


tokens = st.sampled_from(
    [
        "permessage-deflate",
        *("server_max_window_bits", "client_max_window_bits"),
        *("server_no_context_takeover", "client_no_context_takeover"),
        *("=", ";", ",", "8", "9", "15", "16", '"10"', '"', "\\", "x", "\x00", "ä", " "),
    ]
)


def test_any_extension_header_is_answered_or_refused() -> None:
    @bounded
    @given(st.lists(tokens, max_size=20).map("".join))
    def test(header: str) -> None:
        try:
            agreed = accept_offer(header, DeflateOptions())
        except ValueError:
            return
        if agreed is not None:
            assert 9 <= agreed[0].send_window_bits <= 15
            assert 8 <= agreed[0].receive_window_bits <= 15

    keep_on(test)


HEAD = (
    b"GET /chat HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://a.example\r\n"
    b"Sec-WebSocket-Protocol: a, b\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


def test_any_handshake_is_accepted_or_refused() -> None:
    @bounded
    @given(st.integers(0, len(HEAD)), st.integers(0, 12), st.binary(max_size=12))
    def test(position: int, removed: int, inserted: bytes) -> None:
        head = HEAD[:position] + inserted + HEAD[position + removed :]
        try:
            accepted = accept_handshake(
                parse_request(head), subprotocols=["b"], allowed_origins=None, deflate=DeflateOptions()
            )
        except HandshakeError as error:
            assert 400 <= error.status <= 599  # noqa: PT017  # either outcome is right
        else:
            assert accepted.response.startswith(b"HTTP/1.1 101 ")
            assert accepted.response.endswith(b"\r\n\r\n")
        with pytest.raises(HandshakeError):
            check_response(b"HTTP/1.1 101 OK" + head[18:], "dGhlIHNhbXBsZSBub25jZQ==")

    keep_on(test)
