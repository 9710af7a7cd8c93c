"""Everything at once: cut, silent and wandering clients, nodes that are killed and started again, one random schedule.

Two nodes, and clients with and without a session, each on its own way to one of them, where they ask to be let into
the room now and then although they are in it. Numbers are published by either node; a batch counts as sure once every
node with members has confirmed it, and is never published again. What each client hears must rise, and no sure number
may be missing unless ``client:recovered`` says ``recovered: false`` at that very place: which nobody may say before a
node was killed, or the client was away for longer than the room keeps.

A failure names the seed, and tells what happened. ``recovery_rig.py`` says what the environment may ask for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from cutting_proxy import CuttingProxy
from programs import PATIENCE
from recovery_rig import SEEDS, Listener, Node, beside, messages, unexcused, until

from realtime import Client, RealtimeError

MESSAGES = messages(1500)
BATCH = 20
ROOM = "kept:room"
LONG, SHORT = 100_000, 300  # messages that the room keeps
MESH = {"ping": 0.5, "suspect": 4.0, "down": 8.0, "backoff": 0.05, "backoff_max": 0.1, "authentication": 10.0}


class Wanderer(Listener):
    """A listener whose way to a node is cut and turned, and what happened to it."""

    def __init__(self, proxy: CuttingProxy, node: list[Node], **options: Any) -> None:
        super().__init__(proxy.port, **options)
        self.proxy = proxy
        self.label = f"{options}"
        self.left: list[Any] = []
        self.story: list[str] = []
        """What happened to it, for a failure to tell."""
        self.asking: gevent.Greenlet[..., None] = gevent.spawn(lambda: None)
        self._node = node
        self.client.on("client:left", lambda message: self.left.append(message.payload))
        self.client.on("client:state", lambda message: self.note(message.payload))
        self.client.on("client:recovered", lambda message: self.note(message.payload))

    def move(self, node: Node) -> None:
        """Connect to another from the next time on."""
        self._node[0] = node

    def cut(self, what: float) -> None:
        self.note(f"cut: {what:.2f}, then {self._node[0].url}")
        if what < 0.15:
            self.proxy.fall_silent()
        else:
            self.proxy.cut(silently=what < 0.4 or what > 0.9)

    def ask_again(self) -> None:
        """Ask to be let into the room that it is in, unless it does already."""
        if self.asking.dead:
            self.asking = gevent.spawn(self._join)

    def _join(self) -> None:
        try:
            answer = beside(self.client.join, ROOM)
        except RealtimeError as error:
            self.note(f"asked again: {error}")
        else:
            self.note(f"asked again: {answer['cursor']}")

    def note(self, what: Any) -> None:
        self.story.append(f"{time.monotonic():.3f} after {self.last}: {what}")

    @property
    def refusals(self) -> list[str]:
        """Why something could not be recovered."""
        return [one["reason"] for one in self.recoveries if not one["recovered"]]


@contextmanager
def wandering(nodes: list[Node], seed: int, **options: Any) -> Iterator[Wanderer]:
    """A wanderer that is in the room."""
    node = [nodes[seed % 2]]
    with CuttingProxy(lambda: node[0].port, seed=seed) as proxy, Wanderer(proxy, node, **options) as wanderer:
        beside(wanderer.client.join, ROOM)
        yield wanderer


class Schedule:
    """What happens, and when."""

    def __init__(self, folder: Path, seed: int, history: int) -> None:
        self.random = random.Random(seed)
        self.nodes = [
            Node(folder, name=name, history=history, grace=30.0, pong=1.0, mesh=MESH) for name in ("n0", "n1")
        ]
        self.kills = 0
        self.sure: set[int] = set()
        self.published = 0
        self.story: list[str] = []

    def note(self, what: str) -> None:
        self.story.append(f"{time.monotonic():.3f} published {self.published}: {what}")

    def start(self, stack: ExitStack) -> None:
        first, second = self.nodes
        stack.enter_context(first)
        second.peers = [first.peer]
        stack.enter_context(second)
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

    def disturb(self, listeners: list[Wanderer], kill: bool) -> None:
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
                listener.move(self.random.choice(self.nodes))
            listener.cut(what)
            if self.random.random() < 0.3:
                listener.ask_again()

    def _kill_a_node(self, listeners: list[Wanderer]) -> None:
        node, other = self.random.sample(self.nodes, 2)
        self.kills += 1
        self.note(f"{node.url} is killed")
        node.kill()
        if self.random.random() < 0.5:
            for listener in listeners:
                listener.move(other)
        gevent.sleep(self.random.uniform(0, 1.0))
        node.peers = [other.peer]
        beside(node.start)
        self.note(f"{node.url} is back")
        if self.random.random() < 0.7:
            self.meet(node)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_nothing_is_missing_untold(seed: int, tmp_path: Path) -> None:
    history = SHORT if seed % 5 == 4 else LONG
    with_kills = seed % 5 != 3
    schedule = Schedule(tmp_path, seed, history)
    kinds: list[dict[str, Any]] = [{}, {"msgpack": True}, {"session": False}, {"session": False, "msgpack": True}]
    with ExitStack() as stack:
        schedule.start(stack)
        listeners = [
            stack.enter_context(wandering(schedule.nodes, seed + number, **kind))
            for number, kind in enumerate(kinds)
        ]
        disturbing = gevent.spawn(schedule.disturb, listeners, with_kills)
        schedule.publish_all()
        disturbing.get(timeout=2 * PATIENCE)
        for node in schedule.nodes:
            schedule.meet(node)
        for listener in listeners:
            if listener.client.state != "open":
                listener.cut(1.0)  # it may have fallen silent in its handshake, which has all the time of its timeout
        gevent.joinall([listener.asking for listener in listeners], timeout=PATIENCE, raise_error=True)
        until(lambda: all(listener.client.state == "open" for listener in listeners), "all are back")
        deadline = time.monotonic() + PATIENCE
        while not all(listener.last == max(schedule.sure) == schedule.published - 1 for listener in listeners):
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
                assert listener.left == []
                assert unexcused(listener.heard, schedule.sure) is None
                if history == LONG:
                    assert len(listener.refusals) <= 2 * schedule.kills, listener.refusals
            except AssertionError as error:
                story = "\n".join(sorted([*schedule.story, *listener.story]))
                raise AssertionError(f"seed {seed}, {listener.label}: {error}\n{story}") from None
