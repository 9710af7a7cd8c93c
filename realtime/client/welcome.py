"""What a server says of itself, and of a client's session, when it welcomes the client."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from realtime.client.wire import ClientMessage
from realtime.config import Heartbeat
from realtime.errors import ConfigurationError

__all__ = ["SessionNews", "Welcome", "read_welcome"]

GRACE = 30.0  # seconds, where the server does not say it


@dataclass(frozen=True)
class SessionNews:
    """What became of the session that was asked for."""

    token: str
    """To resume it with."""
    resumed: bool
    received: int
    """Messages of ours that the server has."""
    grace: float
    """Seconds the server waits for who lost its connection."""


@dataclass(frozen=True)
class Welcome:
    """One welcome; what makes no sense in it counts as not said."""

    id: str | None
    limits: dict[str, int] | None
    heartbeat: Heartbeat | None
    session: SessionNews | None


def read_welcome(message: ClientMessage) -> Welcome:
    """Return what a welcome says."""
    told = message.payload if isinstance(message.payload, dict) else {}
    limits = told.get("limits")
    return Welcome(
        id=told.get("id"),
        limits=limits if isinstance(limits, dict) else None,
        heartbeat=_heartbeat(told.get("heartbeat")),
        session=_session(told.get("session")),
    )


def _heartbeat(told: Any) -> Heartbeat | None:
    try:
        return Heartbeat(interval=told["interval"], timeout=told["timeout"])
    except (TypeError, KeyError, ConfigurationError):
        return None


def _session(told: Any) -> SessionNews | None:
    if not isinstance(told, dict):
        return None
    token, received, grace = told.get("token"), told.get("received"), told.get("grace")
    if not isinstance(token, str) or type(received) is not int:
        return None
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not 0 < grace < math.inf:
        grace = GRACE
    return SessionNews(token, told.get("resumed") is True, received, grace)
