"""The JavaScript client, in node, and servers that misbehave at every step of a session."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from javascript_rig import NodeScript, websockets_server

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

Serve = Callable[["Visit"], None]
Run = Callable[[str, Serve], list[Any]]


class Visit:
    """One connection, as the server sees it."""

    def __init__(self, number: int, connection: ServerConnection, hello: Any) -> None:
        self.number = number
        self.wish = hello
        self._connection = connection

    def send(self, type_: str, payload: Any = None, **fields: Any) -> None:
        self._connection.send(json.dumps({"type": type_, "payload": payload, **fields}))

    def welcome(self, token: Any, resumed: bool = False, **session: Any) -> None:
        about = {"token": token, "resumed": resumed, "received": 0, **session}
        self.send("system:welcome", {"id": "you", "session": about})

    def receive(self) -> Any:
        """What comes next, confirmations apart."""
        while True:
            message = json.loads(self._connection.recv())
            if message["type"] != "system:received":
                return message

    def lose(self) -> None:
        """End it so that the client may come back to its session."""
        self._connection.close(4009)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a script against a server that is given each visit after its hello; return what it printed."""
    played: list[NodeScript] = []

    def start(script: str, serve: Serve) -> list[Any]:
        visits: list[None] = []

        def handle(connection: ServerConnection) -> None:
            visits.append(None)
            hello = json.loads(connection.recv())
            assert hello["type"] == "system:hello"
            serve(Visit(len(visits), connection, hello.get("payload", {}).get("session")))
            for _ in connection:  # until the client ends it
                pass

        with websockets_server(handle) as url:
            played.append(NodeScript(script, url, tmp_path))
            return played[-1].finish()

    yield start
    for one in played:
        one.close()


def test_a_server_that_resumes_what_never_was_is_not_asked_without_a_pause(run: Run) -> None:
    script = """
      const client = connect(url, quick);
      for (let n = 0; n < 3; n++) {
        const { code, retryIn } = await reached(client, "waiting");
        print([code, retryIn > 0]);
        await reached(client, "connecting");
      }
      client.close();
    """
    assert run(script, lambda visit: visit.welcome("T", resumed=True)) == [[4010, True]] * 3


@pytest.mark.parametrize("count", [-1, 2, 1.5, "1", None, 2**60, [1], True])
def test_a_server_that_cannot_count_is_a_new_one(run: Run, count: Any) -> None:
    script = """
      const client = connect(url, quick);
      const wish = next(client, "wish"); // may come together with the welcome
      await client.ready;
      const lost = codeOf(client.call("one")); // the only message of the session
      const code = (await reached(client, "waiting")).code;
      print([code, await lost, (await reached(client, "open")).resumed]);
      print(await wish);
      client.close();
    """

    def serve(visit: Visit) -> None:
        if visit.number == 1:
            visit.welcome("T")
            visit.receive()
            visit.lose()
        elif visit.number == 2:
            assert visit.wish == {"token": "T", "received": 0}
            visit.welcome("U", resumed=True, received=count)
        else:
            visit.welcome("V")
            visit.send("wish", visit.wish)

    assert run(script, serve) == [[4009, "closed", False], True]


@pytest.mark.parametrize(
    "payload",
    [
        None,
        7,
        [],
        {"id": "you", "session": None},
        {"id": "you", "session": {"token": 7, "resumed": True}},
        {"id": "you", "session": {"token": "x" * 2000, "resumed": False}},
        {"id": "you", "limits": 3, "heartbeat": {"interval": "soon", "timeout": []}, "session": [1]},
        {"id": "you", "limits": {"message_size": "much"}, "heartbeat": {"interval": 1e300, "timeout": 1e300}},
    ],
)
def test_a_welcome_that_makes_no_sense_is_one_without_a_session(run: Run, payload: Any) -> None:
    script = """
      const client = connect(url, quick);
      await client.ready;
      client.send("lose me");
      await reached(client, "waiting");
      print(await next(client, "wish"));
      print(await client.call("last"));
      client.close();
    """

    def serve(visit: Visit) -> None:
        visit.send("system:welcome", payload)
        if visit.number == 1:
            assert visit.receive()["type"] == "lose me"
            visit.lose()
        else:
            visit.send("wish", visit.wish)
            visit.send("system:ack", {"ack": visit.receive()["ack"], "result": "served"})

    assert run(script, serve) == [True, "served"]


