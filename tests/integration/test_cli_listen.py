"""``realtime listen``: in a pipe, and on a terminal."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli_rig import Terminal, connect, receive, said_by, served
from programs import PATIENCE, complain_of_faults

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture
def speaker(url: str) -> Iterator[ClientConnection]:
    with connect(url) as client:
        yield client


def tell(client: ClientConnection, type_: str, payload: Any, room: str) -> Any:
    """Send a message and return its handler's result."""
    client.send(json.dumps({"type": type_, "payload": payload, "room": room, "ack": 1}))
    while True:
        message = receive(client)
        if message["type"] == "system:ack":
            return message["payload"].get("result")


def wait_for_members(client: ClientConnection, room: str, count: int = 1) -> None:
    while tell(client, "members", None, room) != count:
        pass


def listening(folder: Path, url: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "realtime", "listen", url, *options]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("codec", [(), ("--msgpack",)], ids=["JSON", "MessagePack"])
def test_a_pipe_gets_a_line_of_json_for_each_message_of_the_wanted_types(
    url: str, speaker: ClientConnection, tmp_path: Path, codec: tuple[str, ...]
) -> None:
    room = f"tea {codec}"
    with listening(tmp_path, url, "--join", room, "--type", "sai*", "--count", "2", *codec) as process:
        wait_for_members(speaker, room)
        tell(speaker, "say", "one", room)
        tell(speaker, "say", {"zwei": "ü\x1b[31m\n"}, room)
        output, errors = process.communicate(timeout=PATIENCE)
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["type"], line["room"], line["payload"]) for line in lines] == [
        ("said", room, "one"),
        ("said", room, {"zwei": "ü\x1b[31m\n"}),
    ]
    assert all(line["timestamp"] > 1_600_000_000_000 for line in lines)
    assert "\x1b" not in output
    assert process.returncode == 0
    assert errors.startswith(f"connected to {url} as ")


def test_everything_is_shown_but_the_token_with_which_others_could_take_the_place_of_this_client(
    url: str, tmp_path: Path
) -> None:
    with listening(tmp_path, url, "--type", "*", "--count", "1") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    welcome = json.loads(output)
    assert welcome["type"] == "system:welcome"
    assert welcome["payload"]["session"] == {"resumed": False, "received": 0, "grace": 30.0}


def test_a_terminal_gets_readable_lines_in_colour_that_strangers_cannot_break(
    url: str, speaker: ClientConnection, tmp_path: Path
) -> None:
    with Terminal(tmp_path, "listen", url, "--join", "tea time") as terminal:
        wait_for_members(speaker, "tea time")
        tell(speaker, "say", "\x1b[2Jboo\u202e\x9b", "tea time")
        line = terminal.wait_for(r"\n(.*said.*boo.*)\n")[1]
        terminal.interrupt()
        assert terminal.end() == 0
        complain_of_faults(terminal.text)
    assert "\x1b[" in line
    plain = ESCAPE.sub("", line).strip()
    assert re.fullmatch(r'\d\d:\d\d:\d\d  said in tea time  "\\u001b\[2Jboo\\u202e\\u009b"', plain), plain


@pytest.mark.parametrize("without", ["colour", "rich"])
def test_no_color_and_a_missing_rich_leave_it_plain(
    url: str, speaker: ClientConnection, tmp_path: Path, without: str
) -> None:
    if without == "rich":
        (tmp_path / "rich.py").write_text("raise ImportError('not installed')\n")
    environment = {"NO_COLOR": "1"} if without == "colour" else {}
    room = f"tea without {without}"
    with Terminal(tmp_path, "listen", url, "--join", room, "--count", "1", environment=environment) as terminal:
        wait_for_members(speaker, room)
        tell(speaker, "say", "plainly", room)
        assert terminal.end() == 0
    assert f'said in {room}  "plainly"' in terminal.text
    assert "\x1b" not in terminal.text


def test_messages_are_sent_first_and_again_after_a_lost_connection_as_rooms_are_joined(
    url: str, speaker: ClientConnection, tmp_path: Path
) -> None:
    options = ("--join", "tea again", "--send", '{"type": "ready"}', "--count", "3")
    with listening(tmp_path, url, *options) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "system:reply"
        wait_for_members(speaker, "tea again")
        tell(speaker, "close all", 4100, "tea again")
        assert json.loads(process.stdout.readline())["type"] == "system:reply"
        wait_for_members(speaker, "tea again")
        tell(speaker, "say", "welcome back", "tea again")
        output, errors = process.communicate(timeout=PATIENCE)
    assert json.loads(output)["payload"] == "welcome back"
    assert process.returncode == 0
    assert re.search(r"connection lost: 4100; again in \d+\.\d s\nconnected to ", errors)


def test_a_connection_that_is_closed_for_good_ends_it_with_1(
    url: str, speaker: ClientConnection, tmp_path: Path
) -> None:
    with listening(tmp_path, url, "--join", "tea out") as process:
        wait_for_members(speaker, "tea out")
        tell(speaker, "close all", 4500, "tea out")
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "realtime: connection closed: 4500"


def test_a_room_that_may_not_be_joined_is_told_with_what_the_server_says(url: str) -> None:
    code, said = said_by("listen", url, "--join", "coffee")
    assert code == 1
    assert "forbidden" in said.splitlines()[-1]
    assert "kernel.rooms.configure" in said


def test_it_leaves_quietly_when_nobody_reads_on(url: str, speaker: ClientConnection, tmp_path: Path) -> None:
    with listening(tmp_path, url, "--join", "tea pipe") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_for_members(speaker, "tea pipe")
        process.stdout.close()
        tell(speaker, "say", "to nobody", "tea pipe")
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read().count("\n") == 1  # connected


def test_ctrl_c_in_a_pipe_ends_it_with_0(url: str, speaker: ClientConnection, tmp_path: Path) -> None:
    with listening(tmp_path, url, "--join", "tea stop") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("connected to ")  # told by another thread than the one that joins
        wait_for_members(speaker, "tea stop")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output, errors) == (0, "", "")
    wait_for_members(speaker, "tea stop", 0)


@pytest.mark.parametrize("message", ["hello", "[1]", '{"room": "tea"}', '{"type": "a", "ack": 1}'])
def test_what_is_no_message_cannot_be_sent_first(message: str) -> None:
    code, said = said_by("listen", "ws://127.0.0.1:1/", "--send", message)
    assert code == 2
    assert """must be as in '{"type": "room:join", "room": "tea"}'""" in said
