"""What the Python client is tested against: a server of ours in a process of its own, or any other in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from programs import PATIENCE, Program
from requirements import module

from realtime.client import Backoff, Client, ClientState

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

__all__ = ["QUICK", "States", "raw_server", "start_server", "websockets_server"]

QUICK = Backoff(min=0.05, max=0.2)

SERVER = '''
import itertools
import sys
from realtime import CallFailed, Heartbeat, Limits, MiB, RealtimeKernel, Reject, WebSocketTransport

port, interval, timeout, *files = sys.argv[1:]

def authenticate(request):
    name = request.headers.get("x-name", "nobody")
    if name == "mallory":
        raise Reject("not you", status=401)
    return name

transport = WebSocketTransport(
    int(port), "/realtime", authenticate=authenticate, tls=tuple(files) or None,
    heartbeat=Heartbeat(interval=float(interval), timeout=float(timeout)),
)
kernel = RealtimeKernel([transport], limits=Limits(message_size=8 * MiB, outbox=16 * MiB))
kernel.presence.configure(update=True)
kernel.rooms.configure("open:*", join=True)
kernel.rooms.configure("first visit", join=lambda context, room: not visited.append(context.id) and len(visited) == 1)
visited = []
notes = []

@kernel.on("echo")
def echo(message, context, toolkit):
    return {"payload": message.payload, "room": message.room, "target": message.target}

@kernel.on("payload")
def payload(message, context, toolkit):
    return message.payload

@kernel.on("who")
def who(message, context, toolkit):
    return [context.id, context.identity]

@kernel.on("refuse")
def refuse(message, context, toolkit):
    raise Reject("not today", code=message.payload)

@kernel.on("fail")
def fail(message, context, toolkit):
    raise RuntimeError("inside")

@kernel.on("count")
def count(message, context, toolkit):
    yield from range(message.payload)
    return "counted"

@kernel.on("count:break")
def count_break(message, context, toolkit):
    yield from range(message.payload)
    raise Reject("no further", code="tired")

@kernel.on("count:forever")
def count_forever(message, context, toolkit):
    try:
        for number in itertools.count():
            yield number
            toolkit.wait_for("go", timeout=60)
    finally:
        notes.append("ended")

@kernel.on("hang")
def hang(message, context, toolkit):
    print("hanging", flush=True)
    toolkit.wait_for("go on", timeout=600)

@kernel.on("note")
def note(message, context, toolkit):
    notes.append(message.payload)

@kernel.on("notes")
def all_notes(message, context, toolkit):
    taken, notes[:] = notes[:], []
    return taken

@kernel.on("tell:me")
def tell_me(message, context, toolkit):
    for number in range(message.payload["times"]):
        toolkit.reply({"type": message.payload["type"], "payload": number})

@kernel.on("ask:me")
def ask_me(message, context, toolkit):
    try:
        return toolkit.call(context.id, {"type": message.payload, "payload": 20})
    except CallFailed as error:
        raise Reject(error.message, code=error.code)

@kernel.on("tell:room")
def tell_room(message, context, toolkit):
    toolkit.rooms.broadcast({"type": "told", "payload": message.payload}, message.room)

@kernel.on("close:me")
def close_me(message, context, toolkit):
    kernel.disconnect(context.id, **message.payload)

kernel.run()
'''


def start_server(
    folder: Path, port: int = 0, *, heartbeat: tuple[float, float] = (25.0, 10.0), tls: tuple[str, ...] = ()
) -> tuple[Program, int]:
    """Start the server; return it with its port. One that is started again there, or is to be missed by a client that
    tries on, needs one of ``free_ports``: the system gives any other to whoever asks next."""
    script = folder / "server.py"
    script.write_text(SERVER)
    program = Program(script, str(port), *map(str, heartbeat), *tls)
    return program, int(program.wait_for(r"wss?://127\.0\.0\.1:(\d+)/realtime")[1])


class States:
    """What a client has told of its state, and a way to wait for the next."""

    def __init__(self, client: Client) -> None:
        self.told: list[dict[str, Any]] = []
        self._taken = 0
        self._changed = threading.Condition()
        client.on("client:state", self._tell)

    def _tell(self, message: Any) -> None:
        with self._changed:
            self.told.append(message.payload)
            self._changed.notify_all()

    def next(self, name: str | ClientState) -> dict[str, Any]:
        """Return the next of this name that has not been taken; those before it are passed over."""
        with self._changed:
            while True:
                while self._taken < len(self.told):
                    self._taken += 1
                    if self.told[self._taken - 1]["name"] == name:
                        return self.told[self._taken - 1]
                assert self._changed.wait(PATIENCE), f"not {name}: {self.told}"


@contextlib.contextmanager
def websockets_server(handler: Callable[[ServerConnection], None], **options: Any) -> Iterator[str]:
    """A server of the websockets library in threads of its own; gives its address. At the end its handlers have
    ended too, as by then their clients have."""
    handling: list[threading.Thread] = []

    def handle(connection: ServerConnection) -> None:
        handling.append(threading.current_thread())
        handler(connection)

    with module("websockets.sync.server").serve(handle, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        finally:
            server.shutdown()
            thread.join()
            for one in handling:
                one.join(PATIENCE)


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket], None], *, receive_buffer: int | None = None) -> Iterator[str]:
    """Run a function with each connection in turn, in a thread of its own; gives the address. What it raises fails
    the test."""
    listener = socket.socket()
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # inherited by what is accepted
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    failures: list[BaseException] = []

    def accept() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                connection.settimeout(PATIENCE)
                try:
                    serve(connection)
                except ConnectionError:
                    pass  # the client went away
                except BaseException as error:
                    failures.append(error)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE)
    assert failures == []
