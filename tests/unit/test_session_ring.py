"""What is kept of a session's messages: against a plain list of all that were ever sent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from realtime.delivery import Delivery, Perishable
from realtime.message import JSON, MSGPACK, Wire
from realtime.protocols.deflate import compress_once, inflate_once
from realtime.protocols.frames import binary_frame, payload_of, text_frame
from realtime.session_ring import Ring
from realtime.session_wire import changed

BOUND = 1000


class RingModel(RuleBasedStateMachine):
    """Messages are put, written, dropped before they are written, confirmed, and lost with a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(BOUND)
        self.sent: list[bytes] = []  # all that count
        self.written = 0
        self.confirmed = 0

    @property
    def unwritten(self) -> int:
        return sum(map(len, self.sent[self.written :]))

    @rule(size=st.integers(1, 400))
    def put(self, size: int) -> None:
        frame = bytes([len(self.sent) % 256]) * size
        self.sent.append(frame)
        if self.ring.add(frame):
            self.ring.trim(self.unwritten, len(self.sent) - self.written)

    @rule(share=st.floats(0, 1))
    def write(self, share: float) -> None:
        self.written += round((len(self.sent) - self.written) * share)

    @precondition(lambda self: self.written < len(self.sent))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(self.written, len(self.sent) - 1))
        self.ring.remove(self.sent.pop(index))

    @rule(share=st.floats(0, 1))
    def confirm(self, share: float) -> None:
        self.confirmed += round((self.written - self.confirmed) * share)
        assert self.ring.confirm(self.confirmed)

    @rule(excess=st.integers(1, 5))
    def confirm_what_was_not_sent(self, excess: int) -> None:
        assert not self.ring.confirm(len(self.sent) + excess)

    @invariant()
    def holds_the_end_of_what_was_sent(self) -> None:
        ring = self.ring
        assert ring.count == len(self.sent)
        assert list(ring.frames) == self.sent[ring.first :]
        assert ring.size == sum(map(len, ring.frames))
        assert self.confirmed <= ring.first <= self.written

    @invariant()
    def forgets_no_more_than_it_must(self) -> None:
        unconfirmed = sum(map(len, self.sent[self.confirmed : self.written]))
        if unconfirmed <= BOUND and self.written - self.confirmed <= BOUND // 64 and not self._has_forgotten:
            assert self.ring.first == self.confirmed
        self._has_forgotten = self.ring.first > self.confirmed

    _has_forgotten = False


TestRing = RingModel.TestCase


def test_small_messages_that_wait_push_out_none_that_were_written() -> None:
    ring = Ring(BOUND)
    most = BOUND // 64
    for written in range(2 * most):
        if ring.add(b"x"):
            ring.trim(max(0, written + 1 - most), max(0, written + 1 - most))
    assert (ring.first, ring.count) == (0, 2 * most)


@given(st.integers(0, 200_000), st.booleans())
def test_frames_give_their_payload_back(size: int, binary: bool) -> None:
    payload = b"x" * size
    assert payload_of(binary_frame(payload) if binary else text_frame(payload)) == payload


@given(st.binary(max_size=5000), st.sampled_from([9, 15]))
def test_what_was_compressed_once_is_inflated(payload: bytes, window_bits: int) -> None:
    assert inflate_once(compress_once(payload, window_bits=window_bits)) == payload


def test_a_frame_of_another_codec_keeps_every_key_and_its_policy() -> None:
    text, binary = Wire(JSON, text_frame, payload_of), Wire(MSGPACK, binary_frame, payload_of)
    frame = Perishable(text_frame(b'{"type":"price","payload":{"a":[1,null]},"timestamp":5,"cursor":"c"}'))
    frame.delivery, frame.expires = Delivery(conflate="EUR"), 7.0
    there = changed(frame, text, binary)
    assert isinstance(there, Perishable)
    assert (there.delivery.conflate, there.expires) == ("EUR", 7.0)
    back = changed(there, binary, text)
    assert back == frame
