"""What "nothing is lost" is tested with: nodes that can be killed, clients that remember what they heard, random seeds.

``REALTIME_RECOVERY_SEEDS`` says how many seeds are tried, ``REALTIME_RECOVERY_FIRST`` where they begin,
``REALTIME_RECOVERY_MESSAGES`` how many numbers flow in each.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from ports import free_ports
from programs import PATIENCE, Program
from python_client_rig import QUICK

from realtime import Client

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

__all__ = ["SEEDS", "Listener", "Node", "answers_late", "beside", "messages", "unexcused", "until"]

FIRST = int(os.environ.get("REALTIME_RECOVERY_FIRST", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("REALTIME_RECOVERY_SEEDS", "1")))

SERVER = '''
import json
import sys
import gevent
import gevent.event
from realtime import (
    Heartbeat, Limits, MeshOptions, MiB, NotConfirmed, PeerMeshTransport, RealtimeKernel, WebSocketTransport
)

given = json.loads(sys.argv[1])

def page(environ, start_response):
    """For browsers and for who asks without a WebSocket."""
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
    _, path, *rest = environ["PATH_INFO"].split("/")
    if path == "flow":
        room, first, last = rest
        say(int(first), int(last), room)
    elif path == "nodes":
        return [str(len(mesh.nodes())).encode()]
    return [b"<!doctype html><title>empty</title><link rel='icon' href='data:,'>"]

mesh = PeerMeshTransport(
    given["mesh_port"], node_id=given["name"], peers=given["peers"], options=MeshOptions(**given["mesh"])
)
sockets = WebSocketTransport(
    given["port"], "/realtime", app=page, allowed_origins="*", heartbeat=Heartbeat(interval=0.5, timeout=given["pong"])
)
history = {"history": 64 * MiB, "history_room": 32 * MiB}  # for 100,000 messages
waiting = {} if given["waiting"] is None else {"outbox": given["waiting"], "session_buffer": given["waiting"]}
kernel = RealtimeKernel([sockets, mesh], limits=Limits(session_grace=given["grace"], **history, **waiting))
kernel.rooms.configure("kept:*", join=True, history=given["history"], ttl=600.0, recover=True)
kernel.presence.configure(update=True)
notes = []

def say(first, last, room):
    for number in range(first, last):
        kernel.broadcast({"type": "number", "payload": number}, room)
        if number % 20 == 0:
            gevent.sleep(0.005)

@kernel.on("flow")
def flow(message, context, toolkit):
    say(*message.payload, message.room)

@kernel.on("publish")
def publish(message, context, toolkit):
    """Return whether every node with members has the numbers."""
    first, last = message.payload
    for number in range(first, last):
        try:
            kernel.broadcast({"type": "number", "payload": number}, message.room, confirm=number == last - 1, timeout=2)
        except NotConfirmed:
            return False
    return True

@kernel.on("direct")
def direct(message, context, toolkit):
    for number in range(message.payload["count"]):
        kernel.send(message.payload["to"], {"type": "direct", "payload": number})
        gevent.sleep(0.005)

@kernel.on("note")
def note(message, context, toolkit):
    notes.append(message.payload)

@kernel.on("notes")
def all_notes(message, context, toolkit):
    return notes

@kernel.on("quiz")
def quiz(message, context, toolkit):
    return toolkit.call(context.id, {"type": "question"}, timeout=600)

@kernel.on("members")
def members(message, context, toolkit):
    return kernel.rooms.members(message.room)

@kernel.on("nodes")
def nodes(message, context, toolkit):
    return len(mesh.nodes())

kernel.start()
print(f"ports {sockets.port} {mesh.port}", flush=True)
gevent.event.Event().wait()  # until it is killed
'''


def messages(shortly: int) -> int:
    """Return how many numbers flow: ``shortly`` unless the environment says more."""
    return int(os.environ.get("REALTIME_RECOVERY_MESSAGES", shortly))


class Node:
    """A server in a process of its own, that comes back at the same address. Use as a context manager.

    :param folder: for its program.
    :param peers: the nodes that it dials: ``node.peer`` of each.
    :param history: the number of messages that its rooms keep.
    :param grace: seconds that a session waits for its client.
    :param pong: seconds until a client that does not answer a ping is gone.
    :param waiting: bytes that may wait for a client that is away; as many as by default if not given.
    :param mesh: options of the mesh.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "n0",
        peers: Sequence[str] = (),
        history: int = 10_000,
        grace: float = 600.0,
        pong: float = PATIENCE,
        waiting: int | None = None,
        mesh: dict[str, Any] | None = None,
    ) -> None:
        self._script = folder / "server.py"
        self._script.write_text(SERVER)
        self._given = {"name": name, "history": history, "grace": grace, "pong": pong}
        self._given |= {"waiting": waiting, "mesh": mesh or {}}
        self._program: Program | None = None
        self.peers = peers
        self.port, self.mesh_port = free_ports(2)  # the same when it is started again, which nobody else may have then

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/realtime"

    @property
    def peer(self) -> str:
        """Its address in the mesh."""
        return f"127.0.0.1:{self.mesh_port}"

    @property
    def alive(self) -> bool:
        return self._program is not None

    def start(self) -> Node:
        """Start it, or start it again; blocks until it listens. Return it."""
        given = {**self._given, "port": self.port, "mesh_port": self.mesh_port, "peers": self.peers}
        program = Program(self._script, json.dumps(given))
        try:
            found = program.wait_for(r"ports (\d+) (\d+)")
        except AssertionError:
            program.__exit__(None, None, None)
            raise
        self.port, self.mesh_port = int(found[1]), int(found[2])
        self._program = program
        return self

    def kill(self) -> None:
        """End it at once, if it lives."""
        program, self._program = self._program, None
        if program is not None:
            program.stop(signal.SIGKILL)
            program.__exit__(None, None, None)

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.kill()


