"""Live presence of one room: what its watchers were told of it, and what to tell them next.

State only: no sockets, no clock, no greenlets; ``now`` is an argument. A presence is a key, an identity or a client's
id, with a meta for each of its clients in the room. Watchers are told the whole state once and then what changed,
in batches: of the changes between two batches only their outcome counts, so that who comes and goes within one was
never there. A watcher that comes between two batches is told the state as it is then, and next what changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

import msgspec

from realtime.message import JSON

__all__ = ["DIFF", "STATE", "Bounds", "Notice", "RoomPresence", "Shown", "key_of", "shown"]

STATE = "presence:state"
DIFF = "presence:diff"
KEY_LENGTH = 255  # characters of a key: it is sent with each change, so no token of kilobytes
TIDY = 1000  # entries of what was before, until those are forgotten that no watcher needs

Metas = dict[str, "Shown"]
Presences = dict[str, dict[str, list[dict[str, Any]]]]


@dataclass(frozen=True)
class Bounds:
    """How much is shown at once, and how often changes are told."""

    clients: int
    """In a room with more, only the number of presences is told."""
    size: int
    """Bytes, as JSON, of all that is shown: likewise."""
    quiet: float
    """Seconds from a change to telling it, in a room where nothing was told lately."""
    busy: float
    """Seconds between two batches."""


@dataclass(frozen=True)
class Shown:
    """What is shown of one client: a copy that nobody changes."""

    meta: dict[str, Any]
    size: int


@dataclass(frozen=True)
class Notice:
    """A message to watchers of the room."""

    type: str
    payload: dict[str, Any]
    watchers: Sequence[str]


@dataclass(frozen=True)
class _Past:
    """The metas of a key before the change of that number, and up to the one of the entry before."""

    number: int
    metas: Metas


def key_of(identity: object, client: str) -> str:
    """Return the key of a client's presence: its identity if that is a short text or a whole number, else its id."""
    text = client
    if isinstance(identity, str):
        text = str.__str__(identity)
    elif isinstance(identity, int) and not isinstance(identity, bool) and identity.bit_length() < KEY_LENGTH:
        text = int.__repr__(identity)
    return text if 0 < len(text) <= KEY_LENGTH and _is_unicode(text) else client


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def shown(client: str, metadata: Mapping[str, Any]) -> Shown:
    """Return what is shown of a client: ``{"id", ...metadata}``, where a key ``id`` in metadata does not count.

    :raises BadMessage: metadata that JSON cannot carry.
    """
    data = JSON.encode({**metadata, "id": client})
    return Shown(msgspec.json.decode(data), len(data))


