"""Live presence through real sockets, to the PyPI library ``websockets``."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from requirements import module

from realtime import Limits, RealtimeKernel, WebSocketTransport
from realtime.testing.presence_view import PresenceView

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import InThread

PATIENCE = 60.0  # seconds any wait may take before the test fails


def name_of(request: Any) -> str:
    """Whoever says a name has it."""
    return str(request.headers.get("x-name", ""))


def until(client: Any, view: PresenceView, condition: Callable[[PresenceView], bool]) -> None:
    """In a thread: apply what a client receives until something holds."""
    while not condition(view):
        message = json.loads(client.recv(timeout=PATIENCE))
        if message["type"] != "system:ack":
            assert message["room"] == "tea"
            view.take(message["type"], message["payload"])


def reset(client: Any) -> None:
    """End a connection as a phone in a tunnel may: with RST, and no close frame."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.shutdown(socket.SHUT_RD)
    client.socket.close()


def test_people_come_and_go_however_their_connections_do(in_thread: InThread) -> None:
    connect = module("websockets.sync.client").connect
    transport = WebSocketTransport(port=0, path="/realtime", authenticate=name_of)
    kernel = RealtimeKernel([transport], log_level="error", limits=Limits(presence_quiet=0.01, presence_busy=0.02))
    kernel.rooms.configure("*", join=True, presence=True)
    kernel.start()
    join = json.dumps({"type": "system:join", "room": "tea"})

    def watch(stack: ExitStack) -> None:
        url = f"ws://127.0.0.1:{transport.port}/realtime"
        people: dict[str, Any] = {}
        for name in ("", "ada", "ada", "ben"):
            headers = {"X-Name": name} if name else {}
            client = stack.enter_context(
                connect(url, additional_headers=headers, open_timeout=PATIENCE, close_timeout=PATIENCE)
            )
            client.send(join)
            people[name + "'s second" * (name in people)] = client
        watcher, view = people.pop(""), PresenceView("tea")
        until(watcher, view, lambda view: len(view.clients) == 4)
        assert (view.presences or {}).keys() >= {"ada", "ben"}
        assert view.total == 3
        people["ben"].close()
        until(watcher, view, lambda view: view.leaves == ["ben"])
        reset(people["ada"])
        until(watcher, view, lambda view: len(view.clients) == 2)
        assert view.leaves == ["ben"]
        reset(people["ada's second"])
        until(watcher, view, lambda view: view.leaves == ["ben", "ada"])

    def watch_and_close() -> None:
        with ExitStack() as stack:
            watch(stack)

    try:
        in_thread(watch_and_close)
    finally:
        kernel.stop(5)
