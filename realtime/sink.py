"""What an outbox stands between: the sink it writes to, and who keeps what goes through it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Keeper", "Sink"]


class Sink(Protocol):
    """Where an outbox writes to: one connection of a transport."""

    def write(self, frames: list[bytes]) -> int:
        """Take as many bytes as possible without waiting and return how many; raise OSError if broken."""

    def watch_writable(self) -> None:
        """Call ``outbox.resume()`` once when more can be written."""

    def broken(self, error: OSError) -> None:
        """The connection is gone: a write failed with ``error``."""

    def finished(self) -> None:
        """The frame given to ``put_last``, and all before it, has been written."""

    def overflowed(self) -> None:
        """A message that may not be dropped does not fit: cut the slow consumer off (4008)."""


class Keeper(Protocol):
    """Keeps what goes through an outbox for longer than the connection lasts: see ``realtime.session_line``."""

    def keep(self, frame: bytes) -> None:
        """A message was accepted, after all those before it."""

    def unkeep(self, frame: bytes) -> None:
        """A message that waited was dropped, as its policy wants."""

    def put_late(self, frame: bytes) -> bool:
        """A message came after the outbox was closed; return whether it will be delivered all the same."""

    def left(self, count: int) -> None:
        """So many frames had not been written when the outbox was closed."""
