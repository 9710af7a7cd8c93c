"""permessage-deflate: RFC 7692's own byte vectors, every legal and illegal parameter, bounds."""

from __future__ import annotations

import os
import zlib

import pytest
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate as OtherDeflate,
)
from websockets.frames import Frame as OtherFrame
from websockets.frames import Opcode as OtherOpcode
from websockets.headers import build_extension, parse_extension

from realtime.errors import ConfigurationError, FrameError
from realtime.protocols.deflate import (
    DeflateOptions,
    PerMessageDeflate,
    accept_offer,
    accept_response,
    compress_once,
    make_offer,
    parse_extensions,
)

ROOM = 1_000_000
BOUNDED = DeflateOptions(server_max_window_bits=10, client_max_window_bits=11)
WITHOUT_TAKEOVER = DeflateOptions(server_no_context_takeover=True, client_no_context_takeover=True)


def inflate(deflate: PerMessageDeflate, payload: bytes, room: int = ROOM) -> bytes:
    head = deflate.inflate(payload, room)
    return head + deflate.finish(room - len(head))


RFC_7_2_3 = [
    ("7.2.3.1 one block", "f248cdc9c90700", b"Hello"),
    ("7.2.3.3 a block without compression", "000500faff48656c6c6f00", b"Hello"),
    ("7.2.3.4 a final block", "f348cdc9c9070000", b"Hello"),
    ("7.2.3.5 two blocks", "f248050000 00ffffcac9c90700", b"Hello"),
    ("7.2.3.6 an empty message", "00", b""),
    ("a final block without the octet after it", "f348cdc9c90700", b"Hello"),
    ("two final blocks", "f348cdc9c90700f348cdc9c9070000", b"HelloHello"),
]


RFC_7_2_3_NAMES = [case[0] for case in RFC_7_2_3]


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in RFC_7_2_3], ids=RFC_7_2_3_NAMES)
@pytest.mark.parametrize("takeover", [True, False])
def test_examples_of_section_7_2_3(data: str, message: bytes, takeover: bool) -> None:
    payload = bytes.fromhex(data)
    deflate = PerMessageDeflate(receive_takeover=takeover)
    assert inflate(deflate, payload) == message
    assert inflate(deflate, payload) == message
    bytewise = b"".join(deflate.inflate(payload[i : i + 1], ROOM) for i in range(len(payload)))
    assert bytewise + deflate.finish(ROOM) == message


def test_section_7_2_3_2_sharing_the_window() -> None:
    deflate = PerMessageDeflate()
    first, second = bytes.fromhex("f248cdc9c90700"), bytes.fromhex("f200110000")
    assert [inflate(deflate, first), inflate(deflate, second)] == [b"Hello", b"Hello"]
    assert [deflate.compress(b"Hello"), deflate.compress(b"Hello")] == [first, second]


def test_without_takeover_each_message_stands_alone() -> None:
    deflate = PerMessageDeflate(send_takeover=False, receive_takeover=False)
    assert deflate.compress(b"Hello") == deflate.compress(b"Hello") == compress_once(b"Hello")
    inflate(deflate, bytes.fromhex("f248cdc9c90700"))
    with pytest.raises(FrameError):
        inflate(deflate, bytes.fromhex("f200110000"))


@pytest.mark.parametrize("takeover", [True, False])
def test_empty_messages_in_a_row(takeover: bool) -> None:
    sender, receiver = PerMessageDeflate(send_takeover=takeover), PerMessageDeflate(receive_takeover=takeover)
    for message in (b"", b"", b"x", b"", b"", b"y" * 300):
        assert inflate(receiver, sender.compress(message)) == message


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xff\xff", b"garbage", bytes.fromhex("f348cdc9c90700") + b"trailing garbage", b""],
    ids=["reserved block type", "text", "after a final block", "nothing at all"],
)
def test_what_is_no_deflate_stream_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        inflate(PerMessageDeflate(), payload)


@pytest.mark.parametrize("takeover", [True, False])
def test_message_cut_off_within_a_block_is_refused(takeover: bool) -> None:
    whole = compress_once(bytes(range(256)) * 4)
    for end in range(len(whole) - 1):
        with pytest.raises(FrameError):
            inflate(PerMessageDeflate(receive_takeover=takeover), whole[:end])


def test_inflating_stops_one_byte_past_the_room() -> None:
    bomb = compress_once(bytes(50_000_000))
    assert len(bomb) < 60_000
    assert len(PerMessageDeflate().inflate(bomb, 1000)) == 1001


def test_message_that_fills_the_room_exactly_passes() -> None:
    message = os.urandom(5000)
    assert inflate(PerMessageDeflate(), compress_once(message), 5000) == message
    assert len(inflate(PerMessageDeflate(), compress_once(message), 4999)) == 5000


