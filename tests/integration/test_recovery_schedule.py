"""Everything at once: cut, silent and wandering clients, nodes that are killed and started again, one random schedule.

Two nodes, and clients with and without a session, each on its own way to one of them. Numbers are published by either
node; a batch counts as sure once every node with members has confirmed it, and is never published again. What each
client hears must rise, and no sure number may be missing unless ``client:recovered`` says ``recovered: false`` at that
very place: which nobody may say before a node was killed, or the client was away for longer than the room keeps.

A failure names the seed. ``REALTIME_RECOVERY_SEEDS`` says how many are tried, ``REALTIME_RECOVERY_FIRST`` where
they begin, ``REALTIME_RECOVERY_MESSAGES`` how many numbers flow in each.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from cutting_proxy import CuttingProxy
from programs import PATIENCE, Program
from python_client_rig import QUICK

from realtime import Client, RealtimeError

FIRST_SEED = int(os.environ.get("REALTIME_RECOVERY_FIRST", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("REALTIME_RECOVERY_SEEDS", "1")))
MESSAGES = int(os.environ.get("REALTIME_RECOVERY_MESSAGES", "1500"))
BATCH = 20
ROOM = "kept:room"
LONG, SHORT = 100_000, 300  # messages that the room keeps

SERVER = '''
import sys
import gevent
import gevent.event
from realtime import (
    Heartbeat, Limits, MeshOptions, MiB, NotConfirmed, PeerMeshTransport, RealtimeKernel, WebSocketTransport
)

port, mesh_port, history, name, *peers = sys.argv[1:]
options = MeshOptions(ping=0.5, suspect=4.0, down=8.0, backoff=0.05, backoff_max=0.1, authentication=10.0)
mesh = PeerMeshTransport(int(mesh_port), node_id=name, peers=peers, options=options)
sockets = WebSocketTransport(int(port), "/realtime", heartbeat=Heartbeat(interval=0.5, timeout=1.0))
kernel = RealtimeKernel([sockets, mesh], limits=Limits(history=64 * MiB, history_room=32 * MiB))
kernel.rooms.configure("kept:*", join=True, history=int(history), ttl=600.0, recover=True)

@kernel.on("publish")
def publish(message, context, toolkit):
    first, last = message.payload
    for number in range(first, last):
        try:
            kernel.broadcast({"type": "number", "payload": number}, message.room, confirm=number == last - 1, timeout=2)
        except NotConfirmed:
            return False
    return True

@kernel.on("nodes")
def nodes(message, context, toolkit):
    return len(mesh.nodes())

kernel.start()
print(f"ports {sockets.port} {mesh.port}", flush=True)
gevent.event.Event().wait()
'''


class Node:
    """One of the two, which comes back at the same address."""

    def __init__(self, folder: Path, name: str, history: int) -> None:
        self._script = folder / "server.py"
        self._script.write_text(SERVER)
        self._name = name
        self._history = history
        self.port = self.mesh_port = 0
        self.alive = False
        self._program: Program | None = None

    def start(self, *peers: str) -> None:
        ports = map(str, (self.port, self.mesh_port, self._history))
        self._program = Program(self._script, *ports, self._name, *peers)
        found = self._program.wait_for(r"ports (\d+) (\d+)")
        self.port, self.mesh_port = int(found[1]), int(found[2])
        self.alive = True

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/realtime"

    def kill(self) -> None:
        self.alive = False
        if self._program is not None:
            self._program.stop(signal.SIGKILL)
            self._program.__exit__(None, None, None)
            self._program = None


class Listener:
    """A client, its way to a node, and all it was told, in order."""

    def __init__(self, nodes: list[Node], seed: int, **options: Any) -> None:
        self.node = nodes[seed % 2]
        self.label = f"{options}"
        self.proxy = CuttingProxy(lambda: self.node.port, seed=seed)
        self.client: Client
        self.heard: list[int | dict[str, Any]] = []
        self.left: list[Any] = []
        self.story: list[str] = []
        """What happened to it, for a failure to tell."""
        self._options = options

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        with self.proxy:
            url = f"ws://127.0.0.1:{self.proxy.port}/realtime"
            self.client = Client(url, timeout=10 * PATIENCE, backoff=QUICK, **self._options)
            self.client.on("number", lambda message: self.heard.append(message.payload))
            self.client.on("client:recovered", lambda message: self.heard.append(message.payload))
            self.client.on("client:left", lambda message: self.left.append(message.payload))
            self.client.on("client:state", lambda message: self.note(message.payload))
            self.client.on("client:recovered", lambda message: self.note(message.payload))
            beside(self.client.connect, retry=True)
            try:
                beside(self.client.join, ROOM)
                yield self
            finally:
                beside(self.client.close)

    def note(self, what: Any) -> None:
        self.story.append(f"{time.monotonic():.3f} after {self.last}: {what}")

    @property
    def last(self) -> int:
        return next((one for one in reversed(self.heard) if isinstance(one, int)), -1)

    @property
    def refusals(self) -> list[str]:
        """Why something could not be recovered."""
        return [one["reason"] for one in self.heard if isinstance(one, dict) and not one["recovered"]]

    def check(self, sure: set[int]) -> None:
        """Everything that is sure came once and in order, or its loss was told where it is."""
        assert self.left == []
        last, excused = -1, False
        for place, one in enumerate(self.heard):
            if isinstance(one, dict):
                excused = excused or not one["recovered"]
                continue
            assert one > last, f"{one} comes late: {self.heard[max(0, place - 5) : place + 5]}"
            missing = sure.intersection(range(last + 1, one))
            around = self.heard[max(0, place - 5) : place + 5]
            assert excused or not missing, f"{len(missing)} numbers before {one} are missing, untold: {around}"
            last, excused = one, False


class Schedule:
    """What happens, and when."""

    def __init__(self, folder: Path, seed: int, history: int) -> None:
        self.random = random.Random(seed)
        self.nodes = [Node(folder, name, history) for name in ("n0", "n1")]
        self.kills = 0
        self.sure: set[int] = set()
        self.published = 0
        self.story: list[str] = []

    def note(self, what: str) -> None:
        self.story.append(f"{time.monotonic():.3f} published {self.published}: {what}")

    def start(self, stack: ExitStack) -> None:
        first, second = self.nodes
        stack.callback(first.kill)
        stack.callback(second.kill)
        first.start()
        second.start(f"127.0.0.1:{first.mesh_port}")
        self.meet(second)

    def meet(self, node: Node) -> None:
        """Wait until a node knows the other."""
        with Client(node.url, timeout=PATIENCE) as client:
            until(lambda: beside(client.call, "nodes") == 1, "they know each other")

    # Publishing ---------------------------------------------------------------------------------------------------

    def publish_all(self) -> None:
        """Publish all numbers, by whichever node lives."""
        client: Client | None = None
        while self.published < MESSAGES:
            if client is None or self.random.random() < 0.02:
                if client is not None:
                    beside(client.close)
                client = self._speaker()
                self.note(f"published by {client.url}")
            first = self.published
            self.published = first + BATCH
            try:
                if beside(client.call, "publish", [first, first + BATCH], room=ROOM, timeout=PATIENCE):
                    self.sure.update(range(first, first + BATCH))
                else:
                    self.note(f"{first}... is not confirmed")
            except RealtimeError as error:
                self.note(f"{first}... failed: {error}")
                beside(client.close)
                client = None
            gevent.sleep(self.random.uniform(0, 0.02))
        if client is not None:
            beside(client.close)

    def _speaker(self) -> Client:
        while True:
            node = self.random.choice([node for node in self.nodes if node.alive])
            client = Client(node.url, timeout=PATIENCE, reconnect=False, session=False)
            try:
                beside(client.connect)
            except (RealtimeError, OSError):
                beside(client.close)
                continue
            return client

    # Faults -------------------------------------------------------------------------------------------------------

    def disturb(self, listeners: list[Listener], kill: bool) -> None:
        """Until all is published: something happens to a client, or to a node, every now and then."""
        kills_at = sorted(self.random.sample(range(MESSAGES // 10, MESSAGES), 1 + MESSAGES // 4000)) if kill else []
        while self.published < MESSAGES:
            gevent.sleep(self.random.uniform(0.0, 0.3))
            if kills_at and self.published >= kills_at[0]:
                kills_at.pop(0)
                self._kill_a_node(listeners)
                continue
            listener = self.random.choice(listeners)
            what = self.random.random()
            if what < 0.4:
                listener.node = self.random.choice(self.nodes)
            listener.note(f"cut: {what:.2f}, then {listener.node.url}")
            if what < 0.15:
                listener.proxy.fall_silent()
            else:
                listener.proxy.cut(silently=what < 0.4 or what > 0.9)

    def _kill_a_node(self, listeners: list[Listener]) -> None:
        node, other = self.random.sample(self.nodes, 2)
        self.kills += 1
        self.note(f"{node.url} is killed")
        node.kill()
        if self.random.random() < 0.5:
            for listener in listeners:
                listener.node = other
        gevent.sleep(self.random.uniform(0, 1.0))
        beside(node.start, f"127.0.0.1:{other.mesh_port}")
        self.note(f"{node.url} is back")
        if self.random.random() < 0.7:
            self.meet(node)


def beside(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call what blocks in a thread, while the greenlets go on in this one."""
    return gevent.get_hub().threadpool.apply(function, arguments, options)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        gevent.sleep(0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_nothing_is_missing_untold(seed: int, tmp_path: Path) -> None:
    history = SHORT if seed % 5 == 4 else LONG
    with_kills = seed % 5 != 3
    schedule = Schedule(tmp_path, seed, history)
    kinds: list[dict[str, Any]] = [{}, {"msgpack": True}, {"session": False}, {"session": False, "msgpack": True}]
    with ExitStack() as stack:
        schedule.start(stack)
        listeners = [
            stack.enter_context(Listener(schedule.nodes, seed + number, **kind).listening())
            for number, kind in enumerate(kinds)
        ]
        disturbing = gevent.spawn(schedule.disturb, listeners, with_kills)
        schedule.publish_all()
        disturbing.get(timeout=2 * PATIENCE)
        for node in schedule.nodes:
            schedule.meet(node)
        until(lambda: all(listener.client.state == "open" for listener in listeners), "all are back")
        deadline = time.monotonic() + PATIENCE
        while not all(listener.last >= schedule.published - BATCH for listener in listeners):
            assert time.monotonic() < deadline, [(one.last, schedule.published) for one in listeners]
            first = schedule.published  # once more, so that who is back hears of something
            schedule.published += BATCH
            with Client(schedule.nodes[0].url, timeout=PATIENCE) as speaker:
                if beside(speaker.call, "publish", [first, first + BATCH], room=ROOM):
                    schedule.sure.update(range(first, first + BATCH))
            gevent.sleep(0.5)
        assert len(schedule.sure) > 0
        for listener in listeners:
            try:
                listener.check(schedule.sure)
                if history == LONG:
                    assert len(listener.refusals) <= 2 * schedule.kills, listener.refusals
            except AssertionError as error:
                story = "\n".join(sorted([*schedule.story, *listener.story]))
                raise AssertionError(f"seed {seed}, {listener.label}: {error}\n{story}") from None
