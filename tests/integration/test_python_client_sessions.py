"""The Python client's side of sessions, word for word, against servers made with the PyPI library ``websockets``."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from programs import PATIENCE
from python_client_rig import QUICK, States, websockets_server
from requirements import module

from realtime import Client, ConnectionClosed

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection


class Visit:
    """One connection, from the server's side."""

    def __init__(self, ws: ServerConnection) -> None:
        self._ws = ws

    def hear(self) -> dict[str, Any]:
        """Return the next message."""
        message: dict[str, Any] = json.loads(self._ws.recv(timeout=PATIENCE))
        return message

    def hear_hello(self) -> Any:
        """Return what the hello says of a session."""
        hello = self.hear()
        assert hello["type"] == "system:hello"
        return (hello.get("payload") or {}).get("session")

    def payloads(self, count: int) -> list[Any]:
        return [self.hear()["payload"] for _ in range(count)]

    def say(self, type: str, payload: Any = None, **fields: Any) -> None:
        self._ws.send(json.dumps({"type": type, "payload": payload, **fields}))

    def welcome(self, id: str, session: dict[str, Any] | None) -> None:
        """Greet; the token is the client's id and the number of the welcome."""
        self.say("system:welcome", {"id": id, **({"session": session} if session else {})})

    def drop(self) -> None:
        """End it without a close frame."""
        self._ws.socket.shutdown(socket.SHUT_RDWR)

    def close_code(self) -> int:
        """Wait for the client's close frame."""
        try:
            while True:
                self.hear()
        except module("websockets.exceptions").ConnectionClosed as closed:
            return int(closed.rcvd.code) if closed.rcvd is not None else 1006


def begun(token: str, received: int = 0, *, resumed: bool = False) -> dict[str, Any]:
    return {"token": token, "resumed": resumed, "received": received, "grace": 600.0}


@contextmanager
def serving(*visits: Callable[[Visit], None]) -> Iterator[str]:
    """Have each connection served by the next function, and see that all were, to their ends.

    The last stays open after that until its client closes it, which would come back otherwise.
    """
    waiting = queue.SimpleQueue[Callable[[Visit], None]]()
    for visit in visits:
        waiting.put(visit)
    failures: list[BaseException] = []
    done = threading.Semaphore(0)

    def serve(ws: ServerConnection) -> None:
        visit = Visit(ws)
        try:
            waiting.get_nowait()(visit)
        except BaseException as error:
            failures.append(error)
        finally:
            done.release()
        if waiting.empty() and not failures:
            visit.close_code()

    with websockets_server(serve) as url:
        yield url
        for _ in visits:
            assert done.acquire(timeout=PATIENCE), failures
    assert failures == []


@contextmanager
def visiting(url: str, **options: Any) -> Iterator[Client]:
    with Client(url, **{"timeout": PATIENCE, "backoff": QUICK, **options}) as client:
        yield client


def test_what_the_server_does_not_have_is_sent_again_before_what_waited() -> None:
    lost, told, heard, seen = (threading.Event() for _ in range(4))

    def first(visit: Visit) -> None:
        assert visit.hear_hello() is True
        visit.welcome("ada", begun("t1"))
        assert visit.payloads(3) == [0, 1, 2]
        visit.say("told", "once")
        assert told.wait(PATIENCE)
        visit.drop()

    def second(visit: Visit) -> None:
        assert visit.hear_hello() == {"token": "t1", "received": 1}
        assert lost.wait(PATIENCE)
        visit.say("told", "for whom the server took us")
        visit.welcome("ada", begun("t2", 1, resumed=True))
        visit.say("told", "twice")
        assert visit.hear() == {"type": "system:received", "payload": {"count": 1}}
        assert visit.payloads(3) == [1, 2, "waited"]
        assert heard.wait(PATIENCE)
        assert seen.wait(PATIENCE)
        visit.drop()

    def third(visit: Visit) -> None:
        assert visit.hear_hello() == {"token": "t2", "received": 2}
        visit.welcome("eve", begun("t3"))
        assert visit.hear()["payload"] == "anew"

    words: list[Any] = []

    def on_told(message: Any) -> None:
        words.append(message.payload)
        (told if len(words) == 1 else heard).set()

    with serving(first, second, third) as url, visiting(url, hello=None) as client:
        states = States(client)
        client.on("told", on_told)
        for number in range(3):
            client.send("note", number)
        states.next("waiting")
        client.send("note", "waited")
        lost.set()
        assert states.next("open")["resumed"] is True
        assert client.id == "ada"
        seen.set()
        assert states.next("open")["resumed"] is False
        assert client.id == "eve"
        client.send("note", "anew")
        assert words == ["once", "twice"]
        assert (client.stats()["connects"], client.stats()["resumes"]) == (3, 1)


