"""The servers compared: how each is started on its core, and why one may be missing."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.clients import Target
from benchmarks.dialects import Dialect, JsonDialect, SocketIoDialect

__all__ = ["PEERS", "Peer", "Server", "ServerFailed", "cores", "prioritise", "raise_descriptor_limit"]

_HERE = Path(__file__).parent
_START_TIMEOUT = 20.0


class ServerFailed(Exception):
    """A server did not start, or died; the text ends with what it had to say."""


@dataclass(frozen=True)
class Peer:
    """One server program."""

    name: str
    label: str
    """What the table and the chart call it."""
    module: str
    needs: tuple[str, ...]
    """Import names without which it cannot run."""
    distributions: tuple[str, ...]
    """What its version consists of."""
    dialect: Dialect = field(default_factory=JsonDialect)
    default: bool = True
    """Runs unless ``--only`` says otherwise."""
    patched: bool = False
    """Wants gevent's monkey-patching before it is imported."""
    arguments: tuple[str, ...] = ()
    """Of its command line."""

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def command(self) -> tuple[list[str], dict[str, str]]:
        """What to execute, and the environment it needs beside ours."""
        runner = ["-m", "gevent.monkey", "--module"] if self.patched else ["-m"]
        return [sys.executable, *runner, f"benchmarks.peers.{self.module}", *self.arguments], {}

    def version(self) -> str:
        """The versions measured, in one line."""
        return ", ".join(f"{name} {_version(name)}" for name in self.distributions)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(this checkout)"


@dataclass(frozen=True)
class NodePeer(Peer):
    """Node's ws: npm installs it once into the user's cache directory."""

    @property
    def _directory(self) -> Path:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "realtime-benchmarks" / "node"

    def missing(self) -> str | None:
        for tool in ("node", "npm"):
            if shutil.which(tool) is None:
                return f"{tool} is not on PATH"
        if not (self._directory / "node_modules" / "ws").is_dir():
            self._directory.mkdir(parents=True, exist_ok=True)
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(self._directory), "ws"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                return f"npm install ws failed: {done.stderr.strip()[-300:]}"
        return None

    def command(self) -> tuple[list[str], dict[str, str]]:
        return ["node", str(_HERE / "peers" / self.module)], {"REALTIME_BENCH_NODE": str(self._directory)}

    def version(self) -> str:
        script = "const ws = require(process.argv[1] + '/node_modules/ws/package').version;"
        script += "console.log(`ws ${ws}, node ${process.version}`)"
        done = subprocess.run(["node", "-e", script, str(self._directory)], capture_output=True, text=True)
        return done.stdout.strip()


PEERS: tuple[Peer, ...] = (
    Peer(
        "realtime",
        "realtime",
        "realtime_kernel",
        ("realtime.kernel",),
        ("realtime-toolkit", "gevent", "msgspec"),
    ),
    Peer(
        "gevent-websocket",
        "gevent-websocket",
        "gevent_websocket",
        ("gevent", "geventwebsocket"),
        ("gevent-websocket", "gevent"),
        patched=True,
    ),
    Peer("websockets", "websockets (asyncio)", "websockets_asyncio", ("websockets",), ("websockets",)),
    Peer(
        "flask-socketio",
        "Flask-SocketIO (gevent)",
        "flask_socketio",
        ("flask_socketio", "gevent", "geventwebsocket"),
        ("Flask-SocketIO", "python-socketio", "python-engineio", "gevent", "gevent-websocket"),
        SocketIoDialect(),
        patched=True,
    ),
    NodePeer("ws", "ws (Node.js)", "ws_server.mjs", (), ()),
    Peer(
        "realtime-plain",
        "realtime, plain layer",
        "realtime_plain",
        ("realtime.transports.websocket",),
        ("realtime-toolkit", "gevent"),
        default=False,
    ),
    Peer("ceiling", "ceiling (no server)", "ceiling", (), ()),
)


@functools.cache
def cores() -> tuple[int, int]:
    """The cores for the server and for the load generator: the first two we may use, or one for both.

    Decided once: later the load generator is pinned, and would only be shown its own.
    """
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[min(1, len(allowed) - 1)]


def raise_descriptor_limit() -> None:
    """Lift the soft limit of open files to the hard one, for us and the servers that inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def prioritise(nice: int) -> None:
    """Change our priority and that of the servers, against other programs.

    Where Linux groups processes by terminal session (``autogroup``), the session's own value is what counts.
    """
    os.nice(nice)
    autogroup = Path("/proc/self/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(nice))


class Server:
    """A peer's process on its own core, from ``start`` to ``stop``."""

    def __init__(self, peer: Peer, core: int) -> None:
        self.peer = peer
        self._core = core
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it goes with this object)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Target:
        """Start it and wait for its port.

        :raises ServerFailed: if it does not listen within 20 s.
        """
        command, environment = self.peer.command()
        core = self._core
        self._process = subprocess.Popen(
            command,
            env=os.environ | environment,
            cwd=_HERE.parent,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], (), (), _START_TIMEOUT)
        line = self._process.stdout.readline() if ready else ""
        if not line.startswith("listening "):
            self.stop()
            raise ServerFailed(f"{self.peer.label} did not start\n{self.said()}")
        target = Target(self._process.pid, int(line.split()[1]), self.peer.dialect)
        _await_port(target.port)
        return target

    def said(self) -> str:
        """The end of its standard error."""
        self._errors.seek(0)
        return self._errors.read()[-3000:]

    def stop(self) -> None:
        """Terminate it; kill it if it does not end within 5 s."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _await_port(port: int) -> None:
    """Wait until something listens, without connecting: one server announces its port just before it does."""
    wanted = f":{port:04X}"
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        with open("/proc/net/tcp") as table:
            for line in table:
                fields = line.split()
                if fields[1].endswith(wanted) and fields[3] == "0A":
                    return
        time.sleep(0.02)
    raise ServerFailed(f"nothing listens on port {port}")