class RoomPresence:
    """One room. Made when its first watcher comes, with who is in it already; forgotten with the last.

    :param describe: returns what is shown of a client.
    """

    def __init__(self, bounds: Bounds, describe: Callable[[str], Shown]) -> None:
        self.due: float | None = None
        """When ``flush`` is to be called; None while nothing changed."""
        self._bounds = bounds
        self._describe = describe
        self._told_at = -bounds.busy
        self._keys: dict[str, str] = {}  # by client
        self._groups: dict[str, dict[str, Shown | None]] = {}  # by key and client; None where only counts are told
        self._listed = True
        self._size = 0
        # Since the last flush: what was before, by key; and who came, with the number of the last change then
        self._past: dict[str, list[_Past]] = {}
        self._entries = 0
        self._tidy_at = TIDY
        self._number = 0
        self._newest = 0  # the highest number among fresh watchers
        self._fresh: dict[str, tuple[int, int]] = {}  # that number, and the total they were told
        self._settled: dict[str, None] = {}
        self._told_total = 0
        self._stale = False  # settled watchers are to be told the whole state

    def __len__(self) -> int:
        """Return the number of presences."""
        return len(self._groups)

    @property
    def clients(self) -> int:
        """The number of clients."""
        return len(self._keys)

    @property
    def watchers(self) -> int:
        """The number of watchers."""
        return len(self._settled) + len(self._fresh)

    def watches(self, watcher: str) -> bool:
        """Tell whether somebody watches."""
        return watcher in self._settled or watcher in self._fresh

    # Changes ---------------------------------------------------------------------------------------------

    def put(self, client: str, key: str, now: float) -> None:
        """A client is in the room, perhaps for some time already, and perhaps with other metadata now."""
        known = self._keys.get(client)
        if known == key:
            self._renew(client, key, now)
            return
        if known is not None:
            self.drop(client, now)
        if self._listed:
            self._remember(key)
            self._keys[client] = key
            self._show(client, key)
        else:
            self._keys[client] = key
            self._groups.setdefault(key, {})[client] = None
        self._changed(now)

    def drop(self, client: str, now: float) -> None:
        """A client is not in the room."""
        key = self._keys.get(client)
        if key is None:
            return
        if self._listed:
            self._remember(key)
        del self._keys[client]
        group = self._groups[key]
        gone = group.pop(client)
        if gone is not None:
            self._size -= gone.size
        if not group:
            del self._groups[key]
        self._changed(now)

    def _renew(self, client: str, key: str, now: float) -> None:
        if self._listed:
            before, after = self._groups[key][client], self._describe(client)
            if before == after:
                return
            self._remember(key)
            self._show(client, key, after)
        elif len(self._keys) > self._bounds.clients:
            return  # only the number is told, and it stays
        self._changed(now)

    def _show(self, client: str, key: str, what: Shown | None = None) -> None:
        group = self._groups.setdefault(key, {})
        before, after = group.get(client), what or self._describe(client)
        group[client] = after
        self._size += after.size - (before.size if before is not None else 0)
        if len(self._keys) > self._bounds.clients or self._size > self._bounds.size:
            self._only_count()

    def _remember(self, key: str) -> None:
        """A key is about to change: keep what some watcher was told of it last."""
        if not self.watchers:
            return
        if self._entries >= self._tidy_at:
            self._tidy()
        self._number += 1
        past = self._past.setdefault(key, [])
        if not past or past[-1].number <= self._newest:
            past.append(_Past(self._number, self._metas(key)))
            self._entries += 1

    def _tidy(self) -> None:
        """Forget what no watcher needs: else many who come and go within a batch would take memory until it ends."""
        points = sorted({0, *(number for number, _ in self._fresh.values())})
        for key, entries in list(self._past.items()):
            needed = {first.number: first for point in points if (first := _first_after(entries, point)) is not None}
            metas = self._metas(key)
            if all(past.metas == metas for past in needed.values()):
                del self._past[key]
            else:
                self._past[key] = list(needed.values())
        self._entries = sum(map(len, self._past.values()))
        self._tidy_at = max(TIDY, 2 * self._entries)

    def _metas(self, key: str) -> Metas:
        return {client: what for client, what in self._groups.get(key, {}).items() if what is not None}

    def _changed(self, now: float) -> None:
        if self.due is None and self.watchers:
            self.due = max(now + self._bounds.quiet, self._told_at + self._bounds.busy)

    # From a list to a count and back ------------------------------------------------------------------------

    def _only_count(self) -> None:
        self._listed = False
        self._size = 0
        for group in self._groups.values():
            for client in group:
                group[client] = None
        self._start_over()

    def _list_if_few(self) -> None:
        if self._listed or len(self._keys) > self._bounds.clients:
            return
        found = {client: self._describe(client) for client in self._keys}
        size = sum(what.size for what in found.values())
        if size > self._bounds.size:
            return
        self._listed = True
        self._size = size
        for client, what in found.items():
            self._groups[self._keys[client]][client] = what
        self._start_over()

    def _start_over(self) -> None:
        """All who watch are told the whole state next."""
        self._settle()
        self._stale = True

    def _settle(self) -> None:
        """All who watch are at the same point."""
        self._settled.update(dict.fromkeys(self._fresh))
        self._fresh.clear()
        self._past.clear()
        self._number = self._newest = self._entries = 0
        self._tidy_at = TIDY
        self._stale = False

    # Watchers ------------------------------------------------------------------------------------------------

    def watch(self, watcher: str, now: float) -> dict[str, Any]:
        """Somebody watches from now on; return the state to tell."""
        self._list_if_few()
        if self._stale:
            self._changed(now)
        self._fresh[watcher] = self._number, len(self._groups)
        self._newest = self._number
        return self._state()

    def unwatch(self, watcher: str) -> None:
        """Somebody watches no more."""
        self._settled.pop(watcher, None)
        self._fresh.pop(watcher, None)

    def _state(self) -> dict[str, Any]:
        if not self._listed:
            return {"total": len(self._groups)}
        return {"presences": _presences((key, self._metas(key)) for key in self._groups), "total": len(self._groups)}

    def flush(self, now: float) -> list[Notice]:
        """Return what to tell now."""
        self.due = None
        self._list_if_few()
        notices = list(self._listed_notices() if self._listed else self._counted_notices())
        self._settle()
        self._told_total = len(self._groups)
        if notices:
            self._told_at = now
        return notices

    def _listed_notices(self) -> Iterator[Notice]:
        told: dict[int, list[str]] = {}
        if self._stale:
            yield Notice(STATE, self._state(), list(self._settled))
        elif self._settled:
            told[0] = list(self._settled)
        for watcher, (number, _) in self._fresh.items():
            told.setdefault(number, []).append(watcher)
        for number, watchers in told.items():
            diff = self._diff(number)
            if diff is not None:
                yield Notice(DIFF if "joins" in diff else STATE, diff, watchers)

    def _diff(self, number: int) -> dict[str, Any] | None:
        """Return what changed after the change of that number: None for nothing, the state if that is shorter."""
        joins: list[tuple[str, Metas]] = []
        leaves: list[tuple[str, Metas]] = []
        updates: list[tuple[str, Metas]] = []
        for key, entries in self._past.items():
            past = _first_after(entries, number)
            if past is None:
                continue
            before, after = past.metas, self._metas(key)
            if not after:
                if before:
                    leaves.append((key, before))
            elif not before:
                joins.append((key, after))
            elif before != after:
                updates.append((key, after))
        if not (joins or leaves or updates):
            return None
        if sum(what.size for _, metas in (*joins, *leaves, *updates) for what in metas.values()) > self._bounds.size:
            return self._state()
        return {
            "joins": _presences(joins),
            "leaves": _presences(leaves),
            "updates": _presences(updates),
            "total": len(self._groups),
        }

    def _counted_notices(self) -> Iterator[Notice]:
        total = len(self._groups)
        count = {"total": total}
        if self._stale:
            yield Notice(STATE, count, list(self._settled))
        changed = [watcher for watcher, (_, told) in self._fresh.items() if told != total]
        if not self._stale and self._told_total != total:
            changed += self._settled
        if changed:
            yield Notice(DIFF, count, changed)

    # Pages ---------------------------------------------------------------------------------------------------

    def page(self, after: str) -> dict[str, Any]:
        """Return the presences whose keys follow ``after``, by key, as many as may be shown at once.

        ``"page"`` in the result is what to ask for next, unless that was all. Who is there throughout is on one page,
        whoever comes and goes meanwhile. Of one presence as many metas are listed as may be shown.
        """
        most, bound = self._bounds.clients, self._bounds.size
        page: list[tuple[str, Metas]] = []
        clients = size = 0
        keys = nsmallest(most + 1, (key for key in self._groups if key > after))
        for key in keys:
            metas, taken = self._first_metas(key)
            clients, size = clients + len(metas), size + taken
            if page and (clients > most or size > bound):
                break
            page.append((key, metas))
        result: dict[str, Any] = {"presences": _presences(page), "total": len(self._groups)}
        if len(page) < len(keys):
            result["page"] = page[-1][0]
        return result

    def _first_metas(self, key: str) -> tuple[Metas, int]:
        """Return as many metas of a key as may be shown at once, and how many bytes they take."""
        metas: Metas = {}
        size = 0
        for client in self._groups[key]:
            what = self._describe(client)
            if metas and (len(metas) == self._bounds.clients or size + what.size > self._bounds.size):
                break
            metas[client] = what
            size += what.size
        return metas, size


def _first_after(entries: list[_Past], number: int) -> _Past | None:
    """Return what somebody was told of a key who came after the change of that number: None if that still holds."""
    return next((past for past in entries if past.number > number), None)


def _presences(found: Iterable[tuple[str, Metas]]) -> Presences:
    return {key: {"metas": [what.meta for what in metas.values()]} for key, metas in found}