def test_number_of_final_blocks_is_bounded() -> None:
    with pytest.raises(FrameError, match="final"):
        inflate(PerMessageDeflate(), b"\x03\x00" * 100_000)


def test_window_of_eight_bits_is_read_but_never_written() -> None:
    deflate = PerMessageDeflate(send_window_bits=8, receive_window_bits=8)
    assert deflate.min_size > 1 << 60
    message = os.urandom(240) * 8  # zlib refers back 262 bytes less than its window
    compressed = compress_once(message, window_bits=9)
    assert len(compressed) < 500
    pieces = [deflate.inflate(compressed[i : i + 1], ROOM) for i in range(len(compressed))]
    assert b"".join(pieces) + deflate.finish(ROOM) == message


# ---------------------------------------------------------------------------------------------- negotiation

D = "permessage-deflate"
SERVER = [
    # offered, our options, answered
    (D, DeflateOptions(), D),
    (f"{D}; client_max_window_bits", DeflateOptions(), D),
    (f"{D}; client_max_window_bits", BOUNDED, f"{D}; server_max_window_bits=10; client_max_window_bits=11"),
    (
        f"{D}; client_max_window_bits=10",
        BOUNDED,
        f"{D}; server_max_window_bits=10; client_max_window_bits=10",
    ),
    (f"{D}; client_max_window_bits=8", DeflateOptions(), f"{D}; client_max_window_bits=8"),
    (D, BOUNDED, f"{D}; server_max_window_bits=10"),
    (f"{D}; server_max_window_bits=9", BOUNDED, f"{D}; server_max_window_bits=9"),
    (f"{D}; server_max_window_bits=12", BOUNDED, f"{D}; server_max_window_bits=10"),
    (f"{D}; server_max_window_bits=15", DeflateOptions(), f"{D}; server_max_window_bits=15"),
    (f'{D}; server_max_window_bits="12"', DeflateOptions(), f"{D}; server_max_window_bits=12"),
    (f"{D}; server_no_context_takeover", DeflateOptions(), f"{D}; server_no_context_takeover"),
    (f"{D}; client_no_context_takeover", DeflateOptions(), f"{D}; client_no_context_takeover"),
    (D, WITHOUT_TAKEOVER, f"{D}; server_no_context_takeover; client_no_context_takeover"),
    (f"x-other; a=1, {D}", DeflateOptions(), D),
    (f"{D}; server_max_window_bits=8, {D}", DeflateOptions(), D),
    (f"{D}; unknown, {D}; server_no_context_takeover", DeflateOptions(), f"{D}; server_no_context_takeover"),
    # declined
    ("x-webkit-deflate-frame", DeflateOptions(), None),
    (f"{D}; server_max_window_bits=8", DeflateOptions(), None),
    (f"{D}; server_max_window_bits", DeflateOptions(), None),
    (f"{D}; server_max_window_bits=7", DeflateOptions(), None),
    (f"{D}; server_max_window_bits=16", DeflateOptions(), None),
    (f"{D}; server_max_window_bits=010", DeflateOptions(), None),
    (f"{D}; client_max_window_bits=16", DeflateOptions(), None),
    (f"{D}; client_max_window_bits=x", DeflateOptions(), None),
    (f"{D}; server_no_context_takeover=1", DeflateOptions(), None),
    (f"{D}; client_no_context_takeover=true", DeflateOptions(), None),
    (f"{D}; server_no_context_takeover; server_no_context_takeover", DeflateOptions(), None),
    (f"{D}; client_max_window_bits; client_max_window_bits=10", DeflateOptions(), None),
    (f"{D}; level=9", DeflateOptions(), None),
]


SERVER_NAMES = [f"{number} {case[0]}" for number, case in enumerate(SERVER)]


@pytest.mark.parametrize(("offer", "options", "answer"), SERVER, ids=SERVER_NAMES)
def test_server_agrees_to_the_first_offer_it_can(
    offer: str, options: DeflateOptions, answer: str | None
) -> None:
    agreed = accept_offer(offer, options)
    assert (agreed and agreed[1]) == answer
    if agreed:
        assert agreed[0].send_takeover == ("server_no_context_takeover" not in agreed[1])
        assert agreed[0].receive_takeover == ("client_no_context_takeover" not in agreed[1])


UNGRAMMATICAL = ["", ",", ";", D + ";", f"{D}; =1", f"{D}=1", f'{D}; a="', "a b", f"{D}; a=\x7f"]


@pytest.mark.parametrize("header", UNGRAMMATICAL)
def test_header_outside_the_grammar_is_no_offer(header: str) -> None:
    with pytest.raises(ValueError, match="extension"):
        accept_offer(header, DeflateOptions())


