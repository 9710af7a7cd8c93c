"""What one client has described to another, or to a room: the latest negotiations, and those they took the place of."""

from __future__ import annotations

__all__ = ["Told"]

MOST_CALLS = 8  # in which one pair of clients negotiates at once, each for itself
MOST_PAST = 8  # superseded negotiations of a pair that are known as such


class Told:
    """What one client described to another, or to a room. ``where``: the room it named beside the target."""

    __slots__ = ("answers", "at", "offers", "past", "receivers")

    def __init__(self) -> None:
        self.offers: dict[str | None, str | None] = {}  # where -> the latest offer's negotiation
        self.answers: dict[str | None, str | None] = {}
        self.past: tuple[str, ...] = ()
        self.at = 0.0
        self.receivers: frozenset[str] = frozenset()
        """Of what was described to a room: who was in it then."""

    def add(self, kind: str, where: str | None, negotiation: str | None) -> None:
        """An offer or answer of a negotiation was described."""
        latest = self.offers if kind == "offer" else self.answers
        self._supersede(latest.pop(where, None), negotiation)
        latest[where] = negotiation
        if len(latest) > MOST_CALLS:
            self._supersede(latest.pop(next(iter(latest))), negotiation)

    def end(self, where: str) -> None:
        """What was described in a room is over."""
        for latest in (self.offers, self.answers):
            self._supersede(latest.pop(where, None), None)

    def _supersede(self, old: str | None, new: str | None) -> None:
        if new in self.past:  # it is used again
            self.past = tuple(one for one in self.past if one != new)
        if old is not None and old != new:
            self.past = (*self.past[1 - MOST_PAST :], old)

    def is_current(self, negotiation: str) -> bool:
        """Tell whether it is the latest of an offer or answer."""
        return negotiation in self.offers.values() or negotiation in self.answers.values()