def test_calls_questions_and_answers_go_on() -> None:
    asked, answered = threading.Event(), threading.Event()

    def first(visit: Visit) -> None:
        visit.hear_hello()
        visit.welcome("ada", begun("t1"))
        assert visit.hear()["type"] == "sum"
        visit.say("question", 20, ack=7)
        assert asked.wait(PATIENCE)
        visit.drop()

    def second(visit: Visit) -> None:
        assert visit.hear_hello() == {"token": "t1", "received": 1}
        visit.welcome("ada", begun("t2", 1, resumed=True))
        assert visit.hear()["type"] == "system:received"
        answered.set()
        assert visit.hear() == {"type": "system:ack", "payload": {"ack": 7, "result": 21}}
        visit.say("system:ack", {"ack": "c1", "result": 42})

    def answer(message: Any) -> int:
        asked.set()
        assert answered.wait(PATIENCE)
        return int(message.payload) + 1

    with serving(first, second) as url, visiting(url) as client:
        client.answer("question", answer)
        assert client.call("sum") == 42


def test_what_comes_is_confirmed_now_and_then() -> None:
    done = threading.Event()

    def serve(visit: Visit) -> None:
        visit.hear_hello()
        visit.welcome("ada", begun("t1"))
        for number in range(128):
            visit.say("told", number)
        visit.say("system:received", {"count": 0})
        visit.say("told", "x" * 70_000)
        counts = [visit.hear() for _ in range(3)]
        assert counts == [{"type": "system:received", "payload": {"count": count}} for count in (64, 128, 129)]
        done.set()

    with serving(serve) as url, visiting(url):
        assert done.wait(PATIENCE)


def test_a_session_that_the_client_cannot_go_on_with_is_ended_and_another_begun() -> None:
    def first(visit: Visit) -> None:
        visit.hear_hello()
        visit.welcome("ada", begun("t1"))
        assert visit.hear()["type"] == "sum"
        visit.drop()

    def second(visit: Visit) -> None:
        assert visit.hear_hello() == {"token": "t1", "received": 0}
        visit.welcome("ada", begun("t2", 99, resumed=True))
        assert visit.close_code() == 4010

    def third(visit: Visit) -> None:
        assert visit.hear_hello() is True
        visit.welcome("eve", begun("t3"))

    with serving(first, second, third) as url, visiting(url) as client:
        states = States(client)
        with pytest.raises(ConnectionClosed, match="1006 the connection was lost"):
            client.call("sum")
        opened: dict[str, Any] = {}
        while client.id != "eve" or not opened:
            opened = states.next("open")  # perhaps still that of the first connection
        assert opened["resumed"] is False


def test_where_no_session_is_resumed_what_came_before_the_welcome_is_told() -> None:
    def first(visit: Visit) -> None:
        visit.hear_hello()
        visit.welcome("ada", begun("t1"))
        visit.drop()

    def second(visit: Visit) -> None:
        assert visit.hear_hello() == {"token": "t1", "received": 0}
        visit.say("told", "early")
        visit.welcome("eve", begun("t2"))
        visit.say("told", "late")

    with serving(first, second) as url, visiting(url) as client:
        assert [client.wait_for("told").payload for _ in range(2)] == ["early", "late"]


@pytest.mark.parametrize("options", [{"session": False}, {"reconnect": False}])
def test_who_wants_no_session_asks_for_none(options: dict[str, Any]) -> None:
    def serve(visit: Visit) -> None:
        assert visit.hear() == {"type": "system:hello", "payload": {"version": 1}}
        visit.welcome("ada", None)
        visit.hear()

    with serving(serve) as url, visiting(url, hello={"version": 1}, **options) as client:
        client.send("note")


def test_a_room_whose_return_is_not_answered_is_asked_for_again() -> None:
    """Neither silence nor a server that ran out of time gives a room up."""
    told = threading.Event()

    def first(visit: Visit) -> None:
        visit.hear_hello()
        visit.welcome("ada", None)
        asked = visit.hear()
        visit.say("system:ack", {"ack": asked["ack"], "result": {"room": "tea", "cursor": "c1"}})
        assert visit.hear()["type"] == "drop"
        visit.drop()

    def second(visit: Visit) -> None:
        visit.hear_hello()
        visit.welcome("bob", None)
        asked = [visit.hear() for _ in range(2)]
        visit.say("system:error", {"ack": asked[1]["ack"], "code": "timeout", "message": "a node did not answer"})
        asked.append(visit.hear())
        join = {"type": "system:join", "room": "tea", "payload": {"since": "c1"}}
        assert [{name: one[name] for name in join} for one in asked] == [join] * 3
        result = {"room": "tea", "recovered": True, "replayed": 0, "cursor": "c2"}
        visit.say("system:ack", {"ack": asked[0]["ack"], "result": {**result, "recovered": False}})  # too late
        visit.say("system:ack", {"ack": asked[2]["ack"], "result": result})
        assert told.wait(PATIENCE)

    with serving(first, second) as url, visiting(url, timeout=3.0) as client:
        news: list[Any] = []
        heard = threading.Event()
        for name in ("client:left", "client:recovered"):
            client.on(name, lambda message: (news.append(message.payload), heard.set()))
        client.join("tea")
        client.send("drop")
        assert heard.wait(PATIENCE)
        assert news == [{"room": "tea", "recovered": True, "replayed": 0}]
        told.set()
