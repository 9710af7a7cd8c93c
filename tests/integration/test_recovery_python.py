"""The Python client where nothing is to be lost: cut at random moments, a server that dies, another node of a mesh.

Numbered messages flow both ways meanwhile. Every one arrives once and in order, or ``client:recovered`` says that some
are missing. A failure names the seed; ``recovery_rig.py`` says what the environment may ask for.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from cutting_proxy import CuttingProxy
from programs import PATIENCE
from python_client_rig import States, websockets_server
from recovery_rig import SEEDS, Listener, Node, answers_late, beside, messages, until

from realtime import Client, MiB, QueueFull

MESSAGES = messages(2000)
NOTES = 300  # from the client to the server
SILENCE = 2.0  # seconds until a client that answers no ping is missed
MESH = {"ping": 0.5, "suspect": 20.0, "down": 30.0, "backoff": 0.05, "backoff_max": 0.1, "authentication": 10.0}


def calm(folder: Path, **options: Any) -> Node:
    """Make a node that gives no other up, however busy the machine is, and no client for what waits for it."""
    return Node(folder, mesh=MESH, waiting=16 * MiB, **options)


class Talker(Listener):
    """A listener that is told something alone, and asked, and speaks itself."""

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(port, **options)
        self.states = States(self.client)
        self.direct: list[int] = []
        self.client.on("direct", lambda message: self.direct.append(message.payload))
        self.client.answer("question", lambda message: 42)

    def resumptions(self) -> list[bool]:
        return [state["resumed"] for state in self.states.told if state["name"] == "open"][1:]

    def talk(self, name: str) -> None:
        """Send numbers, no faster than they can wait."""
        for number in range(NOTES):
            while True:
                try:
                    self.client.send("note", f"{name}:{number}")
                    break
                except QueueFull:
                    time.sleep(0.01)
            time.sleep(0.001)


def cut_now_and_then(
    proxy: CuttingProxy, listener: Listener, chance: random.Random, between: Callable[[], None] = lambda: None
) -> None:
    """Until all numbers have come. The client makes progress between two cuts."""
    while listener.last < MESSAGES - 1:
        wanted = min(listener.last + chance.randint(1, 3 * MESSAGES // 20), MESSAGES - 1)
        until(partial(listener.has, wanted), f"{wanted} comes, after {listener.last}")
        gevent.sleep(chance.uniform(0, 0.02))
        between()
        what = chance.random()
        if what < 0.15:
            proxy.fall_silent()
        else:
            proxy.cut(silently=what < 0.4)
    until(lambda: listener.client.state == "open", "it is back")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """For all tests that leave it alive."""
    with calm(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def watchful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """For tests in which clients fall silent, and may be missed for other reasons too."""
    with calm(tmp_path_factory.mktemp("watchful"), pong=SILENCE) as running:
        yield running


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """Two nodes that know one another."""
    folder = tmp_path_factory.mktemp("mesh")
    first, second = (calm(folder, name=name, pong=SILENCE) for name in ("n1", "n2"))
    second.peers = (first.peer,)
    with first, second:
        with Client(first.url, timeout=PATIENCE) as client:
            until(lambda: client.call("nodes") == 1, "they know each other")
        yield [first, second]


@pytest.fixture
def speaker(server: Node) -> Iterator[Client]:
    """Speaks to the server without a proxy."""
    with Client(server.url, timeout=10 * PATIENCE) as client:
        yield client


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("msgpack", [False, True], ids=["json", "msgpack"])
def test_a_session_loses_nothing_however_often_it_is_cut(
    watchful: Node, seed: int, msgpack: bool
) -> None:
    chance, room = random.Random(seed), f"kept:session {seed} {msgpack}"
    with (
        CuttingProxy(lambda: watchful.port, seed=seed) as proxy,
        Talker(proxy.port, msgpack=msgpack) as listener,
        Client(watchful.url, timeout=10 * PATIENCE) as speaker,
    ):
        client, own, asked = listener.client, listener.client.id, len(beside(speaker.call, "notes"))
        beside(client.join, room)
        quiz = gevent.spawn(beside, client.call, "quiz")
        talking = threading.Thread(target=listener.talk, args=(room,))
        talking.start()
        flowing = gevent.spawn(beside, speaker.call, "flow", [0, MESSAGES], room=room)
        telling = gevent.spawn(beside, speaker.call, "direct", {"to": own, "count": 200})
        cut_now_and_then(proxy, listener, chance)
        until(lambda: not talking.is_alive(), "all is said")
        assert quiz.get(timeout=PATIENCE) == 42
        flowing.get(timeout=PATIENCE)
        telling.get(timeout=PATIENCE)
        beside(client.call, "members", room=room)  # what was sent before has come
        assert beside(speaker.call, "notes")[asked:] == [f"{room}:{number}" for number in range(NOTES)]
        until(lambda: len(listener.direct) >= 200, "all that was sent to it alone")
        assert listener.heard == list(range(MESSAGES))
        assert listener.direct == list(range(200))
        assert client.id == own
        assert set(listener.resumptions()) == {True}


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_session_the_room_is_recovered(watchful: Node, seed: int) -> None:
    chance, room = random.Random(seed), f"kept:room {seed}"
    with (
        CuttingProxy(lambda: watchful.port, seed=seed) as proxy,
        Talker(proxy.port, session=False) as listener,
        Client(watchful.url, timeout=10 * PATIENCE) as speaker,
    ):
        beside(listener.client.join, room)
        flowing = gevent.spawn(beside, speaker.call, "flow", [0, MESSAGES], room=room)
        cut_now_and_then(proxy, listener, chance)
        flowing.get(timeout=PATIENCE)
        assert listener.numbers == list(range(MESSAGES))
        assert {one["recovered"] for one in listener.recoveries} <= {True}
        assert not any(listener.resumptions())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("session", [True, False], ids=["session", "room"])
def test_nothing_is_lost_from_node_to_node(mesh: list[Node], seed: int, session: bool) -> None:
    chance, room = random.Random(seed), f"kept:mesh {seed} {session}"
    chosen = [mesh[0]]

    def between() -> None:
        chosen[0] = chance.choice(mesh)

    with (
        CuttingProxy(lambda: chosen[0].port, seed=seed) as proxy,
        Talker(proxy.port, session=session) as listener,
        Client(mesh[1].url, timeout=10 * PATIENCE) as speaker,
    ):
        own = listener.client.id
        beside(listener.client.join, room)
        until(lambda: beside(speaker.call, "members", room=room) == [own], "the other node knows it")
        flowing = gevent.spawn(beside, speaker.call, "flow", [0, MESSAGES], room=room)
        cut_now_and_then(proxy, listener, chance, between)
        flowing.get(timeout=PATIENCE)
        assert listener.numbers == list(range(MESSAGES))
        assert {one["recovered"] for one in listener.recoveries} <= {True}
        if session:
            assert set(listener.resumptions()) <= {True}
            assert listener.client.id == own


def test_a_server_that_dies_is_said_to_be_another(tmp_path: Path) -> None:
    room = "kept:dying"
    with calm(tmp_path) as server, Talker(server.port) as listener, Talker(server.port) as speaker:
        client, other = listener.client, speaker.client
        for one in (client, other):
            beside(one.join, room)
        beside(client.presence.update, {"name": "Ada"})
        beside(other.call, "flow", [0, 100], room=room)
        until(lambda: listener.last == 99, "it has heard all")
        quiz = gevent.spawn(beside, client.call, "quiz")
        server.kill()
        server.start()
        until(lambda: len(listener.recoveries) == 1 and len(speaker.recoveries) == 1, "they are back")
        told = listener.recoveries[0]
        assert (told["room"], told["recovered"]) == (room, False)
        assert told["reason"]
        assert listener.resumptions() == [False]
        quiz.join(timeout=PATIENCE)
        assert quiz.successful() or "closed" in repr(quiz.exception).lower(), quiz.exception
        members = beside(client.presence.list, room)["members"]
        assert {"name": "Ada"} in [member["metadata"] for member in members]
        beside(other.call, "flow", [100, 200], room=room)
        until(lambda: listener.last == 199, "it goes on")
        assert listener.heard == [*range(100), told, *range(100, 200)]


def test_what_is_no_longer_kept_is_said_to_be_missing(tmp_path: Path) -> None:
    room = "kept:short"
    with (
        calm(tmp_path, history=50) as server,
        CuttingProxy(lambda: server.port) as proxy,
        Talker(proxy.port, session=False) as listener,
        Client(server.url, timeout=PATIENCE) as speaker,
    ):
        beside(listener.client.join, room)
        beside(speaker.call, "flow", [0, 10], room=room)
        until(lambda: listener.last == 9, "it has heard all")
        proxy.refuse(True)
        proxy.cut()
        until(lambda: beside(speaker.call, "members", room=room) == [], "it is gone")
        beside(speaker.call, "flow", [10, 100], room=room)
        proxy.refuse(False)
        until(lambda: listener.recoveries, "it is back")
        beside(speaker.call, "flow", [100, 110], room=room)
        until(lambda: listener.last == 109, "it goes on")
        (told,) = listener.recoveries
        assert (told["recovered"], bool(told["reason"])) == (False, True)
        numbers = listener.numbers
        assert numbers == sorted(set(numbers))
        assert [*range(10)] == numbers[:10]
        assert [*range(100, 110)] == numbers[-10:]


def test_asking_to_be_let_in_again_while_away_passes_over_nothing(server: Node, speaker: Client) -> None:
    room = "kept:again"
    with CuttingProxy(lambda: server.port) as proxy, Talker(proxy.port, session=False) as listener:
        beside(listener.client.join, room)
        beside(speaker.call, "flow", [0, 10], room=room)
        until(lambda: listener.last == 9, "it has heard all")
        proxy.refuse(True)
        proxy.cut()
        until(lambda: listener.client.state != "open", "it is away")
        again = gevent.spawn(beside, listener.client.join, room)
        beside(speaker.call, "flow", [10, 1010], room=room)  # more than is replayed at once
        assert not again.ready()
        proxy.refuse(False)
        again.get(timeout=PATIENCE)
        beside(speaker.call, "flow", [1010, 1020], room=room)
        until(lambda: listener.last == 1019, "it goes on")
        assert listener.numbers == list(range(1020))
        assert [one["recovered"] for one in listener.recoveries] == [True]


def test_a_place_that_was_stored_and_more_than_is_replayed_at_once(server: Node, speaker: Client) -> None:
    room = "kept:stored"
    with Talker(server.port) as listener:
        client = listener.client
        at_first = beside(client.join, room)
        assert client.cursor(room) == at_first["cursor"]
        beside(speaker.call, "flow", [0, 10], room=room)
        until(lambda: listener.last == 9, "it has heard all")
        stored = client.cursor(room)
        page = beside(client.history, room, limit=3)
        assert [message["payload"] for message in page["messages"]] == [7, 8, 9]
        assert page["cursor"] == stored
        page = beside(client.history, room, limit=4, since=page["messages"][0]["cursor"])
        assert [message["payload"] for message in page["messages"]] == [8, 9]
        assert (page["more"], page["recovered"]) == (False, True)
        beside(client.leave, room)
        assert client.cursor(room) is None
    beside(speaker.call, "flow", [10, 1010], room=room)
    with Talker(server.port) as later:
        result = beside(later.client.join, room, since=stored)
        assert (result["recovered"], result["replayed"]) == (True, 1000)
        assert "more" not in result
        assert result["cursor"] == later.client.cursor(room)
        beside(speaker.call, "flow", [1010, 1020], room=room)
        until(lambda: later.last == 1019, "it goes on")
        assert later.heard == list(range(10, 1020))


@pytest.mark.parametrize("since", [None, "somewhere", "replay"])
def test_an_answer_that_was_overtaken_says_less_of_where_we_are_than_the_messages(since: str | None) -> None:
    with websockets_server(answers_late) as url, Client(url, timeout=PATIENCE) as client:
        client.join("tea", since=since)
        assert client.cursor("tea") == ("at the answer" if since == "replay" else "at the message")


def test_a_cursor_of_another_room_recovers_nothing(server: Node) -> None:
    with Talker(server.port) as listener:
        beside(listener.client.join, "kept:one")
        result = beside(listener.client.join, "kept:two", since=listener.client.cursor("kept:one"))
        assert (result["recovered"], bool(result["reason"])) == (False, True)
        assert listener.recoveries == []


def test_without_a_session_it_comes_back_as_another(server: Node) -> None:
    with CuttingProxy(lambda: server.port) as proxy, Talker(proxy.port, session=False) as listener:
        own = listener.client.id
        proxy.cut()
        until(lambda: listener.resumptions() == [False], "it is back")
        assert listener.client.id != own


def test_live_presence_goes_on_through_cuts_and_shows_what_changed_without_a_session(server: Node) -> None:
    room = "kept:watched"
    with (
        CuttingProxy(lambda: server.port) as proxy,
        Talker(proxy.port) as resumed,
        Talker(proxy.port, session=False) as anew,
        Talker(server.port) as other,
    ):
        left: list[str] = []
        resumed.client.on("client:presence", lambda message: left.extend(message.payload["leaves"]))

        def all_see(wanted: set[str | None]) -> bool:
            states = [watcher.client.presence.state(room) for watcher in (resumed, anew)]
            return all(state is not None and state["presences"].keys() == wanted for state in states)

        for watcher in (resumed, anew):
            beside(watcher.client.join, room, presence=True)
        beside(other.client.join, room)
        until(lambda: all_see({resumed.client.id, anew.client.id, other.client.id}), "they see one another")
        before = anew.client.id
        proxy.cut()
        until(lambda: resumed.resumptions() and anew.resumptions(), "they are back")
        beside(other.client.leave, room)
        until(lambda: all_see({resumed.client.id, anew.client.id}), "they see who left")
        until(lambda: {before, other.client.id} <= {*left}, "it is told who left")
        assert len(left) == len({*left})
        assert resumed.client.id not in left
        assert {*resumed.resumptions()} == {True}
        beside(resumed.client.leave, room)
        assert resumed.client.presence.state(room) is None
