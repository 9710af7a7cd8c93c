"""Nodes in processes of their own, on networks that can be cut: namespaces, or loopback through proxies."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, count
from pathlib import Path
from typing import Any

import gevent
import gevent.subprocess
from gevent.event import AsyncResult
from mesh_program import Program
from mesh_proxy import LoopbackNetwork
from ports import free_ports

__all__ = [
    "CALM",
    "HERE",
    "LONG",
    "PATIENCE",
    "QUICK",
    "Asked",
    "Cluster",
    "Namespaces",
    "Network",
    "NodeHere",
    "NodeProcess",
    "Proxies",
    "any_network",
    "eventually",
]

LONG = os.environ.get("REALTIME_FAULTS") == "long"
PATIENCE = 300.0 if LONG else 60.0  # seconds any wait may take before the test fails
PROGRAM = Path(__file__).with_name("mesh_program.py")
ROOT = PROGRAM.parents[2]
QUICK = {"ping": 0.1, "suspect": 0.8, "down": 2.5, "backoff": 0.05, "backoff_max": 0.2, "authentication": 0.5}
CALM = {**QUICK, "suspect": 20.0, "down": 30.0, "authentication": 5.0}  # where nobody is to be missed
HERE = {**QUICK, "authentication": PATIENCE}  # nodes of one process are held up together, also in a handshake


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a state that nothing announces; return what the condition returned."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        gevent.sleep(0.02)
    return found


class Asked(ABC):
    """A node that answers questions: ``node.ask("view")``; see ``mesh_program.py`` for them."""

    id: str
    log: list[str]

    @property
    @abstractmethod
    def where(self) -> dict[str, Any]:
        """Where it listens: ``address``, ``port`` and ``sockets``, the port for WebSocket clients."""

    @abstractmethod
    def ask(self, do: str, **arguments: Any) -> Any:
        """Ask something and return the result."""

    @abstractmethod
    def kill(self) -> None:
        """Have it end at once."""

    def counter(self, name: str) -> int:
        """Return one counter of the kernel or the mesh."""
        return int(self.ask("counters").get(name, 0))

    def events(self, name: str, node: str | None = None) -> list[dict[str, Any]]:
        """Return what the mesh told under a name, about one node if given."""
        return [
            payload
            for event, payload in self.ask("events")
            if event == name and (node is None or payload["node"] == node)
        ]

    def logged(self, *texts: str) -> str:
        """Wait for a line of the log with these texts; return it."""

        def found() -> str | None:
            return next((line for line in self.log if all(text in line for text in texts)), None)

        return str(eventually(found, f"{texts} in {self.log}"))


class NodeHere(Asked):
    """A node in this process."""

    def __init__(self, mesh: dict[str, Any]) -> None:
        self.id = mesh["node_id"]
        self.log = []
        self._handler = logging.Handler()
        self._handler.emit = lambda record: self.log.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("realtime").addHandler(self._handler)
        self._program = Program({"mesh": {"options": HERE, **mesh}})
        self._where = self._program.start()

    @property
    def where(self) -> dict[str, Any]:
        return self._where

    def ask(self, do: str, **arguments: Any) -> Any:
        return getattr(self._program, do)(**arguments)

    def kill(self) -> None:
        self._program.stop()
        logging.getLogger("realtime").removeHandler(self._handler)


class NodeProcess(Asked):
    """A node in a process of its own, driven over pipes."""

    def __init__(self, mesh: dict[str, Any], *, command: Sequence[str] = ()) -> None:
        options = {"mesh": {"options": QUICK, **mesh}}
        self.id = mesh["node_id"]
        self.log = []
        self._numbers = count()
        self._waiting: dict[int, AsyncResult[Any]] = {}
        self._process = gevent.subprocess.Popen(
            [*command, sys.executable, str(PROGRAM), repr(options)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started: AsyncResult[dict[str, Any]] = AsyncResult()
        self._readers = [gevent.spawn(self._read_answers), gevent.spawn(self._read_log)]

    def _read_answers(self) -> None:
        for line in self._process.stdout:
            answer = json.loads(line)
            if "id" not in answer:
                self._started.set(answer)
            elif "error" in answer:
                self._waiting.pop(answer["id"]).set_exception(AssertionError(f"{self.id}: {answer['error']}"))
            else:
                self._waiting.pop(answer["id"]).set(answer["result"])
        ended = AssertionError(f"{self.id} has ended: {self.log[-20:]}")
        for answered in (self._started, *self._waiting.values()):
            if not answered.ready():
                answered.set_exception(ended)

    def _read_log(self) -> None:
        for line in self._process.stderr:
            self.log.append(line.decode())

    @property
    def where(self) -> dict[str, Any]:
        return self._started.get(timeout=PATIENCE)

    def begin(self, do: str, **arguments: Any) -> AsyncResult[Any]:
        """Ask something; the result comes later."""
        number = next(self._numbers)
        answer = self._waiting[number] = AsyncResult()
        self._process.stdin.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        return answer

    def ask(self, do: str, **arguments: Any) -> Any:
        return self.begin(do, **arguments).get(timeout=PATIENCE)

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self._process.pid)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        gevent.joinall(self._readers, timeout=PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Network(ABC):
    """Where nodes are, by their place: 0, 1, ..."""

    @abstractmethod
    def options(self, place: int, node_id: str) -> dict[str, Any]:
        """Return how the node there is reached: options of its transport."""

    def command(self, place: int) -> Sequence[str]:
        """Return what runs a program there."""
        return ()

    @abstractmethod
    def cut(self, sender: int, receiver: int) -> None:
        """Let nothing pass from one to the other any more."""

    @abstractmethod
    def heal(self) -> None:
        """Let everything pass again."""

    @abstractmethod
    def close(self) -> None:
        """Remove everything."""

    def part(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Cut two groups off from each other."""
        others = list(other)
        for here in one:
            for there in others:
                self.cut(here, there)
                self.cut(there, here)


