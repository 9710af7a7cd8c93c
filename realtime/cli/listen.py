"""``realtime listen``: what a server sends, as it comes, for as long as one likes."""

from __future__ import annotations

import argparse
import sys
import threading
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from realtime.cli.common import FAILED, OK, Complaint, add_command, complain, end_quietly, positive_number, printable
from realtime.cli.connecting import add_client_options, connected, made_client, plain_failures
from realtime.cli.terminal import MessagePrinter, Printer, is_internal

if TYPE_CHECKING:
    from realtime.cli.common import Commands
    from realtime.client import Client, ClientMessage

__all__ = ["add"]

_DESCRIPTION = """\
Connects and prints every message that comes, until Ctrl-C. A lost connection comes back by itself, and with it the
rooms. In a pipe, or with --json, each message is a line of JSON.
"""
_EXAMPLES = """\
examples:
  realtime listen ws://localhost:8080/realtime
  realtime listen ws://localhost:8080/realtime --join tea --type 'chat:*'
  realtime listen ws://localhost:8080/realtime --join tea | jq .payload
  realtime listen ws://localhost:8080/realtime --send '{"type": "room:join", "room": "tea"}' --count 1

--join works where the server lets clients join by themselves (kernel.rooms.configure); elsewhere --send what its
handlers want, now and after every reconnect. The server's answers to these are not shown, except with --type.

exit codes: 0 Ctrl-C or --count reached; 1 no connection, refused, or closed for good by the server
"""


def add(commands: Commands) -> None:
    """Put the command on the command line."""
    parser = add_command(
        commands, "listen", _listen, summary="print what a server sends", description=_DESCRIPTION, examples=_EXAMPLES
    )
    add_client_options(parser)
    parser.add_argument(
        "--join", metavar="ROOM", action="append", default=[], help="a room to join; several are allowed"
    )
    parser.add_argument(
        "--type", metavar="PATTERN", action="append", help="print only these: 'chat:*'; several are allowed"
    )
    parser.add_argument(
        "--send", metavar="MESSAGE", action="append", default=[], type=_message, help="a JSON object to send first"
    )
    parser.add_argument("--count", metavar="N", type=positive_number, help="end after so many")
    parser.add_argument("--json", action="store_true", help="print JSON also on a terminal")


def _message(text: str) -> dict[str, Any]:
    import msgspec

    try:
        message: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        message = {}
    unknown = set(message) - {"type", "payload", "room", "target"}
    if not isinstance(message.get("type"), str) or unknown:
        raise argparse.ArgumentTypeError(f"""{text!r}: must be as in '{{"type": "room:join", "room": "tea"}}'""")
    return message


def _listen(arguments: argparse.Namespace) -> int:
    """Listen; return the exit code. Raises Complaint."""
    with plain_failures():
        client = made_client(arguments, reconnect=True)
        listener = _Listener(client, arguments)
        with connected(client):
            try:
                for room in arguments.join:
                    client.join(room)
                listener.wait()
            except KeyboardInterrupt:
                pass
            listener.stop()
    return listener.code()


class _Listener:
    """Prints, counts, and tells what happens to the connection. What takes a message runs in the client's thread."""

    def __init__(self, client: Client, arguments: argparse.Namespace) -> None:
        self._client = client
        self._first: list[dict[str, Any]] = arguments.send
        self._patterns: list[str] | None = arguments.type
        self._left: int | None = arguments.count
        self._printer = MessagePrinter(json=arguments.json)
        self._status = Printer(sys.stderr)
        self._done = threading.Event()
        self._complaint: str | None = None
        client.on("*", self._heard)
        client.on("system:error", lambda message: None)  # printed, so that the client need not log it
        client.on("client:state", self._state_changed)
        client.on("client:left", self._left_out)

    def wait(self) -> None:
        """Wait until there is nothing more to wait for."""
        self._done.wait()

    def stop(self) -> None:
        """Print no more, and take the end of the connection for what was wanted."""
        self._done.set()

    def code(self) -> int:
        """Return the exit code. Raises a Complaint if the server ended it."""
        if self._complaint is not None:
            raise Complaint(self._complaint, FAILED)
        return OK

    def _heard(self, message: ClientMessage) -> None:
        if self._done.is_set() or not self._is_wanted(message):
            return
        try:
            self._printer.message(message)
        except BrokenPipeError:
            end_quietly()
            self._done.set()
            return
        if self._left is not None:
            self._left -= 1
            if not self._left:
                self._done.set()

    def _is_wanted(self, message: ClientMessage) -> bool:
        if self._patterns is None:
            return not is_internal(message)
        return any(fnmatchcase(message.type, pattern) for pattern in self._patterns)

    def _state_changed(self, message: ClientMessage) -> None:
        told = message.payload
        how = printable(f"{told.get('code', '')} {told.get('reason', '')}".strip())
        if told["name"] == "open":
            self._status.line([(f"connected to {self._client.url} as {self._client.id}", "green")])
            for first in self._first:
                addressed = {"room": first.get("room"), "target": first.get("target")}
                self._client.send(first["type"], first.get("payload"), **addressed)
        elif told["name"] == "waiting":
            self._status.line([(f"connection lost: {how}; again in {told['retry_in']:.1f} s", "yellow")])
        elif told["name"] == "closed" and not self._done.is_set():
            self._complaint = f"connection closed: {how}"
            self._done.set()

    def _left_out(self, message: ClientMessage) -> None:
        told = message.payload
        complain(f"no longer in {told['room']}: {told['code']}: {told['message']}")
