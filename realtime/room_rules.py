"""Rules for rooms, by name: ``kernel.rooms.configure("chat:*", join=True)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from realtime.errors import ConfigurationError
from realtime.routing import check_function

if TYPE_CHECKING:
    from realtime.connection import Context

__all__ = ["JoinRule", "RoomRule", "RoomRules"]

MOST_FOUND = 4096  # rooms whose rule is remembered

JoinRule = Callable[["Context", str], object]


@dataclass(frozen=True)
class RoomRule:
    """What holds for the rooms whose names match ``pattern``."""

    pattern: str
    join: bool | JoinRule = False
    leave: bool = True
    history: int = 0
    ttl: float = 120.0
    recover: bool = False
    presence: bool = False

    def __post_init__(self) -> None:
        where = f"rooms.configure({self.pattern!r}"
        if not isinstance(self.join, bool):
            check_function(self.join, 2, f"{where}, join=...)", "(context, room)")
        for name in ("leave", "recover", "presence"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigurationError(f"{where}, {name}={value!r}): must be True or False")
        if type(self.history) is not int or self.history < 0:
            raise ConfigurationError(f"{where}, history={self.history!r}): must be a number of messages")
        is_number = isinstance(self.ttl, (int, float)) and not isinstance(self.ttl, bool)
        if not is_number or not 0 < self.ttl < math.inf:
            raise ConfigurationError(f"{where}, ttl={self.ttl!r}): must be seconds, above 0")
        if self.recover and not self.history:
            raise ConfigurationError(f"{where}, recover=True): needs history=, the number of messages to keep")


class RoomRules:
    """Looked through in the order they were made: the first whose pattern matches a name counts."""

    def __init__(self) -> None:
        self._rules: dict[str, RoomRule] = {}
        self._reserved: tuple[str, ...] = ()
        self._found: dict[str, RoomRule | None] = {}
        self.keep_history = False
        """Whether any rule keeps one."""

    def reserve(self, prefix: str) -> None:
        """Close the rooms whose names begin so: whatever rules say, clients neither join nor leave by themselves."""
        self._reserved = (*self._reserved, prefix)
        self._found.clear()

    def add(self, pattern: str, **options: Any) -> None:
        """Add a rule, or replace the one of the same pattern; see ``RoomManager.configure``."""
        if not isinstance(pattern, str) or not pattern:
            text = f"rooms.configure({pattern!r}): must be a room's name, or a pattern such as 'chat:*'"
            raise ConfigurationError(text)
        self._rules[pattern] = RoomRule(pattern, **options)
        self._found.clear()
        self.keep_history = any(rule.history for rule in self._rules.values())

    def shows_presence(self, room: str) -> bool:
        """Tell whether who joins a room is told of its presence, unless it is said with the join."""
        rule = self.rule_for(room) if self._rules else None
        return rule is not None and rule.presence

    def rule_for(self, room: str) -> RoomRule | None:
        """Return the rule of a room; None if no pattern matches its name."""
        found = self._found.get(room, _UNKNOWN)
        if found is _UNKNOWN:
            if len(self._found) >= MOST_FOUND:
                self._found.clear()
            found = self._found[room] = self._look_up(room)
        return found

    def _look_up(self, room: str) -> RoomRule | None:
        if self._reserved and room.startswith(self._reserved):
            return _RESERVED
        for rule in self._rules.values():
            if fnmatchcase(room, rule.pattern):
                return rule
        return None


_RESERVED = RoomRule("", join=False, leave=False)
_UNKNOWN = RoomRule("")
