"""Candidates that wait for the description they belong to, or for their receiver.

State only: no sockets, no greenlets; the clock comes as ``now``, in seconds of any origin.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Held", "HeldCandidates"]


@dataclass(slots=True, eq=False)
class Held:
    """A candidate that waits; ``message`` is what will go out."""

    sender: str
    target: str
    negotiation: str | None
    message: dict[str, Any]
    ack: str | int | None
    until: float


class HeldCandidates:
    """They wait in line from each sender to each receiver, in the order they came.

    :param most: that wait from one sender for one receiver.
    :param most_by_sender: of one sender that wait.
    :param hold: seconds that each waits.
    """

    def __init__(self, *, most: int, most_by_sender: int, hold: float) -> None:
        self._most = most
        self._most_by_sender = most_by_sender
        self._hold = hold
        self._lines: dict[str, dict[str, deque[Held]]] = {}  # by sender, and then by target
        self._counts: dict[str, int] = {}  # of each sender
        self._senders: dict[str, dict[str, None]] = {}  # by target
        self._queue: OrderedDict[Held, None] = OrderedDict()  # everything that waits, the oldest first
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def can_hold(self, sender: str, target: str) -> bool:
        """Tell whether one more candidate may wait."""
        return len(self.line(sender, target)) < self._most and self._counts.get(sender, 0) < self._most_by_sender

    def hold(
        self,
        sender: str,
        target: str,
        negotiation: str | None,
        message: dict[str, Any],
        ack: str | int | None,
        now: float,
    ) -> Held:
        """Let a candidate wait; ask ``can_hold`` first."""
        held = Held(sender, target, negotiation, message, ack, now + self._hold)
        self._lines.setdefault(sender, {}).setdefault(target, deque()).append(held)
        self._counts[sender] = self._counts.get(sender, 0) + 1
        self._senders.setdefault(target, {})[sender] = None
        self._queue[held] = None
        return held

    def line(self, sender: str, target: str) -> Collection[Held]:
        """Return what waits from a sender for a receiver."""
        return self._lines.get(sender, {}).get(target, ())

    def targets(self, sender: str) -> Collection[str]:
        """Return whom candidates of a sender wait for."""
        return self._lines.get(sender, {}).keys()

    def senders(self) -> Collection[str]:
        """Return whose candidates wait."""
        return self._lines.keys()

    def senders_to(self, target: str) -> Collection[str]:
        """Return whose candidates wait for a receiver."""
        return self._senders.get(target, {}).keys()

    def take(self, several: Iterable[Held]) -> None:
        """These wait no more."""
        for held in several:
            sender, target = held.sender, held.target
            del self._queue[held]
            line = self._lines[sender][target]
            line.remove(held)
            self._counts[sender] -= 1
            if not line:
                self._forget_line(sender, target)

    def _forget_line(self, sender: str, target: str) -> None:
        lines, senders = self._lines[sender], self._senders[target]
        del lines[target], senders[sender]
        if not lines:
            del self._lines[sender], self._counts[sender]
        if not senders:
            del self._senders[target]

    def drop(self, sender: str) -> None:
        """A sender has gone: its candidates are dropped, and counted."""
        dropped = [held for line in self._lines.get(sender, {}).values() for held in line]
        self.dropped += len(dropped)
        self.take(dropped)

    def redirect(self, old: str, new: str) -> None:
        """What waits for ``old`` waits for ``new``, before what does so already."""
        for sender in self._senders.pop(old, {}):
            lines = self._lines[sender]
            line = lines.pop(old)
            for held in line:
                held.target = new
                if "target" in held.message["payload"]:
                    held.message["payload"]["target"] = new
            lines[new] = line + lines.get(new, deque())
            self._senders.setdefault(new, {})[sender] = None

    def next_end(self) -> float | None:
        """Return when the next one has waited long enough; None if none waits."""
        return next(iter(self._queue)).until if self._queue else None

    def expire(self, now: float, most: int) -> list[Held]:
        """Take out those that waited in vain, ``most`` at a time."""
        expired: list[Held] = []
        for held in self._queue:
            if held.until > now or len(expired) == most:
                break
            expired.append(held)
        self.take(expired)
        return expired

    def clear(self) -> None:
        """Forget everything."""
        for container in (self._lines, self._counts, self._senders, self._queue):
            container.clear()
