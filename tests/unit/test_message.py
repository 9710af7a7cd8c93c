"""Decoding is strict, encoding happens once, frames are shared."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.errors import BadMessage
from realtime.message import JSON, MSGPACK, Codec, Message, Outbound, Wire
from realtime.testing.hostile import BAD_JSON, BAD_MSGPACK

NOW = 1_700_000_000_000


def packed(codec: Codec, value: Any) -> bytes:
    """Encode by an independent library."""
    return json.dumps(value).encode() if codec is JSON else msgpack.packb(value)


def unpacked(codec: Codec, data: bytes) -> Any:
    return json.loads(data) if codec is JSON else msgpack.unpackb(data)


@pytest.fixture(params=[JSON, MSGPACK], ids=["json", "msgpack"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return request.param


def test_every_field_is_read(codec: Codec) -> None:
    sent = {"type": "chat", "payload": {"a": [1, None]}, "room": "lobby", "target": ["x", "y"], "ack": "7"}
    message = codec.decode(packed(codec, sent))
    assert message == Message("chat", {"a": [1, None]}, "lobby", ["x", "y"], "7", {})


def test_only_the_type_is_needed(codec: Codec) -> None:
    assert codec.decode(packed(codec, {"type": "chat"})) == Message("chat")


def test_null_is_the_same_as_absent(codec: Codec) -> None:
    sent = {"type": "chat", "payload": None, "room": None, "target": None, "ack": None}
    assert codec.decode(packed(codec, sent)) == Message("chat")


def test_unknown_keys_are_ignored_and_params_cannot_be_forged(codec: Codec) -> None:
    message = codec.decode(packed(codec, {"type": "chat", "params": {"room_id": "7"}, "from": "ann", "x": [1]}))
    assert message == Message("chat")


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**64 - 1, 1234567890123456789, 0.1, 1e308])
def test_numbers_of_64_bits_are_taken(codec: Codec, number: float) -> None:
    assert codec.decode(packed(codec, {"type": "chat", "payload": [number]})).payload == [number]


def test_digits_in_a_text_are_not_numbers() -> None:
    text = "9" * 40
    assert JSON.decode(packed(JSON, {"type": "chat", "payload": {text: text}})).payload == {text: text}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_refused(name: str) -> None:
    with pytest.raises(BadMessage):
        JSON.decode(BAD_JSON[name].encode())


def test_text_that_is_no_utf8_is_refused() -> None:
    for data in (b'{"type": "\xff"}', b'{"type": "chat", "payload": "\xed\xa0\x80"}', b'\xef\xbb\xbf{"type": "chat"}'):
        with pytest.raises(BadMessage):
            JSON.decode(data)


@pytest.mark.parametrize("name", BAD_MSGPACK)
def test_bad_msgpack_is_refused(name: str) -> None:
    with pytest.raises(BadMessage):
        MSGPACK.decode(BAD_MSGPACK[name])


@pytest.mark.parametrize("ack", ["seven", 7, 0, -1])
def test_the_ack_of_a_bad_message_is_found(codec: Codec, ack: str | int) -> None:
    with pytest.raises(BadMessage) as caught:
        codec.decode(packed(codec, {"type": "", "ack": ack}))
    assert caught.value.ack == ack


def test_the_ack_of_a_message_with_a_bad_number_is_found() -> None:
    with pytest.raises(BadMessage) as caught:
        JSON.decode(b'{"type": "chat", "ack": 3, "payload": 18446744073709551616}')
    assert caught.value.ack == 3
    with pytest.raises(BadMessage) as caught:
        MSGPACK.decode(packed(MSGPACK, {"type": "chat", "ack": 3, "payload": float("nan")}))
    assert caught.value.ack == 3


def test_a_bad_ack_is_not_given_back(codec: Codec) -> None:
    for ack in ("x" * 256, 1.5, {}, True):
        with pytest.raises(BadMessage) as caught:
            codec.decode(packed(codec, {"type": "", "ack": ack}))
        assert caught.value.ack is None


def test_the_complaint_shows_what_a_message_looks_like() -> None:
    with pytest.raises(BadMessage, match=r'a message is an object such as \{"type"'):
        JSON.decode(b"hello")


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_message_or_bad_message(data: bytes) -> None:
    for codec in (JSON, MSGPACK):
        try:
            assert isinstance(codec.decode(data), Message)
        except BadMessage:
            pass


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(_values)
def test_what_gets_in_can_be_sent_to_the_others(value: Any) -> None:
    for codec in (JSON, MSGPACK):
        message = codec.decode(packed(codec, {"type": "chat", "payload": value}))
        assert message.payload == value
        for out in (JSON, MSGPACK):
            assert unpacked(out, Outbound(message, NOW).encoded(out)).get("payload") == value


# What goes out ---------------------------------------------------------------


def test_the_servers_shape_is_type_payload_room_and_timestamp(codec: Codec) -> None:
    outbound = Outbound({"type": "news", "payload": [1], "room": "lobby"}, NOW)
    expected = {"type": "news", "payload": [1], "room": "lobby", "timestamp": NOW}
    assert unpacked(codec, outbound.encoded(codec)) == expected


def test_what_is_not_given_is_not_sent(codec: Codec) -> None:
    assert unpacked(codec, Outbound({"type": "news"}, NOW).encoded(codec)) == {"type": "news", "timestamp": NOW}


def test_a_payload_of_none_is_sent_as_null(codec: Codec) -> None:
    sent = unpacked(codec, Outbound({"type": "news", "payload": None}, NOW).encoded(codec))
    assert sent == {"type": "news", "payload": None, "timestamp": NOW}


def test_room_and_ack_are_filled_in(codec: Codec) -> None:
    outbound = Outbound({"type": "q", "room": "attic"}, NOW, room="lobby", ack=3)
    assert unpacked(codec, outbound.encoded(codec)) == {"type": "q", "room": "lobby", "timestamp": NOW, "ack": 3}


def test_a_received_message_can_be_passed_on_without_ack_and_target(codec: Codec) -> None:
    received = Message("chat", "hi", "lobby", "ann", 7)
    expected = {"type": "chat", "payload": "hi", "room": "lobby", "timestamp": NOW}
    assert unpacked(codec, Outbound(received, NOW).encoded(codec)) == expected


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("text", "not str"),
        (None, "not NoneType"),
        ([], "not list"),
        ({}, "non-empty string 'type'"),
        ({"type": ""}, "non-empty string 'type'"),
        ({"type": 7}, "got 7"),
        ({"type": "x", "playload": 1}, "unknown key 'playload'.*allowed are"),
        ({"type": "x", "ack": 1}, "unknown key 'ack'"),
    ],
)
def test_what_is_no_message_is_not_sent(message: Any, complaint: str) -> None:
    with pytest.raises(BadMessage, match=complaint):
        Outbound(message, NOW)


@pytest.mark.parametrize("payload", [object(), iter([1]), "\ud800", {"a": object()}])
def test_what_no_codec_can_carry_is_bad_message(codec: Codec, payload: Any) -> None:
    with pytest.raises(BadMessage, match="cannot be sent as"):
        Outbound({"type": "x", "payload": payload}, NOW).encoded(codec)


def test_a_payload_without_bottom_is_bad_message(codec: Codec) -> None:
    payload: list[Any] = []
    payload.append(payload)
    with pytest.raises(BadMessage):
        Outbound({"type": "x", "payload": payload}, NOW).encoded(codec)


def test_it_is_encoded_once_per_codec_and_finished_once_per_wire() -> None:
    calls = []

    class Counting:
        name = "counting"

        def encode(self, value: Any) -> bytes:
            calls.append("encode")
            return JSON.encode(value)

    def finish(payload: bytes) -> bytes:
        calls.append("finish")
        return b"frame:" + payload

    codec = Counting()
    one, other = Wire(codec, finish), Wire(codec, finish)
    outbound = Outbound({"type": "news"}, NOW)
    frames = [outbound.finished(wire) for wire in (one, other, one, other)]
    assert calls == ["encode", "finish", "finish"]
    assert frames[0] is frames[2]
    assert frames[1] is frames[3]
    assert frames[0] == b'frame:{"type":"news","timestamp":%d}' % NOW