@pytest.mark.parametrize(("count", "size"), [(1001, 1), (9, 1024 * 1024)])
def test_what_comes_before_the_welcome_is_bounded(run: Run, count: int, size: int) -> None:
    script = """
      const client = connect(url, quick);
      client.on("early", () => print("told before it was clear for whom it was"));
      const { code, reason } = await reached(client, "waiting");
      print([code, reason]);
      client.close();
    """

    def serve(visit: Visit) -> None:
        for _ in range(count):
            visit.send("early", "x" * size)

    assert run(script, serve) == [[4009, "too much came before the welcome"]]


def test_a_listener_may_end_it_while_what_came_early_is_told(run: Run) -> None:
    script = """
      const client = connect(url, quick);
      const states = [];
      client.on("client:state", ({ name }) => states.push(name));
      client.on("early", (n) => {
        states.push(n);
        client.close();
      });
      print(await codeOf(client.ready));
      print([states, client.state, client.socket]);
    """

    def serve(visit: Visit) -> None:
        visit.send("early", 1)
        visit.send("early", 2)
        visit.welcome("T")

    assert run(script, serve) == ["closed", [[1, "closed"], "closed", None]]


def test_a_second_welcome_changes_nothing(run: Run) -> None:
    script = """
      const client = connect(url, quick);
      const states = [];
      client.on("client:state", ({ name, resumed }) => states.push([name, resumed]));
      print([await client.call("first"), await client.call("second"), states, client.id]);
      client.close();
    """

    def serve(visit: Visit) -> None:
        visit.welcome("T")
        visit.welcome("U", resumed=True, received=5)
        for result in "ab":
            message = visit.receive()
            visit.send("system:welcome", {"id": "somebody else"})
            visit.send("system:received", {"count": 10**9})
            visit.send("system:ack", {"ack": message["ack"], "result": result})

    assert run(script, serve) == [["a", "b", [["open", False]], "you"]]


@pytest.mark.parametrize("arrived", [False, True])
def test_a_question_is_answered_once_whatever_happens_to_the_connection(run: Run, arrived: bool) -> None:
    script = """
      const client = connect(url, quick);
      let asked = 0;
      client.answer("question", () => ++asked);
      print([await next(client, "got"), asked]);
      client.close();
    """

    def serve(visit: Visit) -> None:
        if visit.number == 1:
            visit.welcome("T")
            visit.send("question", ack="q")
            visit.receive()
            visit.lose()
        else:
            assert visit.wish == {"token": "T", "received": 1}
            visit.welcome("U", resumed=True, received=int(arrived))
            visit.send("got", None if arrived else visit.receive()["payload"])

    assert run(script, serve) == [[None if arrived else {"ack": "q", "result": 1}, 1]]


def test_a_question_whose_answer_comes_in_the_pause_is_answered_after_it(run: Run) -> None:
    script = """
      const client = connect(url, quick);
      client.answer("question", async () => {
        await reached(client, "waiting");
        return "late";
      });
      print(await next(client, "got"));
      client.close();
    """

    def serve(visit: Visit) -> None:
        if visit.number == 1:
            visit.welcome("T")
            visit.send("question", ack="q")
            visit.lose()
        else:
            visit.welcome("U", resumed=True)
            visit.send("got", visit.receive()["payload"])

    assert run(script, serve) == [{"ack": "q", "result": "late"}]
