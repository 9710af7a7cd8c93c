"""``realtime send``: from a shell, to a server in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import Terminal, app, connect, receive, run, said_by, send, served, serving
from programs import PATIENCE, complain_of_faults
from requirements import module

PAYLOADS = ["5", '"5"', "hello there", '{"a": [1, null]}', "NaN", "", "[" * 100_000]
READ_AS = [5, "5", "hello there", {"a": [1, None]}, "NaN", "", "[" * 100_000]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("served")) as address:
        yield address


def test_the_result_of_the_handler_is_printed(url: str, tmp_path: Path) -> None:
    addressed = ("--room", "tea", "--target", "x", "--target", "y")
    done = run(tmp_path, "send", url, "echo", '{"a": 1}', *addressed, "--ack")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [{"a": 1}, "tea", ["x", "y"]]


def test_each_line_of_standard_input_is_a_message_json_or_text(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "send", url, "echo", "-", "--ack", "--msgpack", input="\n".join([*PAYLOADS, ""]))
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[read, None, None] for read in READ_AS]


def test_without_an_ack_messages_arrive_all_and_in_order(url: str, tmp_path: Path) -> None:
    with connect(url) as member:
        member.send(json.dumps({"type": "system:join", "room": "tea order", "ack": 1}))
        assert receive(member)["type"] == "system:ack"
        lines = "".join(f"{number}\n" for number in range(500))
        done = run(tmp_path, "send", url, "say", "-", "--room", "tea order", input=lines)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert [receive(member)["payload"] for _ in range(500)] == list(range(500))


def test_every_item_of_a_stream_is_a_line(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "send", url, "count", "3", "--ack")
    assert (done.returncode, done.stdout) == (0, '0\n1\n2\n"done"\n')


def test_a_stream_ends_at_the_server_when_nobody_reads_on(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "realtime", "send", url, "count", "--ack"]
    pipe = subprocess.PIPE
    with (
        connect(url) as watcher,
        subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 0
        while receive(watcher)["type"] != "count:ended":
            pass


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("refuse", "--ack"), 1, "the server says no: closed_on_mondays: not today"),
        (("unheard", "--ack"), 1, "the server says no: unknown_type: no handler takes 'unheard'"),
        (("wait", "--ack", "--timeout", "0.5"), 1, " within 0.5 s"),
        (("echo", "--header", "no colon"), 2, "'no colon': must be as in 'Authorization: Bearer abc'"),
        (("echo", "--header", "Upgrade: me"), 2, "headers: 'Upgrade' is written by the client itself"),
        (("echo", "--timeout", "0"), 2, "'0': must be seconds, above 0"),
        (("echo", "--room", ""), 1, "must not be empty"),
    ],
)
def test_what_went_wrong_is_said_in_one_line(url: str, arguments: tuple[str, ...], code: int, message: str) -> None:
    found, said = said_by("send", url, *arguments)
    assert found == code
    assert message in said.splitlines()[-1]
    complain_of_faults(said, "Traceback")
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("ws://127.0.0.1:1/", 1, "cannot connect to 127.0.0.1:1"),
        ("{url}/elsewhere", 1, "404"),
        ("localhost", 2, "url='localhost': must be as in 'ws://"),
    ],
)
def test_a_server_that_is_not_there_or_refuses_is_told(url: str, address: str, code: int, message: str) -> None:
    found, said = said_by("send", address.format(url=url), "echo")
    assert (found, said.count("\n")) == (code, 1)
    assert message in said


def test_what_comes_back_is_printed_while_it_is_waited_for(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "realtime", "send", url, "ready", "--wait", str(PATIENCE)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        message = json.loads(process.stdout.readline())
        assert message["type"] == "system:reply"
        assert message["payload"] == {"message": "you are welcome"}
        process.kill()


def test_headers_are_sent_and_certificates_trusted(tmp_path: Path) -> None:
    trustme = module("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    text = """
        from realtime import RealtimeKernel, WebSocketTransport

        tls = ("cert.pem", "key.pem")
        authenticate = lambda request: request.headers["x-name"]
        kernel = RealtimeKernel([WebSocketTransport(port=0, tls=tls, authenticate=authenticate)])

        @kernel.on("who")
        def who(message, context, toolkit):
            return context.identity
    """
    with serving(app(tmp_path, text), "app") as program:
        address = program.wait_for(r"(wss://\S+)")[1]
        trusted = run(tmp_path, "send", address, "who", "--ack", "--header", "X-Name: Ada", "--cafile", "ca.pem")
        assert (trusted.returncode, trusted.stdout) == (0, '"Ada"\n')
        strange = run(tmp_path, "send", address, "who", "--ack", "--header", "X-Name: Ada")
        assert strange.returncode == 1
        assert "certificate" in strange.stderr.lower()
        program.stop()


def test_ctrl_c_while_it_waits_exits_with_130(url: str, tmp_path: Path) -> None:
    with connect(url) as watcher, Terminal(tmp_path, "send", url, "wait", "--ack", "--timeout", "600") as terminal:
        while receive(watcher)["type"] != "waiting":
            pass
        terminal.interrupt()
        assert terminal.end() == 130
        complain_of_faults(terminal.text)


def test_the_handler_of_a_message_runs_once(url: str, tmp_path: Path) -> None:
    with connect(url) as member:
        member.send(json.dumps({"type": "system:join", "room": "tea once", "ack": 1}))
        receive(member)
        done = run(tmp_path, "send", url, "say", "only", "--room", "tea once", "--ack")
        assert (done.returncode, done.stdout) == (0, "")  # a handler that returns nothing has nothing to print
        assert receive(member)["payload"] == "only"
        send(member, "ready")
        assert receive(member)["type"] == "system:reply"
