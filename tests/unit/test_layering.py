"""Imports point one way, gevent stays outside of the protocols, and importing realtime does nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import realtime

ROOT = Path(realtime.__file__).parent

# Inner layers first. A module may import from its own layer and from inner ones. A name stands for the module and
# all below it; the longest one that fits counts.
LAYERS = [
    ["errors", "codes", "config", "delivery", "message", "events"],
    [
        "protocols",
        "cluster",
        "cursors",
        "room_log",
        "rooms",
        "room_rules",
        "room_watch",
        "presence",
        "presence_diff",
        "routing",
        "session_ring",
        "session_wire",
        "supervision",
    ],
    [
        "cluster_node",
        "connection",
        "conversation",
        "dispatch",
        "drain",
        "expiry",
        "flusher",
        "history",
        "history_holds",
        "history_wire",
        "hub",
        "inboxes",
        "kernel",
        "lanes",
        "live_presence",
        "outbox",
        "outgoing",
        "reach",
        "recovery",
        "requests",
        "room_calls",
        "session_arrivals",
        "session_calls",
        "session_departures",
        "session_line",
        "sessions",
        "sink",
        "startup",
        "threads",
        "toolkit",
        "watchdog",
        "workers",
    ],
    ["transports", "signaling", "worker_channel", "worker_pool", "worker_ports", "worker_process"],
    ["integrations", "client", "cli", "__main__", "testing"],
]
WITHOUT_GEVENT = [*LAYERS[0], *LAYERS[1]]
OPTIONAL = {"flask", "paho", "aioquic", "redis", "websockets", "pytest", "rich"}
OPTIONAL |= {"flask_login", "geventwebsocket", "gunicorn", "simple_websocket"}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below it; the package itself, which only lists names, is left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found[name] = path
    return found


MODULES = modules()


def layer_of(name: str) -> int:
    fitting = [
        (len(prefix), number)
        for number, layer in enumerate(LAYERS)
        for prefix in layer
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert fitting, f"realtime.{name} is in no layer: add it to LAYERS where it belongs"
    return max(fitting)[1]


def imports_of(path: Path) -> Iterator[str]:
    """The absolute names of what a file imports when it runs: not what is only for type checkers."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("realtime.") in MODULES
                yield whole if is_module else node.module
        waiting.extend(ast.iter_child_nodes(node))


def test_the_reader_of_imports_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\n"
        "from c import d\n"
        "from realtime import hub, event_name\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import no\nelse:\n    import yes\n"
        "def f():\n    from realtime.errors import Reject\n"
    )
    found = {"a.b", "c", "realtime.hub", "realtime", "typing", "yes", "realtime.errors"}
    assert set(imports_of(path)) == found


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_inwards(name: str) -> None:
    own = layer_of(name)
    for imported in imports_of(MODULES[name]):
        assert imported != "realtime" or own == len(LAYERS) - 1, f"{name} imports the whole package"
        if imported.startswith("realtime."):
            inner = imported.removeprefix("realtime.")
            assert layer_of(inner) <= own, f"realtime.{name} imports {imported}, which is further out"


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in WITHOUT_GEVENT])
def test_state_and_protocols_know_nothing_of_gevent_sockets_or_the_clock(name: str) -> None:
    used = {imported.split(".")[0] for imported in imports_of(MODULES[name])}
    assert used.isdisjoint({"gevent", "greenlet", "socket", "select", "time", "threading"}), used


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name.split(".")[0] not in ("integrations", "client", "cli")]
)
def test_optional_packages_are_imported_only_where_they_belong(name: str) -> None:
    used = {imported.split(".")[0] for imported in imports_of(MODULES[name])}
    assert used.isdisjoint(OPTIONAL), used


def run_python(code: str) -> str:
    """Run code in a new process; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


MODULES_OF_SERVERS = ["kernel", "signaling", "testing", "transports.mesh", "transports.websocket", "worker_pool"]


@pytest.mark.parametrize("module", ["realtime", *(f"realtime.{name}" for name in MODULES_OF_SERVERS)])
def test_importing_patches_nothing_and_imports_nothing_optional(module: str) -> None:
    code = f"""
import select, socket, ssl, subprocess, sys, threading, time
before = [socket.socket, ssl.SSLSocket, threading.Thread, threading.Lock, time.sleep, select.select, subprocess.Popen]
import {module}
after = [socket.socket, ssl.SSLSocket, threading.Thread, threading.Lock, time.sleep, select.select, subprocess.Popen]
assert before == after, "something was replaced"
from gevent import monkey
assert not monkey.saved, monkey.saved
print(*sorted(set(sys.modules) & {OPTIONAL!r}))
"""
    assert run_python(code).strip() == ""


def test_importing_starts_no_thread_opens_no_socket_and_configures_no_logging() -> None:
    code = """
import logging, os, threading
import realtime.kernel, realtime.testing, realtime.worker_pool
assert threading.active_count() == 1
assert not logging.getLogger().handlers and not logging.getLogger("realtime").handlers
links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
names = [os.readlink(link) for link in links if os.path.lexists(link)]
print(*[name for name in names if name.startswith("socket:")])
"""
    assert run_python(code).strip() == ""
