"""``realtime bench``: load on a real server, a bar on a terminal, a summary for people and for programs."""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_rig import ASKED, Terminal, connect, receive, run, said_by, served
from programs import PATIENCE, complain_of_faults

COUNTING = f"""
{ASKED}
from collections import Counter

counts = Counter()

@kernel.middleware
def counting(message, context, toolkit, call_next):
    counts[message.type] += 1
    return call_next()

@kernel.on("count of")
def count_of(message, context, toolkit):
    return counts[message.payload]

@kernel.on("kick")
def kick(message, context, toolkit):
    if counts["kick"] % 5 == 0:
        kernel.disconnect(context.id, 4100)
        toolkit.wait_for("never")
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("served"), COUNTING) as address:
        yield address


def load(folder: Path, url: str, type_: str, count: int, *options: str) -> tuple[int, str]:
    """Run it until the server has had so many messages, then press Ctrl-C; return the exit code and its output."""
    command = [sys.executable, "-m", "realtime", "bench", url, "--seconds", "600", "--type", type_, *options]
    pipe = subprocess.PIPE
    with connect(url) as watcher, subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        seen = 0
        while seen < count:
            watcher.send(json.dumps({"type": "count of", "payload": type_, "ack": 1}))
            seen = receive(watcher)["payload"]["result"]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    return process.returncode, output


def test_a_program_gets_the_summary_as_a_line_of_json(url: str, tmp_path: Path) -> None:
    options = ("--clients", "5", "--payload", "[1]", "--room", "tea", "--msgpack", "--json")
    code, output = load(tmp_path, url, "echo", 50, *options)
    found = json.loads(output)
    assert code == 130
    assert found["clients"] == 5
    assert found["round_trips"] >= 45  # each of the five may have one on its way
    rounding = found["rate"] * 0.001 + 1  # seconds are told to three places, and may have been few
    assert found["rate"] * found["seconds"] == pytest.approx(found["round_trips"], abs=rounding)
    milliseconds = found["milliseconds"]
    assert 0 < milliseconds["p50"] <= milliseconds["p90"] <= milliseconds["p99"] <= milliseconds["max"]
    assert (found["errors"], found["closes"]) == ({}, {})


def test_it_ends_by_itself_with_0_when_nothing_went_wrong(url: str, tmp_path: Path) -> None:
    done = run(tmp_path, "bench", url, "--clients", "2", "--seconds", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"clients +2 *\n", done.stdout)
    assert re.search(r"errors +0 *\n", done.stdout)
    assert "\x1b" not in done.stdout


def test_errors_are_counted_by_what_the_server_says(url: str, tmp_path: Path) -> None:
    _, output = load(tmp_path, url, "refuse", 10, "--clients", "2")
    assert re.search(r"round trips +0 *\n", output)
    assert re.search(r"errors +[1-9]\d* +closed_on_mondays: not today", output)
    assert "\x1b" not in output


def test_connections_that_the_server_closes_come_back_and_are_counted(url: str, tmp_path: Path) -> None:
    # its only client was closed at the fifth, and has noticed before it asked for the tenth time
    found = json.loads(load(tmp_path, url, "kick", 10, "--clients", "1", "--json")[1])
    assert found["closes"]["4100"] >= 1
    assert found["errors"]["connection lost"] >= 1


def test_a_terminal_gets_a_bar_and_ctrl_c_a_summary_of_what_there_was(url: str, tmp_path: Path) -> None:
    with Terminal(tmp_path, "bench", url, "--clients", "3", "--seconds", "600") as terminal:
        terminal.wait_for(r"asking .*━.* [1-9][\d,]*/s")
        terminal.interrupt()
        assert terminal.end() == 130
        complain_of_faults(terminal.text)
    assert re.search(r"round trips.*[1-9][\d,]*", terminal.text)
    assert re.search(r"clients.* 3 ", terminal.text)


def test_ctrl_c_while_it_connects_ends_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        address = f"ws://127.0.0.1:{silent.getsockname()[1]}/"
        with Terminal(tmp_path, "bench", address, "--timeout", "600") as terminal:
            with silent.accept()[0]:
                terminal.interrupt()
                assert terminal.end() == 130
            complain_of_faults(terminal.text)


def test_without_a_server_or_rich_it_says_so(tmp_path: Path) -> None:
    gone = run(tmp_path, "bench", "ws://127.0.0.1:1/")
    assert (gone.returncode, gone.stdout, gone.stderr.count("\n")) == (1, "", 1)
    assert "cannot connect to 127.0.0.1:1" in gone.stderr
    (tmp_path / "rich.py").write_text("raise ImportError('not installed')\n")
    bare = run(tmp_path, "bench", "ws://127.0.0.1:1/")
    assert bare.returncode == 2
    assert bare.stderr == "realtime: bench needs rich: pip install 'realtime-toolkit[cli]'\n"


def test_clients_for_whom_there_are_no_descriptors_are_refused_at_once(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        *("bench", "ws://127.0.0.1:1/", "--clients", "500"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)),
    )
    assert done.returncode == 2
    assert "500 clients need 564 open files, and 200 are allowed" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clients", "0"), "'0': must be a whole number from 1"),
        (("--clients", "10001"), "'10001': at most 10000"),
        (("--seconds", "nan"), "'nan': must be seconds, above 0"),
        (("--seconds", "3601"), "'3601': at most 3600"),
    ],
)
def test_it_is_bounded(options: tuple[str, ...], message: str) -> None:
    code, said = said_by("bench", "ws://127.0.0.1:1/", *options)
    assert code == 2
    assert message in said
