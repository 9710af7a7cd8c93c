"""What outlives a Client's connection: one session of the server's, as this end counts and keeps it.

Both ends count what they get and keep what they sent until the other has said that it came. On the next connection
each goes on after what the other one has. State only: no sockets, no threads; the client's lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from realtime.client.welcome import SessionNews
from realtime.config import KiB, MiB

__all__ = ["Continuity"]

KEPT = 1000  # messages sent and not confirmed
KEPT_BYTES = 1 * MiB
CONFIRM = 64  # messages received until the server is told so
CONFIRM_BYTES = 64 * KiB


class Continuity:
    """From the welcome that began a session, over the connections that carry it, until it is lost.

    :param news: what that welcome said; None where the server offers no session: then nothing is counted or kept.
    """

    def __init__(self, news: SessionNews | None = None) -> None:
        self._news = news
        self._received = 0
        self._confirmed = 0
        self._unconfirmed_bytes = 0
        self._sent: deque[bytes] = deque()
        self._sent_bytes = 0
        self._sent_before = 0  # messages that are not kept: confirmed, or too many
        self.deadline: float | None = None
        """When the server gives it up, on the caller's clock; None while a connection carries it."""

    @property
    def lasts(self) -> bool:
        """Whether it may go on with another connection."""
        return self._news is not None

    def end(self) -> None:
        """It is lost: keep nothing more."""
        self._news = None
        self._sent.clear()
        self._sent_bytes = 0

    def wish(self) -> Any:
        """Return what a hello says, to go on with this, or to begin one."""
        return True if self._news is None else {"token": self._news.token, "received": self._received}

    # Connections -----------------------------------------------------------------------------------------

    def detach(self, now: float) -> None:
        """The connection is lost."""
        if self._news is not None:
            self.deadline = now + self._news.grace

    def resume(self, news: SessionNews) -> bool:
        """The server goes on; False if it needs what is no longer kept, or never was sent."""
        if self._news is None or not self.confirm(news.received):
            return False
        self._news = news
        self.deadline = None
        return True

    # What is sent ----------------------------------------------------------------------------------------

    def sending(self, data: bytes) -> None:
        """A message goes out. The oldest are let go where too many are kept."""
        if self._news is None:
            return
        self._sent.append(data)
        self._sent_bytes += len(data)
        while len(self._sent) > KEPT or self._sent_bytes > KEPT_BYTES:
            self._forget_first()

    def unsent(self, data: bytes) -> None:
        """What went out last did not: it does not count."""
        if self._sent and self._sent[-1] is data:
            self._sent_bytes -= len(self._sent.pop())
        elif self._news is not None:
            self._sent_before -= 1  # too large to be kept

    def confirm(self, count: object) -> bool:
        """The server has so many messages; False if it cannot, or needs some that are no longer kept."""
        if type(count) is not int or not self._sent_before <= count <= self._sent_before + len(self._sent):
            return False
        while self._sent_before < count:
            self._forget_first()
        return True

    def unconfirmed(self) -> Sequence[bytes]:
        """Return what the server has not said to have, in order."""
        return tuple(self._sent)

    def _forget_first(self) -> None:
        self._sent_bytes -= len(self._sent.popleft())
        self._sent_before += 1

    # What is received ------------------------------------------------------------------------------------

    def received(self, size: int) -> bool:
        """A message came; return whether it is time to say so."""
        if self._news is None:
            return False
        self._received += 1
        self._unconfirmed_bytes += size
        return self._received - self._confirmed >= CONFIRM or self._unconfirmed_bytes >= CONFIRM_BYTES

    def confirmation(self) -> dict[str, int]:
        """Return the payload that says what came."""
        self._confirmed = self._received
        self._unconfirmed_bytes = 0
        return {"count": self._received}
