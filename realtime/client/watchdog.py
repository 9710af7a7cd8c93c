"""When to give a connection up: what is due by which moment. No clock of its own."""

from __future__ import annotations

from enum import Enum

from realtime.config import Heartbeat

__all__ = ["Due", "SilenceWatch"]


class Due(Enum):
    """What a silent connection calls for."""

    NOTHING = "nothing"
    PROBE = "probe"
    """Ask the server for a sign of life."""
    GIVE_UP = "give up"


class SilenceWatch:
    """Notices that nothing comes any more: the network went away without a word.

    A server with a heartbeat pings; after a silence longer than its interval and timeout it is asked for a sign of
    life, and given up if none comes within the timeout (the JavaScript client's rule).
    """

    def __init__(self, heartbeat: Heartbeat | None) -> None:
        self._heartbeat = heartbeat
        self._probed_at: float | None = None

    def look(self, now: float, heard_at: float) -> tuple[Due, float | None]:
        """Return what is due, and the seconds until to look again; None for never.

        :param heard_at: when bytes came last.
        """
        beat = self._heartbeat
        if beat is None:
            return Due.NOTHING, None
        if self._probed_at is not None and heard_at >= self._probed_at:
            self._probed_at = None
        if self._probed_at is not None:
            left = self._probed_at + beat.timeout - now
            return (Due.NOTHING, left) if left > 0 else (Due.GIVE_UP, None)
        left = heard_at + beat.interval + beat.timeout - now
        if left > 0:
            return Due.NOTHING, left
        self._probed_at = now
        return Due.PROBE, beat.timeout
