"""Acknowledged delivery to one other node, over any number of links that come and go.

Every data frame has a sequence number, from 1 on in each direction. The receiver acknowledges all up to one of
them; what is not acknowledged is kept, up to a bound, and sent again on the next link from where the receiver says
it is. What was forgotten by then is a gap: counted here and there, and never silent.

A session is the memory two node instances have of each other. It has an epoch, a number made anew with it: each
side says its own and the peer's that it knows, so that nobody takes a peer that has started anew, or forgotten
us, for one that remembers. What TCP does for bytes on one connection this does for frames across connections.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from realtime.config import KiB, MiB
from realtime.errors import MeshError
from realtime.protocols.mesh_bodies import ExpiringBody
from realtime.protocols.mesh_frames import DataReceived, ResumeReceived, ack_frame, data_header, gap_frame, resume_frame

__all__ = ["ACK_DELAY", "Lost", "Session"]

ACK_FRAMES = 64  # received and not acknowledged
ACK_BYTES = 256 * KiB
ACK_DELAY = 0.05  # seconds
WINDOW = 4 * MiB  # sent again and not acknowledged: the rest waits, as an outbox is no larger than our buffer
_MOST = 2**53  # frames of a session, and more than any will have: gaps must not lead to numbers that no frame can carry
_FRAME_COST = 144  # bytes that a frame in the buffer counts for beside its body, as Python keeps it


@dataclass(frozen=True)
class Lost:
    """Frames that will never reach the peer: ``first`` to ``last``, of which ``fresh`` were not told before."""

    first: int
    last: int
    fresh: int


class Session:
    """One side of a session.

    :param epoch: a number above 0 that no session of ours with this peer had before.
    :param resend: bytes, and ``resend_frames`` frames, kept until they are acknowledged.
    """

    __slots__ = (
        "_ack_due",
        "_buffer",
        "_bytes",
        "_lost_to",
        "_position",
        "_resend",
        "_resend_frames",
        "_travelling",
        "_unacked_bytes",
        "_unacked_frames",
        "acknowledged",
        "epoch",
        "heard",
        "open",
        "peer_epoch",
        "received",
        "sent",
    )

    def __init__(self, epoch: int, *, resend: int, resend_frames: int) -> None:
        self.epoch = epoch
        self.peer_epoch = 0
        self.open = False
        """The peer has resumed on the present link: frames go out at once."""
        self.sent = 0
        """The highest sequence given out."""
        self.acknowledged = 0
        """The highest sequence the peer has, as far as known."""
        self.heard = 0
        """The highest sequence the peer had when it made the newest frame that has come. Less than ``acknowledged``
        while it sends frames again that it made before."""
        self.received = 0
        """The highest sequence we have of the peer's."""
        self._resend = resend
        self._resend_frames = resend_frames
        # the newest bodies, each with what was received when it was made; the last one's sequence is ``sent``
        self._buffer: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._position = 0  # the highest sequence sent on the present link, or that the peer had when it began
        self._travelling = 0  # bytes sent again and not acknowledged
        self._lost_to = 0  # the highest sequence that was told as lost
        self._unacked_frames = 0
        self._unacked_bytes = 0
        self._ack_due: float | None = None

    # Links --------------------------------------------------------------------------------------------

    def resume(self, wanted: bool) -> bytes:
        """A link started: return what is said first on it. What is sent meanwhile waits for the peer's."""
        self.open = False
        return resume_frame(self.epoch, self.peer_epoch, self.received, wanted)

    def detach(self) -> None:
        """There is no link any more."""
        self.open = False
        self._said_ack()

    def on_resume(self, event: ResumeReceived) -> Lost | None:
        """The peer told where it is: ``catch_up`` tells what to send. Return what is lost if it began anew.

        :raises MeshError: it claims what cannot be, or says it twice on one link.
        """
        if self.open:
            raise MeshError("a second resume on one link")
        if event.epoch <= 0 or event.known < 0 or event.received < 0:
            raise MeshError("a resume with a number below its range")
        lost = None
        if self.peer_epoch not in (0, event.epoch):
            lost = Lost(self.acknowledged + 1, self.sent, self.lost)
            self._start_anew()
        has = event.received if event.known == self.epoch else 0
        if has > self.sent:
            raise MeshError(f"acknowledges {has}, but only {self.sent} was sent")
        if has < self.acknowledged:
            raise MeshError(f"acknowledges {has} after {self.acknowledged}: a replay of something older")
        self.peer_epoch = event.epoch
        self._forget(has)
        self._position = has
        self._travelling = 0
        self.open = True
        return lost

    @property
    def behind(self) -> bool:
        """Whether frames wait to be sent on the present link: ``catch_up`` after the next ack."""
        return self.open and self._position < self.sent

    def catch_up(self, now: float) -> tuple[list[bytes], Lost | None]:
        """Return what is to be sent now, in order and not copied, and what was forgotten before it could be."""
        pieces: list[bytes] = []
        lost = None
        kept_from = self.sent - len(self._buffer) + 1
        if kept_from > self._position + 1:
            first, last = self._position + 1, kept_from - 1
            lost = Lost(first, last, max(0, last - max(first - 1, self._lost_to)))
            pieces.append(gap_frame(first, last - first + 1))
            self._position = self._lost_to = last
        for received, body in islice(self._buffer, self._position - kept_from + 1, None):
            if self._travelling >= WINDOW:
                break
            self._position += 1
            self._travelling += len(body) + _FRAME_COST
            if isinstance(body, ExpiringBody):
                body = body.renewed(now)
            pieces += (data_header(self._position, received, len(body)), body)
        return pieces, lost

    def _start_anew(self) -> None:
        self._buffer.clear()
        self._bytes = 0
        self.sent = self.acknowledged = self.received = self.heard = self._lost_to = self._position = 0
        self._said_ack()

    def abandon(self) -> None:
        """Keep nothing for the peer any more; the numbers go on, so that the gap can be told if it returns."""
        self._buffer.clear()
        self._bytes = 0

    # Sending -------------------------------------------------------------------------------------------

    def send(self, body: bytes) -> bytes | None:
        """Number a frame and keep it; return the header to be sent before it now, or None if it must wait."""
        self.sent = sequence = self.sent + 1
        buffer = self._buffer
        buffer.append((self.received, body))
        self._bytes += len(body) + _FRAME_COST
        while self._bytes > self._resend or len(buffer) > self._resend_frames:
            freed = len(buffer.popleft()[1]) + _FRAME_COST
            self._bytes -= freed
            self._travelling = max(0, self._travelling - freed)  # its ack frees nothing any more
        if not self.open or self._position != sequence - 1:
            return None
        self._position = sequence
        if self._unacked_frames:
            self._said_ack()
        return data_header(sequence, self.received, len(body))

    def on_ack(self, acknowledged: int) -> None:
        """The peer has everything up to ``acknowledged``.

        :raises MeshError: that was never sent, or is less than before.
        """
        if not self.open:
            raise MeshError("an ack before the resume")
        if acknowledged != self.acknowledged:
            if acknowledged > self.sent:
                raise MeshError(f"acknowledges {acknowledged}, but only {self.sent} was sent")
            if acknowledged < self.acknowledged:
                raise MeshError(f"acknowledges {acknowledged} after {self.acknowledged}: a replay of something older")
            self._forget(acknowledged)

    def _forget(self, acknowledged: int) -> None:
        """Let go of what the peer has."""
        buffer = self._buffer
        done = acknowledged - (self.sent - len(buffer))
        if done > 0:
            freed = (
                self._bytes
                if done == len(buffer)
                else sum(len(body) for _, body in islice(buffer, done)) + done * _FRAME_COST
            )
            self._bytes -= freed
            self._travelling = max(0, self._travelling - freed)
            if done == len(buffer):
                buffer.clear()
            else:
                for _ in range(done):
                    buffer.popleft()
        self.acknowledged = acknowledged

    @property
    def kept(self) -> int:
        """Bytes that wait to be acknowledged."""
        return self._bytes

    @property
    def lost(self) -> int:
        """Frames that would be lost if the session were over now, beside those told before."""
        return self.sent - max(self.acknowledged, self._lost_to)

    # Receiving -----------------------------------------------------------------------------------------

    def on_data(self, event: DataReceived, now: float) -> bool:
        """A frame came: tell whether it is new, and not one we have.

        It acknowledges what the peer had when it made it, also where it is sent again: less than its resume said.

        :raises MeshError: frames before it are missing, or it acknowledges what cannot be.
        """
        if not self.open:
            raise MeshError("a frame before the resume")
        sequence, heard = event.sequence, event.acknowledged
        if sequence != self.received + 1:
            if sequence <= 0 or sequence > self.received:
                raise MeshError(f"frame {sequence} after {self.received}: some are missing")
            return False
        if heard > self.acknowledged:
            self.on_ack(heard)
        elif heard < self.heard:
            raise MeshError(f"frame {sequence} acknowledges {heard}, the one before it {self.heard}")
        self.heard = heard
        self.received = sequence
        self._unacked_frames += 1
        self._unacked_bytes += len(event.body)
        if self._ack_due is None:
            self._ack_due = now + ACK_DELAY
        return True

    def on_gap(self, first: int, count: int) -> None:
        """The peer says that frames are lost. Raises MeshError if that does not fit what we have."""
        if not self.open:
            raise MeshError("a gap before the resume")
        if first != self.received + 1 or not 0 < count < _MOST - self.received:
            raise MeshError(f"a gap of {count} from {first} on after {self.received}")
        self.received += count

    @property
    def ack_due(self) -> float | None:
        """When what came must be acknowledged; None if nothing is."""
        return self._ack_due

    def ack(self, now: float) -> bytes | None:
        """Return an ack if it is time for one."""
        if self._ack_due is None or not self.open:
            return None
        if self._unacked_frames < ACK_FRAMES and self._unacked_bytes < ACK_BYTES and now < self._ack_due:
            return None
        self._said_ack()
        return ack_frame(self.received)

    def _said_ack(self) -> None:
        self._unacked_frames = self._unacked_bytes = 0
        self._ack_due = None