class Namespaces(Network):
    """A network namespace for each node, with veth links to a bridge; nftables drops what is cut."""

    _numbers = count()

    def __init__(self, size: int) -> None:
        self._prefix = f"rt{os.getpid() % 10000}x{next(self._numbers)}"
        self._names = [f"{self._prefix}n{place}" for place in range(size)]
        self._hub = f"{self._prefix}hub"
        self._cuts: dict[int, list[int]] = {}
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        _run(f"ip netns add {self._hub}")
        _run(f"ip -n {self._hub} link add br0 type bridge")
        _run(f"ip -n {self._hub} link set br0 up")
        for place, name in enumerate(self._names):
            _run(f"ip netns add {name}")
            _run(f"ip -n {name} link add eth0 type veth peer name p{place} netns {self._hub}")
            _run(f"ip -n {self._hub} link set p{place} master br0 up")
            _run(f"ip -n {name} addr add {self._address(place)}/24 dev eth0")
            _run(f"ip -n {name} link set eth0 up")
            _run(f"ip -n {name} link set lo up")
        _run(f"ip netns exec {self._names[0]} nft list ruleset")

    @staticmethod
    def _address(place: int) -> str:
        return f"10.78.0.{place + 1}"

    def options(self, place: int, node_id: str) -> dict[str, Any]:
        return {
            "host": self._address(place),
            "port": 9090,
            "insecure": True,
            "peers": [f"{self._address(other)}:9090" for other in range(place)],
        }

    def command(self, place: int) -> Sequence[str]:
        return ("ip", "netns", "exec", self._names[place])

    def cut(self, sender: int, receiver: int) -> None:
        name = self._names[receiver]
        if receiver not in self._cuts:
            self._cuts[receiver] = []
            _run(f"ip netns exec {name} nft add table inet f")
            _run(f"ip netns exec {name} nft add chain inet f i {{ type filter hook input priority 0 ; }}")
        self._cuts[receiver].append(sender)
        _run(f"ip netns exec {name} nft add rule inet f i ip saddr {self._address(sender)} drop")

    def heal(self) -> None:
        for receiver in self._cuts:
            _run(f"ip netns exec {self._names[receiver]} nft delete table inet f")
        self._cuts.clear()

    def close(self) -> None:
        for name in (*self._names, self._hub):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=PATIENCE)


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False, timeout=PATIENCE)
    if done.returncode:
        raise PermissionError(f"{command}: {done.stderr.strip()}")


class Proxies(Network):
    """All on loopback, with a proxy before each node: needs no rights, and shows the frames on the links."""

    def __init__(self, size: int) -> None:
        self.loopback = LoopbackNetwork()
        self._ports = free_ports(size)
        self._ids: dict[int, str] = {}
        self._addresses: dict[int, str] = {}

    def options(self, place: int, node_id: str) -> dict[str, Any]:
        if place not in self._addresses:
            self._ids[place] = node_id
            self._addresses[place] = self.loopback.in_front_of(node_id, lambda: self._ports[place])
        peers = [address for other, address in self._addresses.items() if other < place]
        return {"port": self._ports[place], "advertise": self._addresses[place], "peers": peers}

    def cut(self, sender: int, receiver: int) -> None:
        self.loopback.cut(self._ids[sender], self._ids[receiver])

    def heal(self) -> None:
        self.loopback.heal()

    def close(self) -> None:
        self.loopback.close()


def any_network(size: int) -> Network:
    """Return namespaces; where they are not permitted, proxies, and the reason is printed."""
    try:
        return Namespaces(size)
    except (PermissionError, FileNotFoundError) as error:
        print(f"on loopback through proxies, as there are no network namespaces: {error}")
        return Proxies(size)


class Cluster:
    """Nodes ``n0``, ``n1``, ... on a network. Use as a context manager.

    :param mesh: options of their transports.
    """

    def __init__(self, size: int, network: Network, mesh: dict[str, Any] | None = None) -> None:
        self.network = network
        self.nodes: list[NodeProcess] = []
        self._mesh = mesh or {}
        self._views: list[Any] = []
        self._size = size

    def __enter__(self) -> Cluster:
        try:
            for place in range(self._size):
                self.nodes.append(self.start(place))
            self.wait_until_equal()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all nodes and remove the network."""
        for node in self.nodes:
            node.kill()
        self.network.close()

    def start(self, place: int) -> NodeProcess:
        """Start the node of a place, for the first time or again."""
        node_id = f"n{place}"
        mesh = {"node_id": node_id, **self.network.options(place, node_id), **self._mesh}
        return NodeProcess(mesh, command=self.network.command(place))

    def restart(self, place: int) -> None:
        """Start a node that was killed."""
        self.nodes[place] = self.start(place)

    def wait_until_equal(self, places: Iterable[int] | None = None, clients: int | None = None) -> dict[str, Any]:
        """Wait until these nodes, all if not given, and no others, see each other and the same; return what."""
        nodes = self.nodes if places is None else [self.nodes[place] for place in places]
        ids = sorted(node.id for node in nodes)

        def equal() -> dict[str, Any] | None:
            views = [node.ask("view") for node in nodes]
            same = all(one == other for one, other in combinations(views, 2))
            first: dict[str, Any] = views[0]
            full = first["nodes"] == ids and not first["unlinked"] and clients in (None, len(first["clients"]))
            self._views = views
            return first if same and full else None

        try:
            return eventually(equal, f"equal views of {ids} with {clients} clients")  # type: ignore[no-any-return]
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._views}") from None
