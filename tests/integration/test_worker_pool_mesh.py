"""Worker processes whose kernel has a mesh of its own: they are one kernel, also with the nodes that it knows."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from programs import PATIENCE, Program
from worker_rig import SOCKET, Pool, ask, connect, write

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="SO_REUSEPORT spreads connections on Linux only"
)

CHAT = """
import os
from realtime import PeerMeshTransport, RealtimeKernel, WebSocketTransport

kernel = RealtimeKernel([WebSocketTransport(port=0, path="/"){mesh}])

@kernel.on("who")
def who(message, context, toolkit):
    return [os.getpid(), 1]

@kernel.on("join")
def join(message, context, toolkit):
    toolkit.rooms.join("tea")
    return len(toolkit.rooms.members("tea"))

@kernel.on("say")
def say(message, context, toolkit):
    toolkit.rooms.broadcast({{"type": "said", "payload": message.payload}}, "tea")
"""


def chat(folder: Path, mesh: str = "") -> None:
    write(folder, CHAT.format(mesh=f", {mesh}" if mesh else ""))


def all_join(clients: Collection[ClientConnection]) -> None:
    """Return when each has found all of them in the room."""
    deadline = time.monotonic() + PATIENCE
    while {ask(client, "join") for client in clients} != {len(clients)}:
        assert time.monotonic() < deadline, "the room is divided"
        time.sleep(0.02)


def each_hears_all(clients: Collection[ClientConnection]) -> None:
    """Whatever one of them says is heard by all."""
    for number, speaker in enumerate(clients):
        speaker.send(json.dumps({"type": "say", "payload": number}))
        for client in clients:
            heard = json.loads(client.recv(timeout=PATIENCE))
            assert (heard["type"], heard["payload"]) == ("said", number)


@pytest.fixture
def place() -> Iterator[str]:
    """A directory whose path is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="rt", dir="/tmp") as directory:
        yield directory


@pytest.mark.parametrize(
    "mesh",
    [
        "PeerMeshTransport(port=0)",
        "PeerMeshTransport(port=0, host='0.0.0.0', secret='quite', cluster='shop')",
        "PeerMeshTransport(port=None, peers=['127.0.0.1:1'])",
        "PeerMeshTransport(port=0, discover='unix:{place}')",
    ],
    ids=["a port", "a port for other machines", "only peers, none of them there", "a directory of its own"],
)
def test_a_room_spans_the_workers_whatever_mesh_the_kernel_has(tmp_path: Path, place: str, mesh: str) -> None:
    chat(tmp_path, mesh.format(place=place))
    with Pool.serving(tmp_path) as pool, ExitStack() as stack:
        clients = pool.one_client_each(stack).values()
        all_join(clients)
        each_hears_all(clients)
        assert pool.stop() == 0


def test_a_room_spans_the_workers_and_the_node_that_their_mesh_knows(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    chat(tmp_path / "there")
    elsewhere = Program("-m", "realtime", "serve", "app", "--mesh", "127.0.0.1:0", cwd=tmp_path / "there")
    with elsewhere, ExitStack() as stack:
        address = elsewhere.wait_for(r"listens at (127\.0\.0\.1:\d+)")[1]
        url = elsewhere.wait_for(SOCKET)[1]
        chat(tmp_path, f"PeerMeshTransport(port=0, peers=['{address}'])")
        with Pool.serving(tmp_path) as pool:
            clients = [stack.enter_context(connect(url)), *pool.one_client_each(stack).values()]
            all_join(clients)
            each_hears_all(clients)
            stack.close()
            assert pool.stop() == 0
        assert elsewhere.stop() == 0
