"""The command line in a process of its own, with a client that is not ours."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from programs import PATIENCE, Program
from requirements import module

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = ["KERNEL", "SOCKET", "app", "ask", "connect", "receive", "run", "send", "serving"]

SOCKET = r"(wss?://127\.0\.0\.1:(\d+)/\S*)"
KERNEL = """
from realtime import RealtimeKernel, WebSocketTransport

kernel = RealtimeKernel([WebSocketTransport(port=0, path="/realtime")])
"""


def app(folder: Path, text: str, name: str = "app") -> Path:
    """Write a module; return the folder to start the command in."""
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
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


def connect(url: str, **options: Any) -> ClientConnection:
    made: ClientConnection = module("websockets.sync.client").connect(url, **options)
    return made


def send(client: ClientConnection, type_: str) -> None:
    client.send(json.dumps({"type": type_, "ack": type_}))


def receive(client: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(client.recv(timeout=PATIENCE))
    return message


def ask(client: ClientConnection, type_: str) -> Any:
    """Send a message and return its ack's result; the next message must be the ack."""
    send(client, type_)
    message = receive(client)
    assert message["type"] == "system:ack", message
    return message["payload"].get("result")
