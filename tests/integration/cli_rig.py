"""The command line in a process of its own, with a client that is not ours."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from programs import PATIENCE, Program
from requirements import module
from tls_peer import TLSPeer

from realtime.cli import main

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = [
    "ASKED",
    "KERNEL",
    "SOCKET",
    "Terminal",
    "app",
    "ask",
    "connect",
    "receive",
    "run",
    "said_by",
    "send",
    "served",
    "serving",
]

SOCKET = r"(wss?://127\.0\.0\.1:(\d+)/\S*)"
KERNEL = """
from realtime import RealtimeKernel, WebSocketTransport

kernel = RealtimeKernel([WebSocketTransport(port=0, path="/realtime")])
"""


def app(folder: Path, text: str, name: str = "app") -> Path:
    """Write a module; return the folder to start the command in."""
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".new")
    written.write_text(textwrap.dedent(text))
    written.replace(path)  # in one step: who watches the file must not find it empty
    return folder


def serving(folder: Path, target: str = "app:kernel", *options: str) -> Program:
    """Start ``realtime serve``."""
    return Program(Path("-m"), "realtime", "serve", target, *options, cwd=folder)


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``realtime`` to its end."""
    command = [sys.executable, "-m", "realtime", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


def said_by(*arguments: str) -> tuple[int, str]:
    """Run ``realtime`` in this process; return its exit code and what it says on stderr.

    A tenth of the time of a process of its own, for what goes wrong and has no terminal, signal or pipe in it.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, said.getvalue()


def connect(url: str, **options: Any) -> ClientConnection:
    made: ClientConnection = module("websockets.sync.client").connect(url, open_timeout=PATIENCE, **options)
    return made


def send(client: ClientConnection | TLSPeer, type_: str) -> None:
    client.send(json.dumps({"type": type_, "ack": type_}))


def receive(client: ClientConnection | TLSPeer) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(client.recv(timeout=PATIENCE))
    return message


def ask(client: ClientConnection | TLSPeer, type_: str) -> Any:
    """Send a message and return its ack's result; the next message must be the ack."""
    send(client, type_)
    message = receive(client)
    assert message["type"] == "system:ack", message
    return message["payload"].get("result")


class Terminal:
    """``realtime`` with a terminal of its own, whose Ctrl-C it gets.

    :param arguments: of the command.
    :param environment: what differs from the tests' own; None takes a variable away.
    """

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str | None] | None = None) -> None:
        self._data = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        changed = {"TERM": "xterm-256color", "NO_COLOR": None, **(environment or {})}
        inherited = {name: value for name, value in os.environ.items() if name not in changed}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "realtime", *arguments],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**inherited, **{name: value for name, value in changed.items() if value is not None}},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    @property
    def text(self) -> str:
        """What was printed so far, control sequences included."""
        return self._data.decode(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first match in all that was printed."""
        while (found := re.search(pattern, self.text)) is None:
            if not self._read():
                raise AssertionError(f"it ended without {pattern!r}: {self.text!r}")
        return found

    def _read(self) -> bool:
        poller = select.poll()
        poller.register(self._master, select.POLLIN)
        if not poller.poll(PATIENCE * 1000):
            raise AssertionError(f"nothing came after {self.text!r}")
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the program has ended
            return False
        self._data += data
        return bool(data)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._master, b"\x03")

    def end(self) -> int:
        """Read on until it ends; return the exit code."""
        while self._read():
            pass
        return self._process.wait(PATIENCE)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)


ASKED = f"""
{KERNEL}
import time

kernel.rooms.configure("tea*", join=True)

@kernel.on("echo")
def echo(message, context, toolkit):
    return [message.payload, message.room, message.target]

@kernel.on("count")
def count(message, context, toolkit):
    try:
        for number in range(message.payload or 1_000_000):
            yield number
            if not message.payload:
                time.sleep(0.01)  # or who is kept from reading for a moment has missed too much
    finally:
        toolkit.broadcast({{"type": "count:ended"}})
    return "done"

@kernel.on("refuse")
def refuse(message, context, toolkit):
    from realtime import Reject
    raise Reject("not today\x1b[31m", code="closed_on_mondays")

@kernel.on("say")
def say(message, context, toolkit):
    toolkit.rooms.broadcast({{"type": "said", "payload": message.payload}}, message.room)

@kernel.on("wait")
def wait(message, context, toolkit):
    toolkit.broadcast({{"type": "waiting"}})
    toolkit.wait_for("never")

@kernel.on("ready")
def ready(message, context, toolkit):
    toolkit.reply("you are welcome")

@kernel.on("members")
def members(message, context, toolkit):
    return len(kernel.rooms.members(message.room))

@kernel.on("close all")
def close_all(message, context, toolkit):
    for client in kernel.rooms.members(message.room):
        kernel.disconnect(client, message.payload)
"""
"""An application for clients of the command line to talk to."""


@contextlib.contextmanager
def served(folder: Path, text: str = ASKED, *options: str) -> Iterator[str]:
    """Serve an application; yield its address."""
    with serving(app(folder, text), "app", *options) as program:
        yield program.wait_for(SOCKET)[1]
        program.stop()
