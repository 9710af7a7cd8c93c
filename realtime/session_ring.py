"""What was sent to a client and is not known to have arrived: kept in order, so that it can be sent again.

State only: no sockets, no clock, no greenlets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from realtime.delivery import Perishable

__all__ = ["Ring"]

SMALLEST = 64  # bytes a frame counts for at least where frames are counted: what the object itself takes


class Ring:
    """Finished frames, shared with everybody else who was sent them. Both sides count the messages alike.

    :param bound: bytes that may be kept of what has been written; the oldest beyond it are forgotten.
    """

    __slots__ = ("_bound", "_most", "first", "frames", "size")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._most = max(1, bound // SMALLEST)
        self.frames: deque[bytes] = deque()
        self.first = 0
        """Messages before the first that is here: confirmed, or forgotten."""
        self.size = 0

    @property
    def count(self) -> int:
        """Messages so far."""
        return self.first + len(self.frames)

    def add(self, frame: bytes) -> bool:
        """Keep one more; return whether it is time to ``trim``."""
        self.frames.append(frame)
        self.size += len(frame)
        return self.size > self._bound or len(self.frames) > self._most

    def trim(self, unwritten: int, waiting: int) -> None:
        """Forget the oldest that are too many; of the last ``waiting`` frames, ``unwritten`` bytes, none.

        A client that says in time what it has never loses one to this.
        """
        frames = self.frames
        while len(frames) > waiting and (
            self.size - unwritten > self._bound or len(frames) - waiting > self._most
        ):
            self._forget_first()

    def _forget_first(self) -> None:
        self.size -= len(self.frames.popleft())
        self.first += 1

    def remove(self, frame: bytes) -> None:
        """One that was not written never will be: it does not count. The newest first, where it is here twice."""
        frames = self.frames
        for index in range(len(frames) - 1, -1, -1):
            if frames[index] is frame:
                del frames[index]
                self.size -= len(frame)
                return

    def confirm(self, count: int) -> bool:
        """The client has the first ``count`` messages; False if so many were never sent."""
        if count > self.count:
            return False
        while self.first < count:
            self._forget_first()
        return True

    def drop_expired(self, now: float) -> int:
        """Forget those that are of no use any more: they do not count, as nobody was sent them; return how many.

        For what the client has said that it does not have.

        :param now: seconds of ``time.monotonic()``.
        """
        before = len(self.frames)
        self.replace([frame for frame in self.frames if not _has_expired(frame, now)])
        return before - len(self.frames)

    def clear(self) -> None:
        """Keep none of them any longer."""
        self.first = self.count
        self.frames.clear()
        self.size = 0

    def replace(self, frames: Collection[bytes]) -> None:
        """Keep the same messages as other frames."""
        if frames is not self.frames:
            self.frames = deque(frames)
            self.size = sum(map(len, frames))


def _has_expired(frame: bytes, now: float) -> bool:
    return isinstance(frame, Perishable) and frame.expires is not None and now >= frame.expires
