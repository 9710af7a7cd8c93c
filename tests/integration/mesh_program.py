"""One node in a process of its own: does what each line on its standard input asks, and answers with a line.

A question is ``{"id", "do", ...}`` in JSON, an answer ``{"id", "result"}`` or ``{"id", "error"}``. Questions are
answered in greenlets of their own. The first line is said by the program: where it listens.
"""

from __future__ import annotations

import ast
import json
import sys
import traceback
from typing import Any

import gevent
from gevent.fileobject import FileObjectPosix

from realtime import MeshOptions, PeerMeshTransport, RealtimeKernel, WebSocketTransport
from realtime.errors import NotConfirmed
from realtime.protocols.mesh_filters import RouteFilter
from realtime.testing import MemoryTransport
from realtime.transports.mesh_tls import MeshTLS


class Seen:
    """What one client got: numbers by sender, and what was wrong with them."""

    def __init__(self) -> None:
        self.others: list[Any] = []
        self.counts: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._gaps: dict[str, list[list[int]]] = {}
        self._repeated: dict[str, int] = {}

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] != "number":
            self.others.append([message["type"], message.get("payload")])
            return
        sender, number = message["payload"][:2]
        last = self._last.get(sender, -1)
        self.counts[sender] = self.counts.get(sender, 0) + 1
        if number <= last:
            self._repeated[sender] = self._repeated.get(sender, 0) + 1
            return
        if number > last + 1:
            self._gaps.setdefault(sender, []).append([last + 1, number - 1])
        self._last[sender] = number

    def summary(self) -> dict[str, Any]:
        return {
            sender: {
                "count": count,
                "last": self._last[sender],
                "gaps": self._gaps.get(sender, []),
                "repeated": self._repeated.get(sender, 0),
            }
            for sender, count in self.counts.items()
        }


