"""The WebSocket protocol: a table of cases by section of RFC 6455, then promises of our own."""

from __future__ import annotations

import itertools
import os
import random
import tracemalloc

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate as OtherDeflate
from websockets.frames import Frame as OtherFrame
from websockets.frames import Opcode as OtherOpcode
from websockets.protocol import CLIENT as OTHER_CLIENT
from websockets.protocol import SERVER as OTHER_SERVER
from websockets.protocol import Protocol as OtherProtocol
from websockets.protocol import State as OtherState

from realtime.errors import ConnectionClosed, ProtocolError
from realtime.protocols.deflate import PerMessageDeflate, compress_once
from realtime.protocols.frames import Opcode, encode_frame
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

KEY = bytes.fromhex("37fa213d")
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10


def server(**options: object) -> WebSocketProtocol:
    return WebSocketProtocol(Role.SERVER, **options)  # type: ignore[arg-type]


def client(**options: object) -> WebSocketProtocol:
    return WebSocketProtocol(Role.CLIENT, **options)  # type: ignore[arg-type]


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False) -> bytes:
    return encode_frame(opcode, payload, fin=fin, rsv1=rsv1, mask=KEY)


def text(payload: bytes = b"", *, fin: bool = True) -> bytes:
    return masked(Opcode.TEXT, payload, fin=fin)


def more(payload: bytes = b"", *, fin: bool = False) -> bytes:
    return masked(Opcode.CONTINUATION, payload, fin=fin)


def code_of(events: list[Event]) -> int:
    """The code of the failure that ends the events."""
    assert events, "nothing happened"
    failed = events[-1]
    assert isinstance(failed, Failed), failed
    return int(failed.error.code)


def bytewise(protocol: WebSocketProtocol, data: bytes) -> list[Event]:
    return [event for i in range(len(data)) for event in protocol.receive_data(data[i : i + 1])]


GOOD = [
    ("5.7 unmasked text", Role.CLIENT, "810548656c6c6f", [TextReceived(b"Hello")]),
    ("5.7 masked text", Role.SERVER, "818537fa213d7f9f4d5158", [TextReceived(b"Hello")]),
    ("5.7 two fragments", Role.CLIENT, "010348656c80026c6f", [TextReceived(b"Hello")]),
    ("5.7 ping", Role.CLIENT, "890548656c6c6f", [PingReceived(b"Hello")]),
    ("5.7 pong", Role.SERVER, "8a8537fa213d7f9f4d5158", [PongReceived(b"Hello")]),
    ("5.7 256 bytes", Role.CLIENT, "827e0100" + "00" * 256, [BinaryReceived(bytes(256))]),
    ("5.7 64 KiB", Role.CLIENT, "827f0000000000010000" + "00" * 65536, [BinaryReceived(bytes(65536))]),
    ("5.6 empty text", Role.SERVER, "818000000000", [TextReceived(b"")]),
    ("5.6 empty binary", Role.CLIENT, "8200", [BinaryReceived(b"")]),
    ("5.4 ping within fragments", Role.CLIENT, "0101618900800162", [PingReceived(b""), TextReceived(b"ab")]),
    ("5.4 empty fragments", Role.CLIENT, "0200000000008000", [BinaryReceived(b"")]),
    ("5.4 text starts empty", Role.CLIENT, "0100000161800162", [TextReceived(b"ab")]),
    ("5.5 125 bytes of ping", Role.CLIENT, "897d" + "61" * 125, [PingReceived(b"a" * 125)]),
    ("5.5.1 close without code", Role.CLIENT, "8800", [CloseReceived(1005, "")]),
    ("5.5.1 close with code", Role.CLIENT, "880203e8", [CloseReceived(1000, "")]),
    ("5.5.1 close with reason", Role.CLIENT, "88040fa06279", [CloseReceived(4000, "by")]),
    ("5.5.1 data after close", Role.CLIENT, "880203e8810161ffff", [CloseReceived(1000, "")]),
    ("8.1 character over fragments", Role.CLIENT, "0102f09f80029880", [TextReceived("😀".encode())]),
]


