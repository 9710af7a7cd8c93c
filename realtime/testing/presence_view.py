"""A watcher of a room that takes what it is told literally: what a strict client makes of live presence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["PresenceView"]


class PresenceView:
    """Applies ``presence:state`` and ``presence:diff`` of one room; fails where one does not fit what it knows.

    :param room: messages about others are refused; None for payloads that name no room.
    """

    def __init__(self, room: str | None = None) -> None:
        self.presences: dict[str, Any] | None = None
        """By key; None while only their number is told."""
        self.total: int | None = None
        """None before the first state."""
        self.states = 0
        """How many states came."""
        self.joins: list[str] = []
        """Keys, in the order diffs told of them."""
        self.leaves: list[str] = []
        self._room = room

    @property
    def clients(self) -> set[str]:
        """The ids of all clients that are shown."""
        return {meta["id"] for presence in (self.presences or {}).values() for meta in presence["metas"]}

    def take(self, kind: str, told: Mapping[str, Any]) -> None:
        """Apply what a message of that type has as payload."""
        payload = dict(told)
        assert payload.pop("room", None) == self._room, told
        if kind == "presence:state":
            assert payload.keys() in ({"total"}, {"presences", "total"}), told
            self.states += 1
            self.presences, self.total = payload.get("presences"), payload["total"]
            assert self.presences is None or len(self.presences) == self.total, told
        else:
            assert kind == "presence:diff", kind
            self._take_diff(payload)

    def _take_diff(self, payload: Mapping[str, Any]) -> None:
        assert self.total is not None, "a diff before the state"
        before, self.total = self.total, payload["total"]
        if self.presences is None:
            assert payload.keys() == {"total"}, payload
            assert self.total != before, "nothing changed"
            return
        assert payload.keys() == {"joins", "leaves", "updates", "total"}, payload
        assert payload["joins"] or payload["leaves"] or payload["updates"], "nothing changed"
        for key, presence in payload["joins"].items():
            assert key not in self.presences, f"{key} joined twice"
            assert presence["metas"], "a presence without a client"
            self.presences[key] = presence
            self.joins.append(key)
        for key, presence in payload["updates"].items():
            assert key in self.presences, f"{key} is not there"
            assert _unordered(self.presences[key]) != _unordered(presence), "nothing changed"
            self.presences[key] = presence
        for key, presence in payload["leaves"].items():
            assert key in self.presences, f"{key} left twice"
            assert _unordered(self.presences.pop(key)) == _unordered(presence), "shown otherwise than last told"
            self.leaves.append(key)
        assert len(self.presences) == self.total, payload


def _unordered(presence: Mapping[str, Any]) -> list[str]:
    return sorted(json.dumps(meta, sort_keys=True) for meta in presence["metas"])
