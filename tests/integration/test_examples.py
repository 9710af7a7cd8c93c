"""The examples do what their docstrings say, started and used as a reader would."""

from __future__ import annotations

import ast
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from origin import ORIGIN
from programs import EXAMPLES, PATIENCE, ROOT, Program, basic_copy, client_in, complain_of_faults
from requirements import module

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

PAGE = r"at (http://127\.0\.0\.1:(\d+)/)"
SOCKET = r"(ws://127\.0\.0\.1:(\d+)/\S*)"


def connect(url: str, **options: Any) -> ClientConnection:
    made: ClientConnection = module("websockets.sync.client").connect(url, **options)
    return made


def send(client: ClientConnection, type_: str, **fields: Any) -> None:
    client.send(json.dumps({"type": type_, **fields}))


def receive(client: ClientConnection, type_: str) -> dict[str, Any]:
    """Return the next message of a type; what comes before it is passed over."""
    while True:
        message: dict[str, Any] = json.loads(client.recv(timeout=PATIENCE))
        if message["type"] == type_:
            return message


def ask(client: ClientConnection, type_: str, **fields: Any) -> Any:
    """Send a message and return its ack's result."""
    send(client, type_, ack="asked", **fields)
    return receive(client, "system:ack")["payload"].get("result")


def refused(client: ClientConnection, type_: str, **fields: Any) -> str:
    """Send a message that is refused and return the code."""
    send(client, type_, ack="asked", **fields)
    code: str = receive(client, "system:error")["payload"]["code"]
    return code


def members(message: dict[str, Any]) -> list[str | None]:
    return [member["name"] for member in message["payload"]["members"]]


# basic.py ----------------------------------------------------------------------------------------------------


def test_the_basic_example_is_the_origin_with_a_docstring_and_a_page() -> None:
    text = (EXAMPLES / "basic.py").read_text()
    docstring = ast.parse(text).body[0]
    code = "".join(text.splitlines(keepends=True)[docstring.end_lineno :]).lstrip("\n")
    handler, main = ORIGIN.split('if __name__ == "__main__":')
    assert code.startswith(handler)
    assert code.endswith('if __name__ == "__main__":' + main)
    added = code[len(handler) : code.index('if __name__ == "__main__":')].split("\n")
    assert len([line for line in added if line]) <= 2


def test_the_origin_alone_runs_and_chats(tmp_path: Path) -> None:
    script = tmp_path / "origin.py"
    script.write_text(ORIGIN.replace("8080", "0").replace("9090", "0"))
    with Program(script, cwd=tmp_path) as program:
        url = program.wait_for(SOCKET)[1]
        with connect(url) as ada, connect(url) as grace:
            send(grace, "chat:message", payload="joins the lobby by speaking in it", ack=1)
            receive(grace, "system:ack")
            send(ada, "chat:message", payload="hello")
            said = receive(grace, "chat:message")
        assert said["room"] == "lobby"
        assert said["payload"]["body"] == "hello"
        assert program.stop() == 0


