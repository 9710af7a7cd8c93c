"""Cursors: how far somebody is in a room that keeps its history, as an opaque text.

A position is a vector: for each origin (one node's log of the room) the sequence of its last message in the room.
With a single number there would have to be one order of the room's messages on all nodes, and one node to decide it.
This way any node, and none in particular, knows what somebody has missed who was on another node before.
"""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import Mapping

__all__ = ["Position", "new_origin", "read_cursor", "room_tag", "write_cursor"]

Position = dict[str, int]
"""By origin: the sequence of the last message that was seen."""

ORIGIN_LENGTH = 8
MOST_ORIGINS = 64
_ITEM = re.compile(r"([0-9a-f]{8})([0-9]{1,15})")


def new_origin() -> str:
    """Return a name for one log of one room on one node."""
    return secrets.token_hex(ORIGIN_LENGTH // 2)


def room_tag(room: str) -> str:
    """Return what ties a cursor to its room, so that a cursor of another room is known as such."""
    return f"{zlib.crc32(room.encode()):x}"


def write_cursor(tag: str, position: Mapping[str, int]) -> str:
    """Return the text for a position."""
    return f"{tag}." + "-".join([f"{origin}{sequence}" for origin, sequence in position.items()])


def read_cursor(tag: str, cursor: object) -> Position | None:
    """Return the position in a cursor of this room; None for anything else."""
    if not isinstance(cursor, str):
        return None
    begin, dot, items = cursor.partition(".")
    if begin != tag or not dot or len(items) > MOST_ORIGINS * 24:
        return None
    position: Position = {}
    for item in items.split("-") if items else ():
        match = _ITEM.fullmatch(item)
        if match is None:
            return None
        position[match[1]] = int(match[2])
    return position if len(position) <= MOST_ORIGINS else None
