"""Ten thousand joins and leaves through everything that remembers clients or rooms: in the end nothing is kept."""

from __future__ import annotations

import gc
import time
from collections import Counter
from typing import Any

import pytest

from realtime import Limits, RealtimeKernel
from realtime.connection import Connection
from realtime.history import History
from realtime.lanes import Turn
from realtime.message import Outbound
from realtime.outbox import Outbox
from realtime.presence_diff import RoomPresence
from realtime.room_log import RoomLog
from realtime.session_line import Line, Session
from realtime.session_ring import Ring
from realtime.testing import KernelTest
from realtime.testing.peers import wait_until
from realtime.toolkit import Toolkit

CLIENTS = 1000
ROUNDS = 10
TTL = 600.0  # the test moves the clock; until then nothing expires
KEPT = (Connection, Line, Outbound, Outbox, Ring, RoomLog, RoomPresence, Session, Turn)
FAST = Limits(presence_quiet=0.005, presence_busy=0.01, session_grace=0.2)


def alive() -> Counter[str]:
    """Count the objects of these kinds."""
    gc.collect()
    found: Counter[str] = Counter()
    for one in gc.get_objects():
        for kind in KEPT:
            if isinstance(one, kind):
                found[kind.__name__] += 1
    return found


def remembered(kernel: RealtimeKernel) -> dict[str, int]:
    """Return the sizes of all that grows with clients and rooms."""
    hub = kernel.hub
    holders: dict[str, Any] = {
        "hub": hub,
        "rooms": hub.rooms,
        "presence": hub.presence,
        "live presence": hub.live_presence,
        "history": hub.history,
        "holds": hub.history.holds,
        "sessions": hub.sessions,
        "arrivals": hub.sessions.arrivals,
        "departures": hub.sessions.departures,
        "lanes": hub._lanes,
    }
    sizes = {}
    for label, holder in holders.items():
        for name, value in vars(holder).items():
            if isinstance(value, (dict, list, set)) and not isinstance(value, Counter):
                sizes[f"{label}.{name}"] = len(value)
    return sizes


def test_after_ten_thousand_joins_and_leaves_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = RealtimeKernel(log_level="error", limits=FAST)
    kernel.rooms.configure("chat:*", join=True, history=20, ttl=TTL, recover=True, presence=True)
    kernel.rooms.configure("*", join=True)
    moved: list[int] = []

    @kernel.on("move", serial="room")
    def move(message: Any, context: Any, toolkit: Toolkit) -> None:
        moved.append(message.payload)
        if message.payload % 5 == 0:
            toolkit.rooms.broadcast({"type": "moved", "payload": message.payload}, message.room)

    with KernelTest(kernel) as rig:
        before, at_rest = alive(), remembered(kernel)
        for turn in range(ROUNDS):
            clients = [rig.connect(identity=f"user {number % 300}") for number in range(CLIENTS)]
            for number, client in enumerate(clients):
                room = f"chat:{number % 50}" if number % 2 else f"plain:{number % 50}"
                if number % 3 == 0:
                    client.send({"type": "system:hello", "payload": {"session": True}})
                client.send({"type": "system:join", "room": room, "ack": 1})
                client.send({"type": "move", "room": room, "payload": turn * CLIENTS + number})
            rig.settle(20)
            for number, client in enumerate(clients):
                if number % 4 == 0:
                    client.send({"type": "system:leave", "room": f"plain:{number % 50}", "ack": 2})
                    rig.settle(20) if number % 100 == 0 else None
            rig.settle(20)
            for number, client in enumerate(clients):
                client.kill() if number % 2 else client.close()
            del clients, client
        assert len(moved) == ROUNDS * CLIENTS
        wait_until(lambda: not kernel.hub.connections, 20)
        assert kernel.stats()["counters"]["sessions_expired"] > 0
        assert kernel.stats()["history"]["messages"] > 0
        _pass_time(kernel.hub.history)
        assert kernel.stats()["history"] == {"rooms": 0, "messages": 0, "bytes": 0}
        wait_until(lambda: kernel.stats()["presence"] == {"watched_rooms": 0, "watchers": 0}, 20)
        assert kernel.stats()["lanes"] == {"held": 0, "waiting": 0}
        now = remembered(kernel)
        grown = {name: size for name, size in now.items() if size > at_rest[name]}
        assert grown == {}
        wait_until(lambda: not alive() - before, 20)


def _pass_time(history: History) -> None:
    """Let all that is kept be older than it may be."""
    for _ in range(2):
        history.sweep(time.time() + 3 * TTL)