@pytest.mark.parametrize("elsewhere", [False, True], ids=["from the repository", "from elsewhere"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_basic_prints_where_it_is_and_stops_when_told(tmp_path: Path, elsewhere: bool, number: signal.Signals) -> None:
    with Program(basic_copy(tmp_path), cwd=tmp_path if elsewhere else ROOT) as program:
        socket_url = program.wait_for(SOCKET)[1]
        port = int(program.wait_for(PAGE)[2])
        assert "<title>realtime</title>" in get(port, "/")[1]
        with connect(socket_url) as client:
            assert ask(client, "room:list") == {"rooms": [], "total": 0}
            assert program.stop(number) == 0
            with pytest.raises(module("websockets.exceptions").ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE)
        assert closed.value.rcvd.code == 4013
    complain_of_faults(program.text)


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a running copy of basic.py."""
    with Program(basic_copy(tmp_path_factory.mktemp("basic"))) as program:
        yield int(program.wait_for(PAGE)[2])
        program.stop()


def get(port: int, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "html"), ("/console.css", "css"), ("/console.js", "javascript"), ("/page.js", "javascript")],
)
def test_the_page_is_served_with_a_policy_that_lets_no_foreign_script_in(basic: int, path: str, kind: str) -> None:
    response, body = get(basic, path)
    assert response.status == 200
    assert response.headers["Content-Type"] == f"text/{kind}; charset=utf-8"
    assert "default-src 'none'; script-src 'self';" in response.headers["Content-Security-Policy"]
    assert "{{" not in body
    assert "http://" not in body.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in body


def test_the_page_answers_head_and_knows_what_it_has_not(basic: int) -> None:
    response, body = get(basic, "/", "HEAD")
    assert (response.status, body) == (200, "")
    assert int(response.headers["Content-Length"]) == len(get(basic, "/")[1].encode())
    assert get(basic, "/../basic.py")[0].status in (400, 404)
    assert get(basic, "/basic.py")[0].status == 404
    response = get(basic, "/", "POST")[0]
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


def test_members_hear_who_joins_takes_a_name_leaves_and_disconnects(basic: int) -> None:
    url = f"ws://127.0.0.1:{basic}/realtime"
    with connect(url) as ada:
        ask(ada, "presence:update", payload={"name": " Ada "})
        ask(ada, "room:join", room="tea")
        with connect(url) as grace:
            ask(grace, "room:join", room="tea")
            joined = receive(ada, "room:members")
            assert (joined["room"], members(joined), joined["payload"]["total"]) == ("tea", ["Ada", None], 2)
            assert joined["payload"]["change"]["did"] == "joined"
            ask(grace, "presence:update", payload={"name": "Grace"})
            renamed = receive(ada, "room:members")
            assert (members(renamed), renamed["payload"]["change"]["did"]) == (["Ada", "Grace"], "renamed")
            ask(grace, "room:leave", room="tea")
            left = receive(ada, "room:members")
            assert (members(left), left["payload"]["change"]["did"]) == (["Ada"], "left")
            send(grace, "chat:message", room="tea", payload="speaking in a room joins it")
            assert receive(ada, "chat:message")["payload"]["body"] == "speaking in a room joins it"
            assert receive(ada, "room:members")["payload"]["change"]["did"] == "joined"
        gone = receive(ada, "room:members")
        assert (members(gone), gone["payload"]["change"]["name"]) == (["Ada"], "Grace")
        assert gone["payload"]["change"]["did"] == "disconnected"


def test_everybody_hears_which_rooms_there_are(basic: int) -> None:
    url = f"ws://127.0.0.1:{basic}/realtime"
    with connect(url) as ada, connect(url) as grace:
        ask(grace, "room:list")  # so that it is connected before the room appears
        ask(ada, "room:join", room="new room")
        new = {"name": "new room", "members": 1}
        while new not in receive(grace, "room:list")["payload"]["rooms"]:
            pass  # told of somebody who has just left
        assert new in ask(grace, "room:list")["rooms"]


def test_what_the_page_would_never_send_is_refused(basic: int) -> None:
    with connect(f"ws://127.0.0.1:{basic}/realtime") as client:
        assert refused(client, "room:join") == "bad_room"
        assert refused(client, "room:join", room="") == "bad_room"
        assert refused(client, "room:leave") == "bad_room"
        for payload in (None, "Ada", {}, {"name": 7}, {"name": "  "}, {"name": "x" * 41}):
            assert refused(client, "presence:update", payload=payload) == "bad_name"


# The others --------------------------------------------------------------------------------------------------


def run_client(code: str) -> list[str]:
    """Run a docstring's client as a program and return the lines it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_echo_answers_the_client_of_its_docstring() -> None:
    module("websockets")
    script = EXAMPLES / "echo.py"
    with Program(script, "--port", "0") as program:
        port = int(program.wait_for(SOCKET)[2])
        assert run_client(client_in(script, port, 8765)) == ["hello"]
        assert program.stop() == 0


def test_echo_answers_the_command_of_its_docstring() -> None:
    module("websockets")
    assert "python -m websockets ws://127.0.0.1:8765/ " in (EXAMPLES / "echo.py").read_text()
    with Program(EXAMPLES / "echo.py", "--port", "0") as program:
        url = program.wait_for(SOCKET)[1]
        with subprocess.Popen(
            [sys.executable, "-m", "websockets", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write("is anybody there?\n")
            client.stdin.flush()
            printed = ""
            while "< is anybody there?" not in printed:
                character = client.stdout.read(1)
                assert character, printed
                printed += character
            client.stdin.close()
            client.wait(PATIENCE)
        assert program.stop(signal.SIGTERM) == 0


def test_conversation_holds_the_one_of_its_docstring() -> None:
    module("websockets")
    script = EXAMPLES / "conversation.py"
    with Program(script, "--port", "0", cwd=Path("/")) as program:
        port = int(program.wait_for(SOCKET)[2])
        assert run_client(client_in(script, port, 8766)) == [
            "pizza:which ['Margherita', 'Funghi', 'Diavola']",
            "pizza:price 8.5",
            "system:ack {'ack': 1, 'result': {'pizza': 'Margherita', 'price': 8.5}}",
        ]
        assert program.stop() == 0


def test_conversation_asks_again_and_takes_no_for_an_answer() -> None:
    def answer(client: ClientConnection, result: object) -> None:
        question = receive(client, "pizza:which")
        send(client, "system:ack", payload={"ack": question["ack"], "result": result})

    with Program(EXAMPLES / "conversation.py", "--port", "0") as program:
        url = program.wait_for(SOCKET)[1]
        with connect(url) as client:
            send(client, "pizza:order", ack=1)
            answer(client, "Hawaii")
            assert receive(client, "system:reply")["payload"]["message"] == "We have no Hawaii."
            answer(client, "Funghi")
            assert receive(client, "pizza:price")["payload"] == 10.0
            send(client, "pizza:confirm", payload="no")
            assert receive(client, "system:error")["payload"]["code"] == "cancelled"
            send(client, "pizza:order", ack=2)
            for result in ("Hawaii", ["Funghi"], None):
                answer(client, result)
            assert receive(client, "system:error")["payload"]["code"] == "undecided"
        assert program.stop() == 0


def test_streaming_streams_to_the_client_of_its_docstring() -> None:
    module("websockets")
    script = EXAMPLES / "streaming.py"
    with Program(script, "--port", "0", cwd=Path("/")) as program:
        port = int(program.wait_for(SOCKET)[2])
        lines = run_client(client_in(script, port, 8767))
        assert lines[0] == "{'progress': 0.2, 'line': 'step 1 of 5: ok'}"
        assert lines[4:] == ["{'progress': 1.0, 'line': 'step 5 of 5: ok'}", "done: {'steps': 5}"]
        assert program.stop() == 0


def build(client: ClientConnection, steps: int) -> list[int]:
    """Read a build's whole stream; return the steps it named."""
    named: list[int] = []
    while True:
        message = json.loads(client.recv(timeout=PATIENCE))
        if message["type"] == "system:ack":
            assert message["payload"]["result"] == {"steps": steps}
            return named
        named.append(int(message["payload"]["item"]["line"].split()[1]))


def test_streaming_waits_for_a_client_that_does_not_read_and_loses_nothing() -> None:
    steps = 40_000  # more than an outbox and the sockets' own buffers hold
    request = {"payload": {"steps": steps, "pause": 0}, "ack": 1}
    with Program(EXAMPLES / "streaming.py", "--port", "0") as program:
        found = program.wait_for(SOCKET)
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", int(found[2])))
        with connect(found[1], sock=narrow) as lazy, connect(found[1]) as eager:
            send(lazy, "build:run", **request)
            send(eager, "build:run", **request)
            assert build(eager, steps) == list(range(1, steps + 1))  # there was time enough for the other, too
            assert not [line for line in program.output if f"{steps} of {steps} steps" in line][1:]
            assert build(lazy, steps) == list(range(1, steps + 1))
        assert program.stop() == 0


def test_streaming_ends_a_build_whose_client_has_gone() -> None:
    with Program(EXAMPLES / "streaming.py", "--port", "0") as program:
        with connect(program.wait_for(SOCKET)[1]) as client:
            send(client, "build:run", payload={"steps": 1_000_000, "pause": 0.01}, ack=1)
            receive(client, "system:stream")
        assert int(program.wait_for(r" (\d+) of 1000000 steps")[1]) < 1_000_000
        assert program.stop() == 0


@pytest.mark.parametrize("payload", [{"steps": 0}, {"steps": "5"}, {"steps": 1e9}, {"pause": "long"}])
def test_streaming_refuses_a_build_it_cannot_do(payload: dict[str, Any]) -> None:
    with Program(EXAMPLES / "streaming.py", "--port", "0") as program:
        with connect(program.wait_for(SOCKET)[1]) as client:
            assert refused(client, "build:run", payload=payload) == "bad_options"
        assert program.stop() == 0


# mesh_nodes.py -----------------------------------------------------------------------------------------------


def test_mesh_nodes_print_who_sees_whom_and_what_reaches_whom() -> None:
    with Program(EXAMPLES / "mesh_nodes.py") as program:
        for name in ("ann", "bob", "cid"):
            program.wait_for(rf"^{name} listens on 127\.0\.0\.1:\d+$")
        for stopped, others in (("ann", ("bob", "cid")), ("bob", ("ann", "cid"))):
            program.wait_for(f"^{stopped} sees in the market: a client of ann, a client of bob, a client of cid$")
            price = program.wait_for(rf"^the client of {stopped} offers (\d+)$")[1]
            for name in ("ann", "bob", "cid"):
                program.wait_for(rf"^  the client of {name} hears {price}$")
            program.wait_for(f"^{stopped} stops$")
            for name in others:
                program.wait_for(f"^  {name} sees in the market: a client of {others[0]}, a client of {others[1]}$")
            program.wait_for(rf"^{stopped} is back, on 127\.0\.0\.1:\d+$")
        assert program.stop() == 0
    text = "".join(program.output)
    for name, joined in (("ann", "cid"), ("bob", "ann"), ("cid", "bob")):
        assert f"  {name}: {joined} joined; {name} sees " in text
    assert "  bob: ann left; bob sees cid\n" in text
