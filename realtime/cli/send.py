"""``realtime send``: one message, or a line of standard input each."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from realtime.cli.common import OK, add_command, end_quietly
from realtime.cli.connecting import add_client_options, connected, made_client, payload, plain_failures, seconds
from realtime.cli.terminal import MessagePrinter, is_internal

if TYPE_CHECKING:
    from realtime.cli.common import Commands
    from realtime.client import Client, ClientMessage

__all__ = ["add"]

STDIN = "-"

_DESCRIPTION = """\
Connects, sends a message and closes. PAYLOAD is JSON, or else sent as the text it is; - sends a message for each line
of standard input. With --ack every message is waited for, and what its handler returns or yields is printed.
"""
_EXAMPLES = """\
examples:
  realtime send ws://localhost:8080/realtime chat:message hello --room tea
  realtime send ws://localhost:8080/realtime order:create '{"pizza": 7}' --ack
  realtime send ws://localhost:8080/realtime log:tail --ack | head        one line for each item of a stream
  realtime send ws://localhost:8080/realtime price - --room EUR < prices.txt
  realtime send wss://example.org/realtime ping --ack --header 'Authorization: Bearer abc'

Without --ack nobody knows what the server makes of it; --wait shows what it sends back.

exit codes: 0 sent, and acknowledged if asked for; 1 no connection, refused, or no answer in time; 130 Ctrl-C
"""


def add(commands: Commands) -> None:
    """Put the command on the command line."""
    parser = add_command(
        commands, "send", _send, summary="send a message to a server", description=_DESCRIPTION, examples=_EXAMPLES
    )
    add_client_options(parser)
    parser.add_argument("type", metavar="TYPE", help="such as chat:message")
    parser.add_argument("payload", metavar="PAYLOAD", nargs="?", help="JSON, text, or - for standard input")
    parser.add_argument("--room", help="the message's room")
    parser.add_argument("--target", metavar="ID", action="append", help="the id of a client; several are allowed")
    parser.add_argument("--ack", action="store_true", help="wait for the acknowledgement and print its result")
    parser.add_argument("--wait", metavar="SECONDS", type=seconds, help="print what comes back for so long")
    parser.add_argument("--json", action="store_true", help="print JSON also on a terminal")


def _send(arguments: argparse.Namespace) -> int:
    """Send; return the exit code. Raises Complaint."""
    printer = MessagePrinter(json=arguments.json)
    with plain_failures():
        client = made_client(arguments, reconnect=False)
        client.on("system:error", _shown_elsewhere)
        if arguments.wait is not None:
            client.on("*", lambda message: _show(printer, message))
        with connected(client):
            for value in _payloads(arguments.payload):
                _send_one(client, arguments, value, printer)
            if arguments.wait is not None:
                time.sleep(arguments.wait)
    return OK


def _payloads(text: str | None) -> Iterator[Any]:
    if text == STDIN:
        for line in sys.stdin:
            yield payload(line.rstrip("\r\n"))
    else:
        yield None if text is None else payload(text)


def _send_one(client: Client, arguments: argparse.Namespace, value: Any, printer: MessagePrinter) -> None:
    target = arguments.target[0] if arguments.target and len(arguments.target) == 1 else arguments.target
    if not arguments.ack:
        client.send(arguments.type, value, room=arguments.room, target=target)
        return
    answer = client.stream(arguments.type, value, room=arguments.room, target=target)
    try:
        while True:
            printer.value(next(answer))
    except StopIteration as ended:
        if ended.value is not None:
            printer.value(ended.value)
    finally:
        answer.close()  # when nobody reads on, the server need not go on


def _show(printer: MessagePrinter, message: ClientMessage) -> None:
    if not is_internal(message):
        try:
            printer.message(message)
        except BrokenPipeError:
            end_quietly()


def _shown_elsewhere(_message: ClientMessage) -> None:
    """The client logs errors that nobody handles; ``*`` prints them, or nobody wanted to know."""
