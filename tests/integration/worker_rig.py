"""Pools of worker processes, and clients of theirs."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from programs import PATIENCE, Program
from requirements import module

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

SOCKET = r"(ws://127\.0\.0\.\d:(\d+)/\S*)"
KERNEL = """
import os
from realtime import RealtimeKernel, WebSocketTransport

version = 1
kernel = RealtimeKernel([WebSocketTransport(port=0, path="/")])

@kernel.on("who")
def who(message, context, toolkit):
    return [os.getpid(), version]
"""
SCRIPT = """
import os, sys
from realtime import PoolOptions, RealtimeKernel, WebSocketTransport, WorkerPool

def make_kernel():
    kernel = RealtimeKernel([WebSocketTransport(port=0, path="/")])

    @kernel.on("who")
    def who(message, context, toolkit):
        return [os.getpid(), worker_here]

    return kernel
"""

# up to setup: the first process of each worker serves, the second never gets ready
NEVER_READY_AGAIN = f"""{SCRIPT}
import time

def setup(worker):
    global worker_here
    worker_here = worker.generation
    while worker.generation == 2:
        time.sleep(1)
    return make_kernel()

"""
ENOUGH = 400  # connections: that all of them meet the same one of two or three workers that serve will not happen


def write(folder: Path, text: str, name: str = "app.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def connect(url: str) -> ClientConnection:
    made: ClientConnection = module("websockets.sync.client").connect(url, open_timeout=PATIENCE)
    return made


def ask(client: ClientConnection, type_: str = "who", **fields: Any) -> Any:
    client.send(json.dumps({"type": type_, "ack": 1, **fields}))
    message = json.loads(client.recv(timeout=PATIENCE))
    assert message["type"] == "system:ack", message
    return message["payload"].get("result")


def close_code(client: ClientConnection) -> int:
    with pytest.raises(module("websockets.exceptions").ConnectionClosed) as closed:
        all(client.recv(timeout=PATIENCE) for _ in iter(int, 1))
    assert closed.value.rcvd is not None, "no close frame"
    code: int = closed.value.rcvd.code
    return code


class Pool(Program):
    """A running pool: its workers all serve."""

    url = ""
    port = 0

    @classmethod
    def serving(cls, folder: Path, workers: int = 2, target: str = "app:kernel") -> Pool:
        """Run ``realtime serve --workers``."""
        return cls(Path("-m"), "realtime", "serve", target, "--workers", str(workers), cwd=folder)

    def __enter__(self) -> Pool:
        try:
            found = self.wait_for(SOCKET)
            self.url, self.port = found[1], int(found[2])
            self.wait_for(r"\d+ workers? serves?")
        except BaseException:
            super().__exit__(None, None, None)
            raise
        return self

    def workers(self) -> set[int]:
        """Return the processes that the pool has now, from the system."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return {int(pid) for pid in children.read_text().split()}

    def client_of(self, wanted: Callable[[int], bool], stack: ExitStack) -> tuple[ClientConnection, int]:
        """Connect until a worker that is wanted answers; return the client and the worker's process.

        It may not serve yet: the others get its share then.
        """
        deadline = time.monotonic() + PATIENCE
        for number in count():
            if number >= ENOUGH and time.monotonic() > deadline:
                break
            with ExitStack() as attempt:
                client = attempt.enter_context(connect(self.url))
                pid, _ = ask(client)
                if wanted(pid):
                    stack.push(attempt.pop_all())
                    return client, pid
        raise AssertionError("no connection came to the worker")

    def one_client_each(self, stack: ExitStack, workers: int = 2) -> dict[int, ClientConnection]:
        """Connect to each of the workers; return the clients by process."""
        clients: dict[int, ClientConnection] = {}
        while len(clients) < workers:
            client, pid = self.client_of(lambda pid: pid not in clients, stack)
            clients[pid] = client
        return clients


@contextmanager
def gone_afterwards(pids: set[int]) -> Iterator[None]:
    """Wait, after the block, until processes have ended: those that are no children of the tests' too."""
    handles = [os.pidfd_open(pid) for pid in pids]
    try:
        yield
        for handle in handles:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            assert poller.poll(PATIENCE * 1000), "a process is still there"
    finally:
        for handle in handles:
            os.close(handle)


def is_refused(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
