"""Rules for rooms, by name: ``kernel.rooms.configure("chat:*", join=True)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from realtime.errors import ConfigurationError
from realtime.routing import check_function

if TYPE_CHECKING:
    from realtime.connection import Context

__all__ = ["JoinRule", "RoomRule", "RoomRules"]

JoinRule = Callable[["Context", str], object]


@dataclass(frozen=True)
class RoomRule:
    """What holds for the rooms whose names match ``pattern``."""

    pattern: str
    join: bool | JoinRule = False
    leave: bool = True
    presence: bool = False


class RoomRules:
    """Looked through in the order they were made: the first whose pattern matches a name counts."""

    def __init__(self) -> None:
        self._rules: dict[str, RoomRule] = {}
        self._reserved: tuple[str, ...] = ()

    def reserve(self, prefix: str) -> None:
        """Close the rooms whose names begin so: whatever rules say, clients neither join nor leave by themselves."""
        self._reserved = (*self._reserved, prefix)

    def add(
        self, pattern: str, *, join: bool | JoinRule = False, leave: bool = True, presence: bool = False
    ) -> None:
        """Add a rule, or replace the one of the same pattern; see ``RoomManager.configure``."""
        if not isinstance(pattern, str) or not pattern:
            text = f"rooms.configure({pattern!r}): must be a room's name, or a pattern such as 'chat:*'"
            raise ConfigurationError(text)
        if not isinstance(join, bool):
            check_function(join, 2, f"rooms.configure({pattern!r}, join=...)", "(context, room)")
        if not isinstance(leave, bool):
            raise ConfigurationError(f"rooms.configure({pattern!r}, leave={leave!r}): must be True or False")
        if not isinstance(presence, bool):
            raise ConfigurationError(f"rooms.configure({pattern!r}, presence={presence!r}): must be True or False")
        self._rules[pattern] = RoomRule(pattern, join, leave, presence)

    def shows_presence(self, room: str) -> bool:
        """Tell whether who joins a room is told of its presence, unless it is said with the join."""
        rule = self.rule_for(room) if self._rules else None
        return rule is not None and rule.presence

    def rule_for(self, room: str) -> RoomRule | None:
        """Return the rule of a room; None if no pattern matches its name."""
        if self._reserved and room.startswith(self._reserved):
            return _RESERVED
        for rule in self._rules.values():
            if fnmatchcase(room, rule.pattern):
                return rule
        return None


_RESERVED = RoomRule("", join=False, leave=False)
