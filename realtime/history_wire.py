"""What nodes tell one another of the history of a room."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from realtime.message import CODECS
from realtime.room_log import Entry, Share

__all__ = ["Told", "is_position", "pack_told", "read_told"]

log = logging.getLogger("realtime.history")


class Told(NamedTuple):
    """What another node tells of a room."""

    share: Share
    node: str
    names: Collection[str]
    """The origins that are that node."""
    doubts: Mapping[str, str]
    current: bool
    """It has got everything that was sent to the room for as long as it says so."""


def pack_told(told: Told) -> dict[str, Any]:
    """Return it as values that cross to another node."""
    return {
        "entries": [list(_fields(entry)) for entry in told.share.entries],
        "position": told.share.position,
        "more": told.share.more,
        "node": told.node,
        "names": list(told.names),
        "doubts": told.doubts,
        "current": told.current,
    }


def _fields(entry: Entry) -> tuple[Any, ...]:
    return entry.origin, entry.sequence, entry.at, entry.codec, entry.body, list(entry.except_ids)


def is_position(value: object) -> bool:
    """Tell whether what another node sent is how far it is."""
    return isinstance(value, dict) and all(type(key) is str and type(item) is int for key, item in value.items())


def read_told(answer: Any) -> Told | None:
    """Return what another node tells; None if it has nothing, or said what makes no sense."""
    if not isinstance(answer, dict) or not is_position(answer.get("position")):
        return None
    try:
        entries = [
            Entry(str(origin), int(sequence), float(at), str(codec), bytes(body), tuple(map(str, except_ids)))
            for origin, sequence, at, codec, body, except_ids in answer["entries"]
        ]
        node, names, doubts = str(answer["node"]), [*map(str, answer["names"])], dict(answer["doubts"])
    except (KeyError, TypeError, ValueError):
        log.warning("a node shares a history that cannot be read")
        return None
    entries = [entry for entry in entries if entry.codec in CODECS]
    share = Share(entries, answer["position"], more=answer.get("more") is True and bool(entries))
    return Told(share, node, names, doubts, current=answer.get("current") is True)
