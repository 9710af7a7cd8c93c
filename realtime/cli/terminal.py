"""What commands print for people and for programs: colours on a terminal only, and one line of JSON a message.

Colours, tables and the progress bar are those of rich, which the extra ``cli`` installs: a server that only runs
``serve`` needs neither it nor what it brings along. Without it nothing is coloured, and ``bench`` says what to install.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from datetime import datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from realtime.cli.common import DISTRIBUTION, Complaint, printable

if TYPE_CHECKING:
    from rich.console import Console

    from realtime.client import ClientMessage

__all__ = ["MessagePrinter", "Printer", "as_json", "console", "is_internal", "require_rich"]

Piece = tuple[str, str]
"""A text, and its style in rich's words."""

_INTERNAL = ("system:ack", "system:stream", "system:welcome")


def require_rich(command: str) -> ModuleType:
    """Return the library, or raise a Complaint that says how to get it."""
    try:
        import rich
    except ImportError:
        raise Complaint(f"{command} needs rich: pip install '{DISTRIBUTION}[cli]'") from None
    return rich


def console(stream: TextIO) -> Console:
    """Return rich's console for a stream; colours as told by the terminal and NO_COLOR."""
    from rich.console import Console

    colours: Any = None if os.environ.get("NO_COLOR") else "auto"
    return Console(file=stream, color_system=colours, highlight=False, markup=False, emoji=False)


class Printer:
    """Prints lines of coloured pieces, which are plain where the stream is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console: Console | None = None
        if stream.isatty():
            try:
                self._console = console(stream)
            except ImportError:
                pass

    def line(self, pieces: Iterable[Piece]) -> None:
        """Print a line now. Raises BrokenPipeError when nobody reads."""
        if self._console is None:
            print("".join(text for text, _ in pieces), file=self._stream, flush=True)
            return
        from rich.text import Text

        self._console.print(Text.assemble(*pieces), soft_wrap=True)
        self._stream.flush()


class MessagePrinter:
    """Prints messages to stdout.

    :param json: as a line of JSON each, which is also what a pipe gets.
    """

    def __init__(self, *, json: bool) -> None:
        self._json = json or not sys.stdout.isatty()
        self._printer = Printer(sys.stdout)

    def value(self, value: Any) -> None:
        """Print what a handler returned or yielded."""
        self._printer.line([(as_json(value) if self._json else printable(as_json(value)), "")])

    def message(self, message: ClientMessage) -> None:
        """Print a message, but for the token of a session: whoever has it can take the client's place."""
        message = _without_token(message)
        self._printer.line([(_as_line(message), "")] if self._json else _as_pieces(message))


def _without_token(message: ClientMessage) -> ClientMessage:
    payload = message.payload
    if message.type != "system:welcome" or not (isinstance(payload, dict) and isinstance(payload.get("session"), dict)):
        return message
    import msgspec

    session = {name: value for name, value in payload["session"].items() if name != "token"}
    return msgspec.structs.replace(message, payload={**payload, "session": session})


def _as_line(message: ClientMessage) -> str:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return as_json({name: value for name, value in fields.items() if value is not None})


def _as_pieces(message: ClientMessage) -> list[Piece]:
    seconds = None if message.timestamp is None else message.timestamp / 1000
    time = datetime.now() if seconds is None else datetime.fromtimestamp(seconds)
    pieces = [(f"{time:%H:%M:%S} ", "dim")]
    pieces.append((f" {printable(message.type)}", "bold red" if message.type == "system:error" else "bold cyan"))
    if message.room is not None:
        pieces.append((f" in {printable(message.room)}", "magenta"))
    if message.ack is not None:
        pieces.append((f" asks {printable(str(message.ack))}", "yellow"))
    if message.payload is not None:
        pieces.append((f"  {printable(as_json(message.payload))}", ""))
    return pieces


def as_json(value: Any) -> str:
    """Return a value as one line of JSON; bytes, which MessagePack can bring, as base64."""
    import msgspec

    return msgspec.json.encode(value).decode()


def is_internal(message: ClientMessage) -> bool:
    """Tell whether a message is an answer to the client itself, rather than something it was told."""
    return message.type in _INTERNAL
