"""Participants: who of this node's clients is in which call, and whose place is kept while it is away.

State only: no sockets, no greenlets; the clock comes as ``now``, in seconds of any origin.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Participant", "Participants"]

MOST_FORMER = 8  # earlier ids of one participant that others are told
TOKEN_BYTES = 24  # of randomness in a resume token


@dataclass(slots=True, eq=False)
class Participant:
    """One client in one call."""

    id: str
    call: str
    """The kernel's name of the call's room."""
    metadata: Any
    """What it gave when it joined; other participants are shown it. Forgotten with its connection."""
    identity: Any
    entered_room: str | None
    """The application's room that joining the call put the client into."""
    token: str
    """With this another connection of the same identity may take its place."""
    until: float | None = None
    """When its place is given up; None while it is connected."""
    replaces: str | None = None
    """The id it had before it came back: for those who were away at that moment."""
    formerly: tuple[str, ...] = ()
    """The ids it had before, for those who were away more than once; the last ``MOST_FORMER``."""
    met: set[str] = field(default_factory=set)
    """Who of other nodes was there when it joined, as far as its node knew: they were told of it, and it of them. Not
    who was told as lost since."""

    def shown(self) -> dict[str, Any]:
        """Return what others are told of it beside its id: ``{metadata?, replaces?, formerly?}``."""
        shown: dict[str, Any] = {}
        if self.metadata is not None:
            shown["metadata"] = self.metadata
        if self.replaces is not None:
            shown["replaces"] = self.replaces
            shown["formerly"] = list(self.formerly)
        return shown

    def packed(self) -> list[Any]:
        """Return it for another node, to which its client has moved."""
        room, formerly = self.entered_room, list(self.formerly)
        return [self.call, self.metadata, self.identity, room, self.token, self.replaces, formerly]

    @classmethod
    def unpacked(cls, client_id: str, packed: Sequence[Any]) -> Participant:
        """Return what another node has packed."""
        call, metadata, identity, entered_room, token, replaces, formerly = packed
        return cls(
            client_id, call, metadata, identity, entered_room, token, replaces=replaces, formerly=tuple(formerly)
        )


class Participants:
    """What the bridge remembers of its own node's clients in calls.

    A client is in at most ``Limits.rooms_per_client`` calls, which the kernel's rooms see to. A record of a call
    that an application took the client out of (``kernel.rooms.leave``) stays until the client goes, or joins again.

    :param keep: seconds that the place of a client which lost its connection is kept.
    :param most: places that are kept at a time; past it the oldest is given up early, and counted.
    :param new_token: makes resume tokens.
    """

    def __init__(self, *, keep: float, most: int, new_token: Callable[[], str] | None = None) -> None:
        self._keep = keep
        self._most = most
        self._new_token = new_token or (lambda: secrets.token_urlsafe(TOKEN_BYTES))
        self._here: dict[str, dict[str, Participant]] = {}  # by client, by call
        self._away: OrderedDict[Participant, None] = OrderedDict()  # the first is given up first
        self._away_by_client: dict[str, dict[str, Participant]] = {}
        self._by_token: dict[str, Participant] = {}
        self.given_up_early = 0

    def __len__(self) -> int:
        """Return how many participants are connected; one in two calls counts twice."""
        return len(self._by_token) - len(self._away)

    @property
    def places(self) -> int:
        """How many places are kept."""
        return len(self._away)

    def get(self, client_id: str, call: str) -> Participant | None:
        """Return the record of a connected client in a call."""
        calls = self._here.get(client_id)
        return None if calls is None else calls.get(call)

    def place(self, client_id: str) -> dict[str, Participant]:
        """Return what is kept for a client that is away, by call; empty if nothing is."""
        return self._away_by_client.get(client_id, {})

    def enter(self, client_id: str, call: str, metadata: Any, identity: Any, entered_room: str | None) -> Participant:
        """Remember a client that has entered a call; a record it has there is replaced."""
        self.drop(client_id, call)
        participant = Participant(client_id, call, metadata, identity, entered_room, self._new_token())
        self.add(participant)
        return participant

    def add(self, participant: Participant) -> None:
        """Remember a connected client in a call in which it has no record."""
        self._here.setdefault(participant.id, {})[participant.call] = participant
        self._by_token[participant.token] = participant

    def of(self, client_id: str) -> list[Participant]:
        """Return the records of a connected client."""
        return list(self._here.get(client_id, {}).values())

    def drop(self, client_id: str, call: str) -> Participant | None:
        """Forget a connected client's record in a call; its token is void."""
        participant = self.get(client_id, call)
        if participant is not None:
            self._remove(participant)
        return participant

    def drop_all(self, client_id: str) -> None:
        """Forget every record of a client that has gone, but for the places that are kept."""
        for participant in self.of(client_id):
            self._remove(participant)

    def keep(self, client_id: str, call: str, now: float) -> list[str]:
        """Keep the place of a client whose connection was lost.

        Returns the ids of clients whose last place was given up for it, because ``most`` are kept already.
        """
        participant = self.drop(client_id, call)
        if participant is None:
            return []
        earlier = self.place(client_id).get(call)
        if earlier is not None:
            self._remove(earlier)
        participant.metadata = None
        participant.until = now + self._keep
        self._away[participant] = None
        self._away_by_client.setdefault(client_id, {})[call] = participant
        self._by_token[participant.token] = participant
        forgotten: list[str] = []
        while len(self._away) > self._most:
            self.given_up_early += 1
            forgotten.extend(self._give_up_first())
        return forgotten

    def find(self, token: str, call: str, identity: Any) -> Participant | None:
        """Return whose place a token is for, if it is for this call and this identity."""
        participant = self._by_token.get(token)
        if participant is None or participant.call != call:
            return None
        return participant if participant.identity == identity else None

    def take(self, participant: Participant) -> None:
        """Forget a participant because another connection takes its place: a token works once."""
        self._remove(participant)

    def next_end(self) -> float | None:
        """Return when the next place is given up; None if none is kept."""
        return next(iter(self._away)).until if self._away else None

    def expire(self, now: float) -> list[str]:
        """Give up the places whose time has come; return the clients that have none left."""
        forgotten: list[str] = []
        while (end := self.next_end()) is not None and end <= now:
            forgotten.extend(self._give_up_first())
        return forgotten

    def calls(self) -> set[str]:
        """Return the calls that this node's clients are in."""
        return {call for calls in self._here.values() for call in calls}

    def clear(self) -> None:
        """Forget everybody."""
        for container in (self._here, self._away, self._away_by_client, self._by_token):
            container.clear()

    def _give_up_first(self) -> Iterator[str]:
        participant = next(iter(self._away))
        self._remove(participant)
        if participant.id not in self._away_by_client:
            yield participant.id

    def _remove(self, participant: Participant) -> None:
        by_client = self._here if participant.until is None else self._away_by_client
        calls = by_client[participant.id]
        del calls[participant.call]
        if not calls:
            del by_client[participant.id]
        self._away.pop(participant, None)
        del self._by_token[participant.token]
