"""Servers that people have, as real processes that host the kernel; and how tests watch them."""

from __future__ import annotations

import json
import re
import signal
import ssl
import time
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import websockets.sync.client
from programs import PATIENCE, Program, complain_of_faults
from requirements import module
from tls_peer import TLSPeer

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = ["GEVENT_WEBSOCKET", "HERE", "Host", "ask", "gunicorn", "start", "stop", "until"]

HERE = Path(__file__).parent
AT = r"(https?)://(127\.0\.0\.1:\d+)"
GEVENT_WEBSOCKET = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"


def gunicorn(worker: str, *options: str, app: str = "hosted_app") -> list[str]:
    # a request that a starved client sends late is waited for: gunicorn gives up after 2 s otherwise
    options += ("--keep-alive", "60")
    return ["gunicorn", "-k", worker, *options, "-b", "127.0.0.1:0", "--no-control-socket", f"{app}:application"]


class Host:
    """A running server with its application.

    :param trust: what its certificate is checked with, if it has one.
    """

    def __init__(self, name: str, program: Program, trust: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.program = program
        self.trust = trust
        scheme, self.address = program.wait_for(AT).groups()
        assert (scheme == "https") == (trust is not None)
        self.port = int(self.address.split(":")[1])

    def connect(self, query: str = "", **options: Any) -> ClientConnection:
        options = {"max_size": None, "open_timeout": PATIENCE, "compression": None, **options}
        return websockets.sync.client.connect(f"ws://{self.address}/realtime{query}", **options)

    def connect_encrypted(self, query: str = "") -> TLSPeer:
        assert self.trust is not None
        url = f"wss://{self.address}/realtime{query}"
        return TLSPeer(url, self.trust, max_size=None, open_timeout=PATIENCE, compression=None)

    def get(self, path: str) -> bytes:
        url = f"{'https' if self.trust else 'http'}://{self.address}{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE, context=self.trust) as answer:
            content: bytes = answer.read()
            return content

    def workers(self) -> set[int]:
        """The processes that have loaded the application, and live."""
        found = re.findall(r"loaded by process (\d+)", "".join(self.program.output))
        return {int(pid) for pid in found if Path(f"/proc/{pid}").exists()}

    def await_workers(self, count: int, *, without: Collection[int] = ()) -> None:
        """Wait for so many; gunicorn forgets a signal that comes while a worker has not got so far."""
        until(lambda: len(self.workers().difference(without)) == count, lambda: "".join(self.program.output))


def start(command: list[str], *, own_session: bool = False) -> Program:
    module(command[0])
    module("geventwebsocket")
    return Program("-m", *command, cwd=HERE, own_session=own_session)


def stop(program: Program) -> None:
    """It ends in order, and has nothing to complain of."""
    code = program.stop(signal.SIGTERM)
    output = program.await_silence()
    assert code in (0, -signal.SIGTERM), output  # Flask's server leaves SIGTERM to the system
    complain_of_faults(output, "Traceback")


def ask(client: ClientConnection | TLSPeer, type_: str, payload: Any = None, **fields: Any) -> Any:
    """Return what the handler returned; messages that come before are passed over."""
    client.send(json.dumps({"type": type_, "payload": payload, "ack": "asked", **fields}))
    while True:
        message = json.loads(client.recv(timeout=PATIENCE))
        if message["type"] in ("system:ack", "system:error") and message["payload"]["ack"] == "asked":
            assert message["type"] == "system:ack", message
            return message["payload"].get("result")


def until(done: Callable[[], bool], told: Callable[[], object] = str) -> None:
    """Wait; ``told()`` is shown if it does not come to that."""
    deadline = time.monotonic() + 2 * PATIENCE
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come to that: {told()}")
        time.sleep(0.02)
