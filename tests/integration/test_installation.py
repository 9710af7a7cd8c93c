"""What `pip install .` brings into an environment of its own, with no extra and then with one: nothing is there by luck
because the tests need it, too."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosting_rig import until
from programs import PATIENCE, source_copy
from requirements import missing

INSTALLING = 5 * PATIENCE  # seconds; from the package index
APPLICATION = """
from realtime import RealtimeKernel
from realtime.integrations.wsgi import RealtimeMiddleware

kernel = RealtimeKernel()
kernel.on("add", lambda message, context, toolkit: sum(message.payload))


def page(environ, start_response):
    start_response("200 OK", [("Content-Length", "4")])
    return [b"page"]


application = RealtimeMiddleware(page, kernel)
"""
ALONE = """
import sys
import realtime

for name in realtime.__all__:
    getattr(realtime, name)
print(sorted(name for name in ("flask", "gunicorn", "rich", "geventwebsocket") if name in sys.modules))

from realtime import Client, RealtimeKernel, WebSocketTransport

transport = WebSocketTransport(port=0)
kernel = RealtimeKernel([transport], log_level="error")
kernel.on("add", lambda message, context, toolkit: sum(message.payload))
kernel.start()


def ask():
    with Client(transport.url) as client:
        return client.call("add", [1, 2])


import gevent

print(gevent.get_hub().threadpool.apply(ask))
kernel.stop(5)
"""


class Environment:
    """A virtual environment with the package in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "source").mkdir()
        self._source = source_copy(folder / "source")
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=INSTALLING)

    def install(self, what: str) -> None:
        command = [self.program("python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", what]
        done = subprocess.run(
            command, cwd=self._source, capture_output=True, text=True, timeout=INSTALLING, check=False
        )
        if "No matching distribution found" in done.stderr:
            missing("a package index", f"pip install {what} said {done.stderr[-500:]}")
        assert done.returncode == 0, done.stderr

    def program(self, name: str) -> str:
        return str(self._folder / "venv" / "bin" / name)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment to its end, away from the source tree."""
        elsewhere = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [self.program(name), *arguments],
            cwd=self._folder,
            env=elsewhere,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment"))
    made.install(".")
    return made


def test_without_an_extra_everything_public_is_there_and_serves(environment: Environment) -> None:
    done = environment.run("python", "-c", ALONE)
    assert (done.returncode, done.stdout) == (0, "[]\n3\n"), done.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "code", "named"),
    [
        ("python", ("-c", "import realtime.integrations.flask"), 1, "pip install 'realtime-toolkit[flask]'"),
        ("realtime", ("bench", "ws://127.0.0.1:1/"), 2, "pip install 'realtime-toolkit[cli]'"),
        ("python", ("-m", "gunicorn", "--version"), 1, "No module named gunicorn"),
    ],
    ids=["flask", "bench", "gunicorn"],
)
def test_an_extra_that_is_not_there_is_named(
    environment: Environment, program: str, arguments: tuple[str, ...], code: int, named: str
) -> None:
    done = environment.run(program, *arguments)
    assert done.returncode == code
    assert named in done.stderr.splitlines()[-1]


def test_the_command_line_works_without_an_extra_and_doctor_names_them_all(environment: Environment) -> None:
    refused = environment.run("realtime", "send", "ws://127.0.0.1:1/", "hello")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "cannot connect to 127.0.0.1:1" in refused.stderr
    doctor = environment.run("realtime", "doctor")
    assert doctor.returncode == 0, doctor.stderr
    text = " ".join(doctor.stdout.split())  # as it was before it was wrapped
    for extra in ("cli", "flask", "gunicorn"):
        assert f"pip install 'realtime-toolkit[{extra}]'" in text


@pytest.fixture
def gunicorn(environment: Environment, tmp_path: Path) -> Iterator[Path]:
    """gunicorn's gevent worker with nothing but what the extra of its name brings; gives the socket it listens at."""
    environment.install(".[gunicorn]")
    (tmp_path / "app.py").write_text(APPLICATION)
    place, log = tmp_path / "socket", (tmp_path / "log").open("w+")
    options = ["-k", "gevent", "-b", f"unix:{place}", "--no-control-socket", "app:application"]
    with log, subprocess.Popen([environment.program("gunicorn"), *options], cwd=tmp_path, stderr=log) as server:
        try:
            until(lambda: listens(place) or server.poll() is not None)
            assert server.poll() is None, (tmp_path / "log").read_text()
            yield place
        finally:
            server.terminate()
            server.wait(PATIENCE)


def listens(place: Path) -> bool:
    """Tell whether somebody does: the file is there before."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(place)) == 0


def test_the_extra_for_gunicorn_is_all_its_workers_need(gunicorn: Path) -> None:
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(PATIENCE)
    connection.sock.connect(str(gunicorn))
    connection.request("GET", "/")
    with connection.getresponse() as answer:
        assert answer.read() == b"page"
    connection.close()
