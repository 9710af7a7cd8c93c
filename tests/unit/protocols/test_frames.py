"""Frames as bytes: RFC 6455 sections 5.2, 5.3, 5.5.1 and 5.7."""

from __future__ import annotations

import os

import pytest
from websockets.frames import Frame as OtherFrame
from websockets.frames import Opcode as OtherOpcode

from realtime.errors import FrameError, PayloadNotUtf8
from realtime.protocols.frames import (
    Opcode,
    apply_mask,
    binary_frame,
    encode_frame,
    parse_close,
    render_close,
    text_frame,
)

KEY = bytes.fromhex("37fa213d")

RFC_5_7 = [
    ("unmasked text", encode_frame(Opcode.TEXT, b"Hello"), "810548656c6c6f"),
    ("masked text", encode_frame(Opcode.TEXT, b"Hello", mask=KEY), "818537fa213d7f9f4d5158"),
    ("first fragment", encode_frame(Opcode.TEXT, b"Hel", fin=False), "010348656c"),
    ("last fragment", encode_frame(Opcode.CONTINUATION, b"lo"), "80026c6f"),
    ("unmasked ping", encode_frame(Opcode.PING, b"Hello"), "890548656c6c6f"),
    ("masked pong", encode_frame(Opcode.PONG, b"Hello", mask=KEY), "8a8537fa213d7f9f4d5158"),
    ("256 bytes", encode_frame(Opcode.BINARY, bytes(256)), "827e0100" + "00" * 256),
    ("64 KiB", encode_frame(Opcode.BINARY, bytes(65536)), "827f0000000000010000" + "00" * 65536),
]


@pytest.mark.parametrize(
    ("written", "expected"), [case[1:] for case in RFC_5_7], ids=[case[0] for case in RFC_5_7]
)
def test_examples_of_section_5_7(written: bytes, expected: str) -> None:
    assert written == bytes.fromhex(expected)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
@pytest.mark.parametrize("mask", [None, KEY], ids=["unmasked", "masked"])
def test_length_takes_as_few_bytes_as_possible(length: int, mask: bytes | None) -> None:
    frame = encode_frame(Opcode.TEXT, bytes(length), mask=mask)
    extended = 0 if length < 126 else 2 if length < 65536 else 8
    assert len(frame) == 2 + extended + (4 if mask else 0) + length


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536, 100_000])
def test_shortcuts_write_what_encode_frame_writes(length: int) -> None:
    payload = os.urandom(length)
    assert text_frame(payload) == encode_frame(Opcode.TEXT, payload)
    assert binary_frame(payload) == encode_frame(Opcode.BINARY, payload)


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("length", [0, 5, 126, 70_000])
def test_frames_equal_those_of_another_implementation(fin: bool, length: int) -> None:
    payload = os.urandom(length)
    other = OtherFrame(OtherOpcode.BINARY, payload, fin=fin)
    assert encode_frame(Opcode.BINARY, payload, fin=fin) == other.serialize(mask=False)


def test_rsv1_marks_a_compressed_message() -> None:
    assert encode_frame(Opcode.TEXT, b"", rsv1=True) == b"\xc1\x00"


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 1000, 16_383, 16_384, 16_385, 50_001])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 7])
def test_masking_equals_the_definition(length: int, offset: int) -> None:
    data = os.urandom(length)
    expected = bytes(octet ^ KEY[(offset + i) % 4] for i, octet in enumerate(data))  # section 5.3
    assert apply_mask(data, KEY, offset) == expected
    assert apply_mask(expected, KEY, offset) == data


def test_masking_piece_by_piece_equals_masking_at_once() -> None:
    data = os.urandom(40_000)
    pieces, position = [], 0
    for size in (1, 2, 3, 20_001, 5, 17_000, 40_000):
        pieces.append(apply_mask(data[position : position + size], KEY, position))
        position += size
    assert b"".join(pieces) == apply_mask(data, KEY)


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999])
def test_close_payload_round_trip(code: int) -> None:
    assert parse_close(render_close(code, "grüße")) == (code, "grüße")


def test_empty_close_payload_means_no_status() -> None:
    assert render_close(None, "") == b""
    assert parse_close(b"") == (1005, "")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_close_codes_that_must_not_be_sent(code: int) -> None:
    with pytest.raises(FrameError):
        parse_close(code.to_bytes(2, "big"))
    with pytest.raises(ValueError, match=str(code)):
        render_close(code, "")


def test_close_payload_of_one_byte_is_half_a_code() -> None:
    with pytest.raises(FrameError):
        parse_close(b"\x03")


def test_close_reason_must_be_utf8() -> None:
    with pytest.raises(PayloadNotUtf8):
        parse_close(b"\x03\xe8\xff")


def test_close_reason_is_bounded_in_bytes_not_characters() -> None:
    assert len(render_close(1000, "x" * 123)) == 125
    with pytest.raises(ValueError, match="123"):
        render_close(1000, "x" * 124)
    with pytest.raises(ValueError, match="123"):
        render_close(1000, "ä" * 62)


def test_close_reason_needs_a_code() -> None:
    with pytest.raises(ValueError, match="without a code"):
        render_close(None, "why")
