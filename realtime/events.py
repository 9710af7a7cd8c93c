"""Event names: templates with parameters, and the namespaces that belong to the server."""

from __future__ import annotations

import re
from collections.abc import Sequence

from realtime.errors import ConfigurationError

__all__ = ["ANY", "EventTemplate", "event_name", "is_reserved"]

ANY = "*"
RESERVED_PREFIXES = ("system:", "client:", "mesh:")
CLIENT_CONNECTED = "client:connected"
CLIENT_DISCONNECTED = "client:disconnected"
LIFECYCLE = (CLIENT_CONNECTED, CLIENT_DISCONNECTED)
REQUESTS = frozenset(("system:join", "system:leave", "system:history", "system:presence"))
"""What clients ask of the server itself: handled in line, as any message."""

_PARAMETER = re.compile(r"\[([^\[\]]*)\]")


def is_reserved(name: str) -> bool:
    """Tell whether a client may not send ``name`` because it belongs to the server."""
    return name.startswith(RESERVED_PREFIXES)


class EventTemplate:
    """An event name with parameters: ``chat:message:[room_id]`` matches ``chat:message:7``.

    A parameter takes one or more characters, up to the next ``:`` or the first character of the text that
    follows it, whichever comes first: there is one way to match, found in linear time. Names of parameters are
    Python identifiers and appear once. A template without parameters is a plain name.

    :raises ConfigurationError: an empty name, unbalanced brackets, a bad or repeated parameter name, or
        parameters with nothing between them.
    """

    __slots__ = ("_pattern", "_pieces", "parameters", "text")

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not text:
            raise ConfigurationError(f"event {text!r}: must be a non-empty string")
        self.text = text
        self.parameters: tuple[str, ...] = tuple(_PARAMETER.findall(text))
        self._pieces: Sequence[str] = _PARAMETER.split(text)[::2]
        self._check()
        pattern = re.escape(self._pieces[0])
        for name, piece in zip(self.parameters, self._pieces[1:], strict=True):
            pattern += f"(?P<{name}>[^:{re.escape(piece[:1])}]+){re.escape(piece)}"
        self._pattern = re.compile(pattern)

    def _check(self) -> None:
        example = "as in 'chat:message:[room_id]'"
        if any("[" in piece or "]" in piece for piece in self._pieces):
            raise ConfigurationError(f"event {self.text!r}: brackets must pair up, {example}")
        if any(not piece for piece in self._pieces[1:-1]):
            raise ConfigurationError(f"event {self.text!r}: parameters need text between them, {example}")
        for name in self.parameters:
            if not name.isidentifier():
                raise ConfigurationError(f"event {self.text!r}: parameter {name!r} must be an identifier, {example}")
        if len(set(self.parameters)) != len(self.parameters):
            raise ConfigurationError(f"event {self.text!r}: each parameter name may appear once")

    def match(self, name: str) -> dict[str, str] | None:
        """Return the parameters if ``name`` fits, else None."""
        found = self._pattern.fullmatch(name)
        return found.groupdict() if found else None

    def fill(self, values: Sequence[object]) -> str:
        """Return the name with the parameters replaced in order; raise ValueError if it would not match."""
        if len(values) != len(self.parameters):
            raise ValueError(
                f"event {self.text!r} has {len(self.parameters)} parameter(s) "
                f"({', '.join(self.parameters) or 'none'}), got {len(values)}"
            )
        name = self._pieces[0]
        for parameter, value, piece in zip(self.parameters, values, self._pieces[1:], strict=True):
            text = str(value)
            if not text or ":" in text or (piece and piece[0] in text):
                without = " and ".join(repr(character) for character in dict.fromkeys((":", *piece[:1])))
                raise ValueError(f"event {self.text!r}: {parameter}={text!r} must be non-empty and without {without}")
            name += text + piece
        return name


def event_name(template: str, *values: object) -> str:
    """Build an event name: ``event_name("chat:message:[room_id]", 7)`` is ``"chat:message:7"``.

    :raises ValueError: a wrong number of values, or one that is empty or contains ``:``.
    """
    return EventTemplate(template).fill(values)