class Program:
    """The node, its clients, and the questions it answers: each method without an underscore."""

    def __init__(self, options: dict[str, Any]) -> None:
        mesh = options["mesh"]
        mesh["options"] = MeshOptions(**mesh.get("options", {}))
        if "tls" in mesh:
            mesh["tls"] = MeshTLS(**mesh["tls"])
        if "routes" in mesh:
            mesh["routes"] = {pattern: RouteFilter(*chosen) for pattern, chosen in mesh["routes"].items()}
        self._mesh = PeerMeshTransport(**mesh)
        self._memory = MemoryTransport()
        self._sockets = WebSocketTransport(port=0, heartbeat=None)  # also for a client that never reads
        self._kernel = RealtimeKernel([self._memory, self._sockets, self._mesh], log_level="warning")
        self._clients: dict[str, Any] = {}
        self._seen: dict[str, Seen] = {}
        self._events: list[Any] = []
        self._streams: list[gevent.Greenlet[..., None]] = []
        for event in ("joined", "left", "suspect", "recovered", "client-connected", "client-disconnected"):
            self._kernel.on(f"mesh:{event}", self._note)
        self._kernel.on("join", lambda message, context, toolkit: toolkit.rooms.join(message.room))
        self._kernel.on(
            "say",
            lambda message, context, toolkit: toolkit.rooms.broadcast(
                {"type": "said", "payload": message.payload}, message.room, except_self=True
            ),
        )
        self._kernel.on(
            "tell",
            lambda message, context, toolkit: toolkit.send(
                message.target, {"type": "told", "payload": message.payload}
            ),
        )
        self._kernel.on(
            "ask",
            lambda message, context, toolkit: toolkit.call(
                message.target, {"type": "question", "payload": message.payload}
            ),
        )

    def _note(self, message: Any, context: Any, toolkit: Any) -> None:
        self._events.append([message.type.removeprefix("mesh:"), message.payload])

    def start(self) -> dict[str, Any]:
        self._kernel.start()
        return {"address": self._mesh.address, "port": self._mesh.port, "sockets": self._sockets.port}

    # Clients ---------------------------------------------------------------------------------------------

    def connect(self, name: str, room: str | None = None, metadata: dict[str, Any] | None = None) -> str:
        client = self._memory.connect(metadata=metadata)
        self._clients[name] = client
        self._seen[name] = Seen()
        gevent.spawn(self._read, client, self._seen[name])
        if room is not None:
            self._kernel.rooms.join(room, client.id)
        return client.id  # type: ignore[no-any-return]

    def _read(self, client: Any, seen: Seen) -> None:
        while not client.closed:
            try:
                message = client.receive(timeout=3600)
            except Exception:
                return
            seen.take(message)
            if message["type"] == "question":
                client.answer(message, {"heard": message["payload"]})

    def close(self, name: str) -> None:
        self._clients.pop(name).close()

    def seen(self, name: str) -> dict[str, Any]:
        return self._seen[name].summary()

    def others(self, name: str) -> list[Any]:
        return self._seen[name].others

    # The kernel ------------------------------------------------------------------------------------------

    def view(self) -> dict[str, Any]:
        rooms = self._kernel.rooms
        return {
            "clients": {entry["id"]: entry["metadata"] for entry in self._kernel.presence.list(limit=1000)},
            "rooms": {room: sorted(rooms.members(room)) for room in sorted(rooms.list())},
            "nodes": sorted([self._mesh.node_id, *(node.id for node in self._mesh.nodes())]),
            "unlinked": [node.id for node in self._mesh.nodes() if not node.linked or node.state != "up"],
        }

    def stream(self, sender: str, room: str, first: int, count: int, pause: float = 0.0, every: int = 100) -> None:
        """Send numbers to a room, in the background."""
        self._streams.append(gevent.spawn(self._send_numbers, sender, room, first, count, pause, every))

    def _send_numbers(self, sender: str, room: str, first: int, count: int, pause: float, every: int) -> None:
        for number in range(first, first + count):
            self._kernel.broadcast({"type": "number", "payload": [sender, number]}, room)
            if number % every == 0:
                gevent.sleep(pause)

    def streamed(self) -> bool:
        """Whether all streams have ended."""
        return all(stream.ready() for stream in self._streams)

    def broadcast(self, type: str, payload: Any, room: str | None) -> int:
        return self._kernel.broadcast({"type": type, "payload": payload}, room)

    def confirm(self, room: str, timeout: float) -> dict[str, Any]:
        try:
            return {"count": self._kernel.broadcast({"type": "sure"}, room, confirm=True, timeout=timeout)}
        except NotConfirmed as error:
            return {"missing": sorted(error.nodes), "delivered": error.delivered}

    def send(self, client: str, payload: Any) -> None:
        self._kernel.send(client, {"type": "note", "payload": payload})

    def call(self, client: str, payload: Any, timeout: float = 60.0) -> Any:
        return self._kernel.call(client, {"type": "question", "payload": payload}, timeout=timeout)

    def events(self) -> list[Any]:
        return self._events

    def counters(self) -> dict[str, int]:
        return {**self._kernel.stats()["counters"], **self._mesh.stats()["counters"]}

    def memory(self) -> int:
        """The bytes that this process occupies."""
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def stop(self) -> None:
        self._kernel.stop(5)


def main() -> None:
    """Serve until the input ends."""
    program = Program(ast.literal_eval(sys.argv[1]))

    def say(answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    def do(question: dict[str, Any]) -> None:
        id_, name = question.pop("id"), question.pop("do")
        try:
            say({"id": id_, "result": getattr(program, name)(**question)})
        except Exception as error:
            traceback.print_exc()
            say({"id": id_, "error": f"{type(error).__name__}: {error}"})

    say(program.start())
    for line in FileObjectPosix(sys.stdin.fileno(), "rb", close=False):
        gevent.spawn(do, json.loads(line))


if __name__ == "__main__":
    main()
