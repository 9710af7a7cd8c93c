"""``realtime demo``: from the source tree, and from what an installation holds."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cli_rig import connect, receive, run
from programs import EXAMPLES, PATIENCE, ROOT, Program, complain_of_faults, source_copy
from requirements import module

PAGE = r"^    http://127\.0\.0\.1:(\d+)/$"
CODE = r"^Its code is (.*)$"


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def chat(port: int) -> None:
    """Two people in a room, by the address that the page uses."""
    url = f"ws://127.0.0.1:{port}/realtime"
    with connect(url) as ada, connect(url) as grace:
        grace.send(json.dumps({"type": "chat:message", "payload": "here", "room": "tea", "ack": 1}))
        while receive(grace)["type"] != "system:ack":
            pass
        ada.send(json.dumps({"type": "chat:message", "payload": "hello", "room": "tea"}))
        while (said := receive(grace))["type"] != "chat:message":
            pass
        assert said["payload"]["body"] == "hello"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as it is installed: what setuptools builds, away from the source tree."""
    module("setuptools")
    source, built = source_copy(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "-d", str(built)]
    subprocess.run(build, cwd=source, check=True, timeout=PATIENCE, capture_output=True)
    shutil.rmtree(source)
    return built


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_it_runs_from_an_installation(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(installed))
    with Program(Path("-m"), "realtime", "demo", "--port", "0", cwd=tmp_path) as program:
        port = int(program.wait_for(PAGE)[1])
        code = Path(program.wait_for(CODE)[1])
        assert installed in code.parents
        assert code.read_text() == (EXAMPLES / "basic.py").read_text()
        status, page = get(port, "/")
        assert status == 200
        for name in ("console.js", "page.js", "console.css", "page.css", "realtime/client.js"):
            assert get(port, f"/{name}")[0] == 200
            assert name.encode() in page or name in ("page.js", "realtime/client.js")  # which the script imports
        chat(port)
        assert program.stop(number) == 0
    complain_of_faults(program.text, "Traceback")


def test_a_second_demo_takes_another_port(tmp_path: Path) -> None:
    with (
        Program(Path("-m"), "realtime", "demo", cwd=tmp_path) as one,
        Program(Path("-m"), "realtime", "demo", cwd=tmp_path) as other,
    ):
        ports = [int(program.wait_for(PAGE)[1]) for program in (one, other)]
        assert ports[0] != ports[1]
        for port in ports:
            assert b"<title>realtime</title>" in get(port, "/")[1]
        assert [one.stop(), other.stop()] == [0, 0]


def test_a_port_that_was_asked_for_and_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, "demo", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"realtime: 127.0.0.1:{port} is in use")
    assert done.stderr.count("\n") == 1


def test_modules_of_the_current_directory_do_not_take_the_place_of_the_examples(tmp_path: Path) -> None:
    for name in ("basic", "console", "page"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    with Program(Path("-m"), "realtime", "demo", "--port", "0", cwd=tmp_path) as program:
        program.wait_for(PAGE)
        program.wait_for("WebSocket clients connect to ")
        assert program.stop() == 0


def test_the_package_holds_a_link_to_the_examples_and_no_second_copy() -> None:
    link = ROOT / "realtime" / "example-files"
    assert os.path.islink(link)
    assert link.resolve() == EXAMPLES