@pytest.mark.parametrize(
    ("role", "data", "events"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD]
)
def test_what_the_rfc_allows(role: Role, data: str, events: list[Event]) -> None:
    protocol = WebSocketProtocol(role)
    assert protocol.receive_data(bytes.fromhex(data)) == events
    if len(data) < 10_000:
        assert bytewise(WebSocketProtocol(role), bytes.fromhex(data)) == events


def first_bytes(first: int, second: int = 0x80) -> bytes:
    return bytes((first, second)) + KEY


BAD = [
    ("5.1 unmasked frame from a client", Role.SERVER, bytes.fromhex("810548656c6c6f"), 1002),
    ("5.1 unmasked ping from a client", Role.SERVER, b"\x89\x00", 1002),
    ("5.1 masked frame from a server", Role.CLIENT, text(b"Hello"), 1002),
    ("5.1 masked empty frame from a server", Role.CLIENT, text(), 1002),
    *((f"5.2 reserved opcode {n}", Role.SERVER, first_bytes(FIN | n), 1002) for n in (3, 4, 5, 6, 7)),
    *((f"5.2 reserved opcode {n}", Role.SERVER, first_bytes(FIN | n), 1002) for n in (11, 12, 13, 14, 15)),
    *(
        (f"5.2 bit {bit:#x}", Role.SERVER, first_bytes(FIN | bit | 1), 1002)
        for bit in (RSV1, RSV2, RSV3, 0x70)
    ),
    *(
        (f"5.2 bit {bit:#x} on a ping", Role.SERVER, first_bytes(FIN | bit | 9), 1002)
        for bit in (RSV1, RSV2, RSV3)
    ),
    ("5.2 16-bit length for 125", Role.SERVER, b"\x81\xfe\x00\x7d", 1002),
    ("5.2 16-bit length for 0", Role.CLIENT, b"\x81\x7e\x00\x00", 1002),
    ("5.2 16-bit length for 125, all here", Role.SERVER, b"\x81\xfe\x00\x7d" + KEY + bytes(125), 1002),
    ("5.2 64-bit length for 65535", Role.SERVER, b"\x82\xff" + (65535).to_bytes(8, "big"), 1002),
    ("5.4 continuation of nothing", Role.SERVER, more(b"a"), 1002),
    ("5.4 last continuation of nothing", Role.SERVER, more(b"a", fin=True), 1002),
    ("5.4 continuation after a whole message", Role.SERVER, text(b"a") + more(b"b"), 1002),
    ("5.4 message within a message", Role.SERVER, text(b"a", fin=False) + text(b"b"), 1002),
    ("5.4 message after a pong within", Role.SERVER, text(b"a", fin=False) + masked(10) + text(b"b"), 1002),
    ("5.4 binary within text", Role.SERVER, text(b"a", fin=False) + masked(Opcode.BINARY, b"b"), 1002),
    ("5.5 fragmented ping", Role.SERVER, first_bytes(9), 1002),
    ("5.5 fragmented close", Role.SERVER, first_bytes(8), 1002),
    ("5.5 ping of 126 bytes", Role.SERVER, b"\x89\xfe\x00\x7e", 1002),
    ("5.5 close of 64 KiB", Role.SERVER, b"\x88\xff", 1002),
    ("5.5.1 half a close code", Role.SERVER, masked(Opcode.CLOSE, b"\x03"), 1002),
    *(
        (f"7.4 close code {n}", Role.SERVER, masked(Opcode.CLOSE, n.to_bytes(2, "big")), 1002)
        for n in (0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
    ),
    ("8.1 close reason", Role.SERVER, masked(Opcode.CLOSE, b"\x03\xe8\xc3\x28"), 1007),
    ("8.1 close reason cut off", Role.SERVER, masked(Opcode.CLOSE, b"\x03\xe8\xc3"), 1007),
    ("8.1 invalid byte", Role.SERVER, text(b"abc\xff"), 1007),
    ("8.1 overlong", Role.SERVER, text(b"\xc0\xaf"), 1007),
    ("8.1 surrogate", Role.SERVER, text(b"\xed\xa0\x80"), 1007),
    ("8.1 above U+10FFFF", Role.SERVER, text(b"\xf4\x90\x80\x80"), 1007),
    ("8.1 ends within a character", Role.SERVER, text(b"\xf0\x9f\x98"), 1007),
    ("8.1 split over fragments", Role.SERVER, text(b"\xc3", fin=False) + more(b"\x28", fin=True), 1007),
    ("8.1 fragments end within", Role.SERVER, text(b"a\xc3", fin=False) + more(b"", fin=True), 1007),
]


@pytest.mark.parametrize(("role", "data", "code"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_the_rfc_forbids_fails_the_connection(role: Role, data: bytes, code: int) -> None:
    for feed in (WebSocketProtocol.receive_data, bytewise):
        protocol = WebSocketProtocol(role)
        events = feed(protocol, data)
        assert code_of(events) == code
        assert protocol.state is State.CLOSED
        assert protocol.close_code == code
        [reply] = protocol.data_to_send()
        assert reply[0] == FIN | Opcode.CLOSE
        assert code_of_close(reply) == code
        assert protocol.receive_data(text(b"ignored")) == []


def code_of_close(frame: bytes) -> int:
    """The code in a close frame of either role."""
    if frame[1] & 0x80:
        return int.from_bytes(frame[6:8], "big") ^ int.from_bytes(frame[2:4], "big")
    return int.from_bytes(frame[2:4], "big")


# ---------------------------------------------------------------------------------------------- early failure


@pytest.mark.parametrize("length", [1001, 65536, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_too_long_a_message_is_refused_before_its_mask_key(length: int) -> None:
    protocol = server(message_size=1000)
    size = (b"\xfe" + length.to_bytes(2, "big")) if length < 65536 else b"\xff" + length.to_bytes(8, "big")
    assert protocol.receive_data(b"\x82" + size[:-1]) == []
    assert code_of(protocol.receive_data(size[-1:])) == 1009


def test_fragments_are_counted_together_against_the_size() -> None:
    protocol = server(message_size=1000)
    assert protocol.receive_data(text(bytes(600), fin=False)) == []
    assert code_of(protocol.receive_data(more(bytes(401))[:4])) == 1009


@pytest.mark.parametrize("size", [1, 5, 125, 1000, 70_000])
def test_message_of_exactly_the_limit_passes(size: int) -> None:
    assert server(message_size=size).receive_data(text(b"a" * size)) == [TextReceived(b"a" * size)]
    assert code_of(server(message_size=size).receive_data(text(b"a" * (size + 1)))) == 1009


def test_invalid_text_fails_before_the_frame_is_complete() -> None:
    frame = text(b"a" * 10 + b"\xff" + b"a" * 1000)
    assert code_of(server().receive_data(frame[:19])) == 1007


@pytest.mark.parametrize("start", [b"\xc0", b"\xf5", b"\xed\xa0", b"\xf4\x90", b"\xe0\x80", b"\xf0\x8f"])
def test_impossible_start_of_a_character_fails_at_once(start: bytes) -> None:
    protocol = server()
    assert protocol.receive_data(text(b"ok ", fin=False)) == []
    assert code_of(protocol.receive_data(more(start))) == 1007


def test_large_text_split_at_every_character_boundary_is_valid() -> None:
    message = "aä€😀".encode() * 50
    for size in (1, 2, 3, 5, 7):
        pieces = [message[i : i + size] for i in range(0, len(message), size)]
        data = text(pieces[0], fin=False) + b"".join(map(more, pieces[1:])) + more(fin=True)
        assert server().receive_data(data) == [TextReceived(message)]


def test_what_came_before_the_fault_is_delivered() -> None:
    events = server().receive_data(text(b"one") + masked(Opcode.PING, b"p") + first_bytes(FIN | 3))
    assert events[:2] == [TextReceived(b"one"), PingReceived(b"p")]
    assert code_of(events) == 1002


# -------------------------------------------------------------------------------------------------- fragments


def test_empty_fragments_without_end_are_cut() -> None:
    protocol = server()
    assert protocol.receive_data(text(b"", fin=False) + more() * 4095) == []
    assert code_of(protocol.receive_data(more())) == 1009


def test_small_fragments_are_paid_for_by_their_payload() -> None:
    count = 20_000
    data = text(b"a" * 64, fin=False) + more(b"a" * 64) * (count - 2) + more(b"a" * 64, fin=True)
    assert server(message_size=64 * count).receive_data(data) == [TextReceived(b"a" * 64 * count)]
    assert (
        code_of(server(message_size=64 * count).receive_data(text(b"a", fin=False) + more(b"a") * count))
        == 1009
    )


def test_limit_of_fragments_is_an_option_and_each_message_begins_anew() -> None:
    three = text(b"a", fin=False) + more(b"b") + more(b"c", fin=True)
    assert server(fragments=3).receive_data(three * 5) == [TextReceived(b"abc")] * 5
    assert code_of(server(fragments=2).receive_data(three)) == 1009


# ---------------------------------------------------------------------------------------------- max_messages


def test_parsing_stops_after_max_messages_and_goes_on_when_asked() -> None:
    protocol = server()
    stream = (
        text(b"1") + masked(Opcode.PING, b"p") + text(b"2") + masked(Opcode.BINARY, b"3") + text(b"4")[:5]
    )
    assert protocol.receive_data(stream, 1) == [TextReceived(b"1")]
    assert protocol.has_pending
    assert protocol.receive_data(b"", 1) == [PingReceived(b"p"), TextReceived(b"2")]
    assert protocol.has_pending
    assert protocol.receive_data(b"", 10) == [BinaryReceived(b"3")]
    assert not protocol.has_pending
    assert protocol.receive_data(text(b"4")[5:]) == [TextReceived(b"4")]


def test_new_data_goes_behind_what_is_pending() -> None:
    protocol = server()
    assert protocol.receive_data(text(b"1") + text(b"2"), 1) == [TextReceived(b"1")]
    assert protocol.receive_data(text(b"3"), 1) == [TextReceived(b"2")]
    assert protocol.receive_data(b"", 1) == [TextReceived(b"3")]
    assert not protocol.has_pending


def test_fragmented_messages_count_once() -> None:
    protocol = server()
    message = text(b"a", fin=False) + masked(Opcode.PING) + more(b"b", fin=True)
    events = protocol.receive_data(message * 3, 2)
    assert events == [PingReceived(b""), TextReceived(b"ab")] * 2
    assert protocol.has_pending


def test_partial_frame_after_a_message_is_not_counted_as_one() -> None:
    protocol = server()
    large = text(b"b" * 70_000)
    assert protocol.receive_data(text(b"a") + large[:1000], 2) == [TextReceived(b"a")]
    assert protocol.receive_data(large[1000:], 1) == [TextReceived(b"b" * 70_000)]


def test_zero_messages_only_keeps_the_data() -> None:
    protocol = server()
    assert protocol.receive_data(text(b"1"), 0) == []
    assert protocol.has_pending
    assert protocol.receive_data(b"") == [TextReceived(b"1")]


# ---------------------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize("payload", [b"", b"Hello", bytes(125)])
def test_each_ping_is_answered_with_its_payload(payload: bytes) -> None:
    protocol = server()
    protocol.receive_data(masked(Opcode.PING, payload) * 10)
    assert protocol.replies
    assert protocol.data_to_send() == [encode_frame(Opcode.PONG, payload)] * 10
    assert not protocol.replies


def test_flood_of_pings_holds_a_bounded_number_of_pongs_and_the_latest() -> None:
    protocol = server()
    protocol.receive_data(b"".join(masked(Opcode.PING, b"%d" % n) for n in range(5000)))
    replies = protocol.data_to_send()
    assert len(replies) == 1024
    assert replies[-1] == encode_frame(Opcode.PONG, b"4999")


def test_pong_is_not_answered() -> None:
    protocol = server()
    protocol.receive_data(masked(Opcode.PONG, b"unasked"))
    assert protocol.data_to_send() == []


def test_client_masks_each_frame_with_another_key() -> None:
    protocol = client()
    frames = [
        protocol.encode_text(b"Hello"),
        protocol.encode_binary(b"x"),
        protocol.ping(b"p"),
        protocol.close(),
    ]
    assert len({frame[2:6] for frame in frames}) == 4
    events = server().receive_data(b"".join(frames))
    assert events == [
        TextReceived(b"Hello"),
        BinaryReceived(b"x"),
        PingReceived(b"p"),
        CloseReceived(1000, ""),
    ]


def test_ping_of_more_than_125_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="125"):
        server().ping(bytes(126))


# ------------------------------------------------------------------------------------------------------ close


def test_peer_that_closes_is_answered_with_its_code() -> None:
    protocol = server()
    assert protocol.receive_data(masked(Opcode.CLOSE, b"\x0f\xa0bye")) == [CloseReceived(4000, "bye")]
    assert protocol.data_to_send() == [b"\x88\x02\x0f\xa0"]
    assert (protocol.state, protocol.close_code, protocol.close_reason) == (State.CLOSED, 4000, "bye")


def test_close_without_code_is_answered_without_code() -> None:
    protocol = server()
    protocol.receive_data(masked(Opcode.CLOSE))
    assert protocol.data_to_send() == [b"\x88\x00"]
    assert protocol.close_code == 1005


def test_our_close_waits_for_the_answer_and_still_takes_messages() -> None:
    protocol = server()
    assert protocol.close(1001, "restart") == b"\x88\x09\x03\xe9restart"
    assert (protocol.state, protocol.close_code) == (State.CLOSING, None)
    events = protocol.receive_data(text(b"late") + masked(Opcode.PING) + masked(Opcode.CLOSE, b"\x03\xe9"))
    assert events == [TextReceived(b"late"), PingReceived(b""), CloseReceived(1001, "")]
    assert protocol.data_to_send() == [encode_frame(Opcode.PONG, b"")]
    assert (protocol.state, protocol.close_code) == (State.CLOSED, 1001)


def test_fault_after_our_close_sends_no_second_close() -> None:
    protocol = server()
    protocol.close()
    assert code_of(protocol.receive_data(first_bytes(FIN | 3))) == 1002
    assert protocol.data_to_send() == []
    assert (protocol.state, protocol.close_code) == (State.CLOSED, 1002)


def test_nothing_is_sent_after_a_close_frame() -> None:
    closing, closed = server(), server()
    closing.close(4000, "ours")
    closed.receive_data(masked(Opcode.CLOSE, b"\x0f\xa1theirs"))
    assert closed.data_to_send() != []
    for protocol, code, reason in ((closing, 4000, "ours"), (closed, 4001, "theirs")):
        for send in (
            lambda p=protocol: p.encode_text(b""),
            lambda p=protocol: p.encode_binary(b""),
            protocol.ping,
            protocol.close,
        ):
            with pytest.raises(ConnectionClosed) as caught:
                send()
            assert (caught.value.code, caught.value.reason) == (code, reason)


def test_a_message_may_still_go_before_our_answer_to_a_close_frame() -> None:
    protocol = server()
    protocol.receive_data(masked(Opcode.CLOSE, b"\x03\xe8"))
    assert protocol.encode_text(b"last") == encode_frame(Opcode.TEXT, b"last")
    assert protocol.data_to_send() == [encode_frame(Opcode.CLOSE, b"\x03\xe8")]
    with pytest.raises(ConnectionClosed):
        protocol.encode_text(b"too late")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_close_refuses_codes_that_must_not_be_sent(code: int) -> None:
    protocol = server()
    with pytest.raises(ValueError, match=str(code)):
        protocol.close(code)
    assert protocol.state is State.OPEN


def test_close_refuses_a_reason_over_123_bytes() -> None:
    with pytest.raises(ValueError, match="123"):
        server().close(1000, "ä" * 62)


@pytest.mark.parametrize("closing", [False, True])
def test_end_of_stream_without_close_frame_is_abnormal(closing: bool) -> None:
    protocol = server()
    if closing:
        protocol.close()
    protocol.receive_data(text(b"half")[:7])
    assert protocol.receive_eof() == []
    assert (protocol.state, protocol.close_code) == (State.CLOSED, 1006)
    assert protocol.data_to_send() == []


def test_end_of_stream_after_close_changes_nothing() -> None:
    protocol = server()
    protocol.receive_data(masked(Opcode.CLOSE, b"\x03\xe8"))
    assert protocol.receive_eof() == []
    assert protocol.close_code == 1000


def test_end_of_stream_delivers_what_was_pending() -> None:
    protocol = server()
    protocol.receive_data(text(b"1") + text(b"2") + masked(Opcode.CLOSE, b"\x03\xe8"), 1)
    assert protocol.receive_eof() == [TextReceived(b"2"), CloseReceived(1000, "")]
    assert protocol.close_code == 1000


# ---------------------------------------------------------------------------------------------------- deflate


def deflating(takeover: bool = True, **options: object) -> WebSocketProtocol:
    return server(
        deflate=PerMessageDeflate(receive_takeover=takeover, send_takeover=takeover, min_size=0), **options
    )


def test_compressed_and_plain_messages_may_alternate() -> None:
    hello = bytes.fromhex("f248cdc9c90700")
    protocol = deflating()
    again = bytes.fromhex("f200110000")
    stream = masked(1, hello, rsv1=True) + text(b"plain") + masked(1, again, rsv1=True)
    assert protocol.receive_data(stream) == [
        TextReceived(b"Hello"),
        TextReceived(b"plain"),
        TextReceived(b"Hello"),
    ]


def test_compressed_fragments_with_a_ping_between() -> None:
    first, last = bytes.fromhex("f248cd"), bytes.fromhex("c9c90700")
    data = masked(1, first, fin=False, rsv1=True) + masked(9) + more(last, fin=True)
    assert deflating().receive_data(data) == [PingReceived(b""), TextReceived(b"Hello")]
    assert bytewise(deflating(), data) == [PingReceived(b""), TextReceived(b"Hello")]


def test_only_the_first_fragment_is_marked_as_compressed() -> None:
    data = masked(1, b"\x00", fin=False, rsv1=True) + masked(0, b"\x00", rsv1=True)
    assert code_of(deflating().receive_data(data)) == 1002


@pytest.mark.parametrize("bits", [FIN | RSV2 | 1, FIN | RSV3 | 1, FIN | RSV1 | 9, FIN | RSV1 | 8])
def test_other_reserved_bits_stay_forbidden(bits: int) -> None:
    assert code_of(deflating().receive_data(first_bytes(bits))) == 1002


def test_compressed_text_must_be_utf8() -> None:
    assert (
        code_of(deflating().receive_data(masked(1, compress_once(b"ok" * 50 + b"\xff"), rsv1=True))) == 1007
    )


def test_first_fault_of_a_compressed_message_is_the_one_reported() -> None:
    bad_text_then_too_much = masked(1, compress_once(b"\xff" + b"a" * 5000), rsv1=True)
    assert code_of(deflating(message_size=1000).receive_data(bad_text_then_too_much)) == 1007


def test_garbage_instead_of_deflate_fails() -> None:
    assert code_of(deflating().receive_data(masked(1, b"\xff\xff\xff", rsv1=True))) == 1002


def test_deflate_bomb_is_cut_within_the_limit() -> None:
    bomb = masked(2, compress_once(bytes(100_000_000)), rsv1=True)
    protocol = deflating(message_size=1_000_000)
    tracemalloc.start()
    try:
        assert code_of(protocol.receive_data(bomb)) == 1009
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_bomb_spread_over_fragments_is_cut() -> None:
    piece = compress_once(bytes(400_000)) + b"\x00\x00\xff\xff"
    protocol = deflating(message_size=1_000_000)
    events = protocol.receive_data(masked(2, piece, fin=False, rsv1=True) + more(piece))
    assert events == []
    assert code_of(protocol.receive_data(more(piece))) == 1009


def test_incompressible_message_of_exactly_the_limit_passes() -> None:
    message = os.urandom(100_000)
    protocol = deflating(message_size=100_000)
    assert protocol.receive_data(masked(2, compress_once(message), rsv1=True)) == [BinaryReceived(message)]


def test_compressed_frame_far_over_the_limit_is_refused_from_its_header() -> None:
    protocol = deflating(message_size=1000)
    assert code_of(protocol.receive_data(b"\xc2\xfe\x08\x00")) == 1009


def test_short_messages_go_uncompressed() -> None:
    protocol = server(deflate=PerMessageDeflate(min_size=100))
    assert protocol.encode_text(b"a" * 99)[0] == FIN | 1
    assert protocol.encode_text(b"a" * 100)[0] == FIN | RSV1 | 1


# --------------------------------------------------------------------------------------- size of what is kept


def test_large_frame_in_small_reads_takes_memory_for_one_message() -> None:
    frame = masked(Opcode.BINARY, bytes(4_000_000))
    protocol = server(message_size=4_000_000)
    tracemalloc.start()
    try:
        for start in range(0, len(frame) - 1, 4096):
            assert protocol.receive_data(frame[start : min(start + 4096, len(frame) - 1)]) == []
        assert (
            tracemalloc.get_traced_memory()[1] < 4_000_000 * 1.5
        )  # growing by an eighth, and 64 KiB at a time
    finally:
        tracemalloc.stop()
    assert protocol.receive_data(frame[-1:]) == [BinaryReceived(bytes(4_000_000))]


def test_connection_that_failed_keeps_no_buffer_alive() -> None:
    protocol = server()
    tracemalloc.start()
    try:
        events = protocol.receive_data(text(b"a" * 500_000 + b"\xff") + bytes(500_000))
        assert code_of(events) == 1007
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


# ----------------------------------------------------------------------------- against another implementation


def chunks(data: bytes, chooser: random.Random) -> list[bytes]:
    pieces, position = [], 0
    while position < len(data):
        size = chooser.choice((1, 2, 3, 7, 50, 1000, 70_000))
        pieces.append(data[position : position + size])
        position += size
    return pieces


def pair(role: Role, takeover: bool | None) -> tuple[WebSocketProtocol, OtherProtocol]:
    """Ours in a role and another implementation in the other; ``takeover=None`` is without compression."""
    ours = (
        None
        if takeover is None
        else PerMessageDeflate(send_takeover=takeover, receive_takeover=takeover, min_size=0)
    )
    other = OtherProtocol(OTHER_CLIENT if role is Role.SERVER else OTHER_SERVER, state=OtherState.OPEN)
    if takeover is not None:
        other.extensions = [OtherDeflate(not takeover, not takeover, 15, 15)]
    return WebSocketProtocol(role, deflate=ours, message_size=1 << 20), other


PAIRS = list(itertools.product(Role, (None, True, False)))
PAIR_NAMES = [
    f"{role.value}-{'plain' if takeover is None else f'takeover={takeover}'}" for role, takeover in PAIRS
]


@pytest.mark.parametrize(("role", "takeover"), PAIRS, ids=PAIR_NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_we_read_what_another_implementation_writes(role: Role, takeover: bool | None, seed: int) -> None:
    chooser = random.Random(seed)
    ours, other = pair(role, takeover)
    expected: list[Event] = []
    for _ in range(60):
        message = ("grüße 😀 " * chooser.randrange(400)).encode()[: chooser.randrange(3000)]
        message = message.decode(errors="ignore").encode()
        kind = chooser.randrange(4)
        if kind == 0:
            other.send_text(message)
            expected.append(TextReceived(message))
        elif kind == 1:
            other.send_binary(message)
            expected.append(BinaryReceived(message))
        elif kind == 2:
            other.send_ping(message[:125])
            expected.append(PingReceived(message[:125]))
        else:
            third = len(message) // 3
            other.send_text(message[:third], fin=False)
            other.send_continuation(message[third : 2 * third], fin=False)
            other.send_pong(b"between")
            other.send_continuation(message[2 * third :], fin=True)
            expected += [PongReceived(b"between"), TextReceived(message)]
    other.send_close(1001, "off")
    expected.append(CloseReceived(1001, "off"))
    received: list[Event] = []
    for piece in chunks(b"".join(other.data_to_send()), chooser):
        received += ours.receive_data(piece)
    assert received == expected
    other.receive_data(b"".join(ours.data_to_send()))
    assert other.parser_exc is None
    assert other.close_rcvd is not None
    assert other.close_rcvd.code == 1001


@pytest.mark.parametrize(("role", "takeover"), PAIRS, ids=PAIR_NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_another_implementation_reads_what_we_write(role: Role, takeover: bool | None, seed: int) -> None:
    chooser = random.Random(seed)
    ours, other = pair(role, takeover)
    sent: list[tuple[OtherOpcode, bytes]] = []
    stream = b""
    for size in (0, 0, 1, 125, 126, 65535, 65536, *(chooser.randrange(5000) for _ in range(20))):
        message = b"text " * (size // 5)
        stream += ours.encode_text(message) + ours.encode_binary(message) + ours.ping(message[:125])
        sent += [
            (OtherOpcode.TEXT, message),
            (OtherOpcode.BINARY, message),
            (OtherOpcode.PING, message[:125]),
        ]
    stream += ours.close(4000, "grüße")
    for piece in chunks(stream, chooser):
        other.receive_data(piece)
    events = other.events_received()
    assert all(isinstance(event, OtherFrame) for event in events)
    assert [(event.opcode, bytes(event.data)) for event in events[:-1]] == sent  # type: ignore[union-attr]
    assert other.close_rcvd is not None
    assert (other.close_rcvd.code, other.close_rcvd.reason) == (4000, "grüße")
    answers = ours.receive_data(b"".join(other.data_to_send()))
    assert answers[-1] == CloseReceived(4000, "grüße")
    assert ours.state is State.CLOSED


def test_both_ends_of_ours_agree_on_shared_compression() -> None:
    shared = encode_frame(Opcode.TEXT, compress_once(b"to all " * 100), rsv1=True)
    for _ in range(2):
        reader = client(deflate=PerMessageDeflate(receive_takeover=False))
        assert reader.receive_data(shared * 2) == [TextReceived(b"to all " * 100)] * 2


def test_failures_are_protocol_errors_that_say_what_was_wrong() -> None:
    [event] = server().receive_data(b"\x81\x00")
    assert isinstance(event, Failed)
    assert isinstance(event.error, ProtocolError)
    assert "mask" in str(event.error)
