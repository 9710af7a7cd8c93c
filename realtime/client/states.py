"""Where a Client is with its connection, and why one ended."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from realtime.codes import CloseCode, may_reconnect
from realtime.errors import ConfigurationError, ConnectionClosed, HandshakeError, RealtimeError

__all__ = ["NOT_YET", "ClientState", "Ended"]

_LONGEST_RETRY_AFTER = 3600.0
_RETRY_AFTER = re.compile(r"(?:^|\W)retry_after=(\d+(?:\.\d+)?)")
_PASSING = (408, 425, 429)  # what HTTP says 4xx with although it may go better later


class ClientState(str, Enum):
    """Where a Client is with its connection."""

    CONNECTING = "connecting"
    OPEN = "open"
    """The server has welcomed it."""
    WAITING = "waiting"
    """Until the next attempt."""
    CLOSED = "closed"
    """For good, or never connected."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Ended:
    """Why a connection, or the attempt at one, is over."""

    code: int
    reason: str
    cause: Exception | None = None

    def error(self) -> RealtimeError:
        """Return what to raise for it, a new one each time."""
        if isinstance(self.cause, HandshakeError):
            return HandshakeError(self.cause.status, self.cause.message, self.cause.headers)
        if isinstance(self.cause, ConfigurationError):
            return ConfigurationError(str(self.cause))
        closed = ConnectionClosed(self.code, self.reason)
        closed.__cause__ = self.cause
        return closed

    @property
    def may_pass(self) -> bool:
        """Whether it makes sense to come back."""
        if isinstance(self.cause, HandshakeError):
            return self.cause.status >= 500 or self.cause.status in _PASSING
        return may_reconnect(self.code) and not isinstance(self.cause, ConfigurationError)

    @property
    def retry_after(self) -> float | None:
        """The seconds that a draining server asks to wait, as in ``retry_after=2.5``."""
        found = _RETRY_AFTER.search(self.reason) if self.code == CloseCode.DRAINING else None
        return min(float(found[1]), _LONGEST_RETRY_AFTER) if found else None


NOT_YET = Ended(CloseCode.ABNORMAL, "not connected: call connect() first")
