"""Which messages go to which nodes beside where they are wanted at all: patterns, applied by the sender."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import translate

from realtime.errors import ConfigurationError

__all__ = ["RouteFilter", "Routes"]

_REMEMBERED = 4096  # decisions


class RouteFilter:
    """Shell patterns (``fnmatch``) on a message's name and its room: ``"chat:*"``.

    A message passes if its name or its room fits one of ``forward``, and neither fits one of ``drop``.

    :raises ConfigurationError: patterns that are no list of texts.
    """

    def __init__(self, forward: Iterable[str] = ("*",), drop: Iterable[str] = ()) -> None:
        self.forward = _checked("forward", forward)
        self.drop = _checked("drop", drop)
        self._forward = _compiled(self.forward)
        self._drop = _compiled(self.drop)
        self.open = "*" in self.forward and not self.drop
        """Everything passes."""

    def allows(self, name: str, room: str | None) -> bool:
        """Tell whether a message passes."""
        texts = (name,) if room is None else (name, room)
        return any(map(self._forward.match, texts)) and not any(map(self._drop.match, texts))


class Routes:
    """The filter for all nodes, and further ones for some.

    :param peers: filters by patterns of node ids. A message must pass the filter for all, and that of the first
        pattern that fits the node.
    """

    def __init__(self, default: RouteFilter | None = None, peers: Mapping[str, RouteFilter] | None = None) -> None:
        self._default = default or RouteFilter()
        self._peers = [(re.compile(translate(pattern)), chosen) for pattern, chosen in (peers or {}).items()]
        self.open = self._default.open and all(chosen.open for _, chosen in self._peers)
        """Everything passes: there is nothing to ask."""
        self._decisions: dict[tuple[str, str, str | None], bool] = {}

    def allow(self, node: str, name: str, room: str | None) -> bool:
        """Tell whether a message may go to a node."""
        key = (node, name, room)
        decision = self._decisions.get(key)
        if decision is None:
            if len(self._decisions) >= _REMEMBERED:
                self._decisions.clear()
            decision = self._decisions[key] = self._decide(node, name, room)
        return decision

    def _decide(self, node: str, name: str, room: str | None) -> bool:
        if not self._default.allows(name, room):
            return False
        for pattern, chosen in self._peers:
            if pattern.match(node):
                return chosen.allows(name, room)
        return True


def _checked(option: str, patterns: Iterable[str]) -> tuple[str, ...]:
    found = () if isinstance(patterns, str) else tuple(patterns)
    if isinstance(patterns, str) or not all(isinstance(pattern, str) and pattern for pattern in found):
        raise ConfigurationError(f"{option}={patterns!r}: must be a list of patterns such as ('chat:*',)")
    return found


def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")