def test_quoted_values_are_unescaped() -> None:
    parsed = parse_extensions('a; b="c\\d" ; e , f;g=h')
    assert parsed == [("a", [("b", "cd"), ("e", None)]), ("f", [("g", "h")])]


CLIENT_REFUSES = [
    (DeflateOptions(), "x-other"),
    (DeflateOptions(), f"{D}, {D}"),
    (DeflateOptions(), f"{D}; unknown"),
    (DeflateOptions(), f"{D}; client_max_window_bits"),
    (DeflateOptions(), f"{D}; server_max_window_bits=16"),
    (DeflateOptions(), f"{D}; server_no_context_takeover; server_no_context_takeover"),
    (WITHOUT_TAKEOVER, D),
    (BOUNDED, D),
    (BOUNDED, f"{D}; server_max_window_bits=11"),
    (BOUNDED, f"{D}; server_max_window_bits=10; client_max_window_bits=12"),
    (DeflateOptions(), f"{D};"),
]


@pytest.mark.parametrize(("options", "answer"), CLIENT_REFUSES, ids=[case[1] for case in CLIENT_REFUSES])
def test_client_refuses_an_answer_that_does_not_fit_its_offer(options: DeflateOptions, answer: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        accept_response(answer, options)


def test_client_accepts_what_the_server_may_add() -> None:
    deflate = accept_response(
        f"{D}; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=9; "
        "client_max_window_bits=12",
        DeflateOptions(),
    )
    assert not deflate.send_takeover
    assert not deflate.receive_takeover
    assert (deflate.send_window_bits, deflate.receive_window_bits) == (12, 9)


def test_client_told_to_use_a_window_zlib_cannot_write_sends_uncompressed() -> None:
    assert accept_response(f"{D}; client_max_window_bits=8", DeflateOptions()).min_size > 1 << 60


@pytest.mark.parametrize(
    "options",
    [
        {"server_max_window_bits": 8},
        {"server_max_window_bits": 16},
        {"client_max_window_bits": 8},
        {"client_max_window_bits": True},
        {"level": 10},
        {"memory_level": 0},
        {"min_size": -1},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused_where_they_are_written(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        DeflateOptions(**options)  # type: ignore[arg-type]


# -------------------------------------------------------------------------- against another implementation

COMBINATIONS = [
    DeflateOptions(
        server_no_context_takeover=server,
        client_no_context_takeover=client,
        server_max_window_bits=a,
        client_max_window_bits=b,
        min_size=0,
    )
    for server in (False, True)
    for client in (False, True)
    for a, b in ((15, 15), (9, 12), (12, 9))
]


def exchange(ours: PerMessageDeflate, other: OtherDeflate) -> None:
    """Send messages both ways that make use of the window, and compare."""
    for number in range(20):
        message = b"%d and some text that repeats itself, " % number * (1 + number * 50) + os.urandom(number)
        compressed = ours.compress(message)
        assert other.decode(OtherFrame(OtherOpcode.TEXT, compressed, rsv1=True)).data == message
        frame = other.encode(OtherFrame(OtherOpcode.TEXT, message))
        assert inflate(ours, bytes(frame.data)) == message


@pytest.mark.parametrize("options", COMBINATIONS, ids=make_offer)
def test_our_server_with_another_client(options: DeflateOptions) -> None:
    client = ClientPerMessageDeflateFactory(client_max_window_bits=True)
    offer = build_extension([(client.name, client.get_request_params())])
    agreed = accept_offer(offer, options)
    assert agreed is not None
    [(_, parameters)] = parse_extension(agreed[1])
    other = client.process_response_params(parameters, [])
    assert isinstance(other, OtherDeflate)
    exchange(agreed[0], other)


@pytest.mark.parametrize("options", COMBINATIONS, ids=make_offer)
def test_our_client_with_another_server(options: DeflateOptions) -> None:
    [(_, parameters)] = parse_extension(make_offer(options))
    server = ServerPerMessageDeflateFactory()
    answer, other = server.process_request_params(parameters, [])
    assert isinstance(other, OtherDeflate)
    exchange(accept_response(build_extension([(server.name, answer)]), options), other)


def test_one_compressed_payload_serves_receivers_that_have_seen_different_messages() -> None:
    shared = compress_once(b"to everyone " * 100)
    for before in (b"", b"alone", os.urandom(5000)):
        receiver = PerMessageDeflate(receive_takeover=True)
        inflate(receiver, compress_once(before))
        assert inflate(receiver, shared) == b"to everyone " * 100


def test_compressed_payload_ends_without_the_tail() -> None:
    compressed = compress_once(b"some text")
    assert zlib.decompressobj(-15).decompress(compressed + b"\x00\x00\xff\xff") == b"some text"
    assert not compressed.endswith(b"\x00\x00\xff\xff")