class Listener:
    """A Python client, and what it was told of a room, in order: numbers, and what ``client:recovered`` says."""

    def __init__(self, port: int, **options: Any) -> None:
        self.client = Client(
            f"ws://127.0.0.1:{port}/realtime", **{"timeout": 10 * PATIENCE, "backoff": QUICK, **options}
        )
        self.heard: list[int | dict[str, Any]] = []
        self.client.on("number", lambda message: self.heard.append(message.payload))
        self.client.on("client:recovered", lambda message: self.heard.append(message.payload))

    def __enter__(self) -> Listener:
        beside(self.client.connect, retry=True)
        return self

    def __exit__(self, *error: object) -> None:
        beside(self.client.close)

    @property
    def numbers(self) -> list[int]:
        return [one for one in self.heard if isinstance(one, int)]

    @property
    def recoveries(self) -> list[dict[str, Any]]:
        return [one for one in self.heard if isinstance(one, dict)]

    @property
    def last(self) -> int:
        """The newest number."""
        return next((one for one in reversed(self.heard) if isinstance(one, int)), -1)

    def has(self, number: int) -> bool:
        return self.last >= number


def unexcused(heard: list[Any], sure: set[int]) -> str | None:
    """Return what is wrong with what a client heard: all that is sure came once and in order, or its loss was told at
    that very place."""
    last, excused = -1, False
    for place, one in enumerate(heard):
        if isinstance(one, dict):
            excused = excused or not one["recovered"]
            continue
        around = heard[max(0, place - 5) : place + 5]
        if one <= last:
            return f"{one} comes late: {around}"
        missing = sure.intersection(range(last + 1, one))
        if missing and not excused:
            return f"{len(missing)} numbers before {one} are missing, untold: {around}"
        last, excused = one, False
    return None


def answers_late(connection: ServerConnection) -> None:
    """A server of the websockets library: what it answers to ``system:join`` is overtaken by a message of the room,
    unless that is what it replays."""
    for text in connection:
        asked = json.loads(text)
        if asked["type"] == "system:hello":
            connection.send(json.dumps({"type": "system:welcome", "payload": {"id": "you"}}))
            continue
        since = (asked.get("payload") or {}).get("since")
        result = {"room": "tea", "cursor": "at the answer"}
        if since is not None:
            result |= {"recovered": True, "replayed": 1 if since == "replay" else 0, "more": False}
        connection.send(json.dumps({"type": "number", "room": "tea", "payload": 1, "cursor": "at the message"}))
        connection.send(json.dumps({"type": "system:ack", "payload": {"ack": asked["ack"], "result": result}}))


def beside(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call what blocks in a thread, while the greenlets go on in this one."""
    return gevent.get_hub().threadpool.apply(function, arguments, options)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a state that nothing announces."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        gevent.sleep(0.005)
