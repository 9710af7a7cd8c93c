"""Worker processes behind one port: spread, restarted, reloaded and stopped, with real processes and clients."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from programs import EXAMPLES, PATIENCE, Program, client_in
from raw import frame, request
from requirements import module

from realtime import ConfigurationError, PoolOptions, WorkerPool
from realtime.transports.memory import MemoryTransport

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="SO_REUSEPORT spreads connections on Linux only"
)

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
ENOUGH = 400  # connections: that all of them meet the same one of two or three workers will not happen


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
        """Connect until a worker that is wanted answers; return the client and the worker's process."""
        for _ in range(ENOUGH):
            with ExitStack() as attempt:
                client = attempt.enter_context(connect(self.url))
                pid, _ = ask(client)
                if wanted(pid):
                    stack.push(attempt.pop_all())
                    return client, pid
        raise AssertionError("no connection came to the worker")

    def one_client_each(self, stack: ExitStack, count: int = 2) -> dict[int, ClientConnection]:
        """Connect to each of the workers; return the clients by process."""
        clients: dict[int, ClientConnection] = {}
        while len(clients) < count:
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


# Spreading --------------------------------------------------------------------------------------------------


def test_connections_are_spread_over_all_workers_on_one_port_that_the_system_picked(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path, 3) as pool, ExitStack() as stack:
        clients = pool.one_client_each(stack, 3)
        assert set(clients) == pool.workers()
        ports = {line.rsplit(":", 1)[1] for line in pool.output if "clients connect to" in line}
        assert len(ports) == 1
        assert pool.stop() == 0


def test_one_worker_is_a_pool_too(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path, 1) as pool, connect(pool.url) as client:
        assert {ask(client)[0]} == pool.workers()
        assert pool.stop() == 0


def test_auto_takes_one_worker_for_each_processor(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Program(Path("-m"), "realtime", "serve", "app", "--workers", "auto", cwd=tmp_path) as program:
        assert int(program.wait_for(r"(\d+) workers? serves?")[1]) == len(os.sched_getaffinity(0))
        assert program.stop() == 0


def test_workers_are_patched_before_they_import_and_the_pool_is_a_plain_process(tmp_path: Path) -> None:
    text = f"""{KERNEL}
from realtime.startup import unpatched_modules

@kernel.on("unpatched")
def unpatched(message, context, toolkit):
    return unpatched_modules()
"""
    write(tmp_path, text)
    with Pool.serving(tmp_path) as pool, connect(pool.url) as client:
        assert ask(client, "unpatched") == []
        assert len(list(Path(f"/proc/{pool.pid}/task").iterdir())) == 1
        names = [os.readlink(link) for link in Path(f"/proc/{pool.pid}/fd").iterdir()]
        assert not [name for name in names if "eventpoll" in name or "eventfd" in name], names
        assert pool.stop() == 0
    output = "".join(pool.output)
    assert not [word for word in ("Warning", "Traceback", "not monkey-patched") if word in output], output


def test_a_worker_is_told_its_place_and_a_private_directory(tmp_path: Path) -> None:
    text = f"""{SCRIPT}
import stat

def setup(worker):
    global worker_here
    mode = stat.filemode(os.stat(worker.directory).st_mode)
    worker_here = [worker.index, worker.count, worker.generation, worker.directory, mode]
    return make_kernel()

WorkerPool(2, setup).run()
"""
    with Pool(write(tmp_path, text)) as pool, ExitStack() as stack:
        told = {tuple(ask(client)[1]) for client in pool.one_client_each(stack).values()}
        (directory,) = {one[3] for one in told}
        assert told == {(index, 2, 1, directory, "drwx------") for index in (0, 1)}
        assert pool.stop() == 0
    assert not Path(directory).exists()


def test_each_transport_has_a_port_of_its_own_and_one_without_a_port_needs_nothing(tmp_path: Path) -> None:
    text = """
        from realtime import RealtimeKernel, WebSocketTransport
        from realtime.transports.memory import MemoryTransport

        kernel = RealtimeKernel([WebSocketTransport(port=0), MemoryTransport(), WebSocketTransport(port=0)])
    """
    write(tmp_path, text)
    with Pool.serving(tmp_path) as pool:
        ports = [line.rsplit(":", 1)[1] for line in pool.output if "clients connect to" in line]
        assert len(ports) == 4
        assert len(set(ports)) == 2
        assert pool.stop() == 0


# Dying ------------------------------------------------------------------------------------------------------


def test_a_killed_worker_disturbs_no_other_and_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path) as pool, ExitStack() as stack:
        victim, survivor = pool.one_client_each(stack)
        loaded, _ = pool.client_of(lambda pid: pid == survivor, stack)
        answered: list[int] = []
        halfway, done = threading.Event(), threading.Event()

        def load() -> None:
            while not done.is_set():
                answered.append(ask(loaded)[0])
                if len(answered) == 200:
                    halfway.set()

        thread = threading.Thread(target=load)
        thread.start()
        try:
            assert halfway.wait(PATIENCE)
            os.kill(victim, signal.SIGKILL)
            pool.wait_for(rf"worker \d \(process {victim}\) was ended by SIGKILL")
            pool.wait_for("is started again at once")
            _, replacement = pool.client_of(lambda pid: pid not in (victim, survivor), stack)
        finally:
            done.set()
            thread.join()
        assert set(answered) == {survivor}
        assert pool.workers() == {survivor, replacement}
        assert pool.stop() == 0


def test_connections_that_wait_for_a_worker_that_dies_are_served_by_the_next(tmp_path: Path) -> None:
    text = f"""{SCRIPT}
def setup(worker):
    global worker_here
    worker_here = worker.index
    return make_kernel()

WorkerPool(2, setup, options=PoolOptions(hold={PATIENCE})).run()
"""
    with Pool(write(tmp_path, text)) as pool, ExitStack() as stack:
        victim, survivor = pool.workers()
        os.kill(victim, signal.SIGSTOP)  # takes none of what comes now
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", pool.port))) for _ in range(40)]
        for sock in waiting:
            sock.settimeout(PATIENCE)
            sock.sendall(request() + frame(1, b'{"type": "who", "ack": 1}'))
        os.kill(victim, signal.SIGKILL)
        pids = [json.loads(answer_in(sock))["payload"]["result"][0] for sock in waiting]
        assert victim not in pids
        assert len(set(pids)) == 2
        assert survivor in pids
        assert pool.stop() == 0


def test_a_worker_that_dies_again_and_again_gets_no_connections_until_it_serves(tmp_path: Path) -> None:
    text = f"""{SCRIPT}
from pathlib import Path

def setup(worker):
    global worker_here
    worker_here = worker.index
    if worker.generation > 1 and not Path({str(tmp_path / "mended")!r}).exists():
        os._exit(3)
    return make_kernel()

WorkerPool(2, setup, options=PoolOptions(backoff=1000.0, backoff_max=1000.0)).run()
"""
    with Pool(write(tmp_path, text)) as pool, ExitStack() as stack:
        victim, survivor = sorted(pool.workers())
        os.kill(victim, signal.SIGKILL)
        pool.wait_for("worker . is down: the others get its share of connections")
        for _ in range(40):
            with connect(pool.url) as client:
                assert ask(client)[0] == survivor
        (tmp_path / "mended").touch()
        with gone_afterwards({survivor}):
            pool.tell(signal.SIGHUP)
            pool.wait_for("reloaded")
        assert not {victim, survivor} & set(pool.one_client_each(stack))
        assert pool.stop() == 0


def answer_in(sock: socket.socket) -> bytes:
    """Return the first message after the handshake: a frame without a mask."""
    received = b""
    while b"\r\n\r\n" not in received or len(received.partition(b"\r\n\r\n")[2]) < 2:
        data = sock.recv(65536)
        assert data, received
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    while len(rest) < 2 + rest[1]:
        data = sock.recv(65536)
        assert data, rest
        rest += data
    assert rest[0] in (0x81, 0x88), rest
    return rest[2 : 2 + rest[1]]


def test_a_crash_loop_backs_off_and_ends_when_the_worker_serves(tmp_path: Path) -> None:
    text = f"""{SCRIPT}
def setup(worker):
    global worker_here
    worker_here = worker.index
    if worker.index and 1 < worker.generation < 7:
        os._exit(3)
    return make_kernel()

WorkerPool(2, setup, options=PoolOptions(backoff=0.05, backoff_max=0.2)).run()
"""
    with Pool(write(tmp_path, text)) as pool, ExitStack() as stack:
        by_index = {ask(client)[1]: pid for pid, client in pool.one_client_each(stack).items()}
        os.kill(by_index[1], signal.SIGTERM)  # one that ends properly but unasked is restarted, too
        pool.wait_for(r"worker 1 \(process \d+\) exited with code 0")
        pool.wait_for("worker 1 is started again at once")
        for longest in (0.05, 0.1, 0.2, 0.2, 0.2):
            pool.wait_for(r"worker 1 \(process \d+\) exited with code 3")
            pause = float(pool.wait_for("worker 1 is started again in (.*) s")[1])
            assert longest / 2 - 0.001 <= pause <= longest + 0.001
        pool.client_of(lambda pid: pid not in by_index.values(), stack)
        assert by_index[0] in pool.workers()
        assert pool.stop() == 0


def test_a_worker_whose_application_stops_the_kernel_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, f"{KERNEL}\n@kernel.on('stop')\ndef stop(message, context, toolkit):\n    kernel.stop()\n")
    with Pool.serving(tmp_path, 1) as pool, ExitStack() as stack:
        client = stack.enter_context(connect(pool.url))
        pid, _ = ask(client)
        client.send('{"type": "stop"}')
        assert close_code(client) == 4013
        pool.wait_for("exited with code 0")
        pool.client_of(lambda other: other != pid, stack)
        assert pool.stop() == 0


# Reloading --------------------------------------------------------------------------------------------------


class Stream:
    """Connects again and again from several threads, and notes what each attempt came to."""

    def __init__(self, port: int, threads: int = 3) -> None:
        self._port = port
        self._changed = threading.Condition()
        self._done = False
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        self.failures: list[str] = []
        self.versions: list[int] = []
        self.told_to_come_back = 0

    def _run(self) -> None:
        while not self._done:
            try:
                self._attempt()
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
            with self._changed:
                self._changed.notify_all()

    def _attempt(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as sock:
            sock.sendall(request())
            sock.sendall(frame(1, b'{"type": "who", "ack": 1}'))
            answer = answer_in(sock)
        if answer.startswith(b"{"):
            self.versions.append(json.loads(answer)["payload"]["result"][1])
        else:
            assert int.from_bytes(answer[:2], "big") == 4013, answer
            self.told_to_come_back += 1

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more attempts have been answered."""
        wanted = len(self.versions) + count
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.versions) >= wanted or self.failures, PATIENCE)

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done = True
        for thread in self._threads:
            thread.join()


def test_a_reload_serves_what_the_files_hold_now_and_refuses_or_resets_no_connection(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path) as pool, ExitStack() as stack:
        before = pool.one_client_each(stack)
        with Stream(pool.port) as stream:
            stream.wait_for_more(50)
            for version in (22, 333, 4444):  # of other lengths, so that no cached bytecode fits
                write(tmp_path, KERNEL.replace("version = 1", f"version = {version}"))
                with gone_afterwards(pool.workers()):
                    pool.tell(signal.SIGHUP)
                    pool.wait_for("reloaded$")
                seen = len(stream.versions)
                stream.wait_for_more(50)
                # those answered until then may have been asked earlier
                assert set(stream.versions[seen + 3 :]) == {version}
        assert stream.failures == []
        assert {close_code(client) for client in before.values()} == {4013}
        assert not set(before) & {pool.client_of(lambda pid: True, stack)[1] for _ in range(8)}
        assert pool.stop() == 0


def test_a_reload_of_broken_code_leaves_the_old_workers_and_the_next_one_mends_it(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path) as pool, ExitStack() as stack:
        before = pool.one_client_each(stack)
        write(tmp_path, f"{KERNEL}\n1 / 0\n")
        pool.tell(signal.SIGHUP)
        pool.wait_for("ZeroDivisionError: division by zero$")
        pool.wait_for("worker 0: the new process did not start, the old one goes on")
        pool.wait_for("reloaded, but not 2 of 2")
        assert pool.workers() == set(before)
        assert {ask(client)[0] for client in before.values()} == set(before)
        write(tmp_path, KERNEL.replace("version = 1", "version = 22"))
        pool.tell(signal.SIGHUP)
        pool.wait_for("reloaded$")
        assert {close_code(client) for client in before.values()} == {4013}
        with connect(pool.url) as client:
            assert ask(client)[1] == 22
        assert pool.stop() == 0


def test_a_new_process_that_never_gets_ready_is_killed_and_the_old_one_kept(tmp_path: Path) -> None:
    text = f"""{SCRIPT}
import time

def setup(worker):
    global worker_here
    worker_here = worker.generation
    while worker.generation == 2:
        time.sleep(1)
    return make_kernel()

WorkerPool(1, setup, options=PoolOptions(start=5)).run()
"""
    with Pool(write(tmp_path, text)) as pool, connect(pool.url) as client:
        pool.tell(signal.SIGHUP)
        pool.wait_for("worker 0: still starting after its time, killed")
        pool.wait_for("worker 0: the new process did not start, the old one goes on")
        assert ask(client)[1] == 1
        pool.tell(signal.SIGHUP)
        pool.wait_for("reloaded$")
        assert close_code(client) == 4013
        with connect(pool.url) as other:
            assert ask(other)[1] == 3
        assert pool.stop() == 0


def test_a_reload_may_move_to_another_address_and_gives_the_old_one_back(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path) as pool:
        write(tmp_path, KERNEL.replace("port=0", "port=0, host='127.0.0.2'"))
        pool.tell(signal.SIGHUP)
        new = [pool.wait_for(SOCKET)[1] for _ in range(2)]
        pool.wait_for("reloaded$")
        assert len(set(new)) == 1
        with connect(new[0]) as client:
            assert ask(client)[0] in pool.workers()
        assert is_refused(pool.port)
        assert pool.stop() == 0


# Stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_drains_all_workers_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    text = f"""{KERNEL}
import atexit
atexit.register(lambda: os.write(1, f"exit function {{os.getpid()}}\\n".encode()))
"""
    write(tmp_path, text)
    with Pool.serving(tmp_path) as pool, ExitStack() as stack:
        clients = pool.one_client_each(stack)
        with gone_afterwards(set(clients)):
            assert pool.stop(number) == 0
        assert {close_code(client) for client in clients.values()} == {4013}
    assert is_refused(pool.port)
    output = "".join(pool.output)
    assert {pid for pid in clients if f"exit function {pid}" in output} == set(clients), output
    assert "Traceback" not in output


def test_ctrl_c_in_a_terminal_reaches_all_processes_and_drains_once(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path) as pool, ExitStack() as stack:
        clients = pool.one_client_each(stack)
        for pid in (*clients, pool.pid):  # a terminal tells its whole foreground group
            os.kill(pid, signal.SIGINT)
        assert {close_code(client) for client in clients.values()} == {4013}
        assert pool.stop() == 0


def test_handlers_finish_while_the_pool_drains_and_a_second_signal_hurries(tmp_path: Path) -> None:
    text = f"""{SCRIPT}
import gevent

def setup(worker):
    global worker_here
    worker_here = worker.index
    kernel = make_kernel()

    @kernel.on("linger")
    def linger(message, context, toolkit):
        toolkit.reply("lingering")
        gevent.sleep(1000)

    return kernel

WorkerPool(2, setup, options=PoolOptions(drain=1000)).run()
print("returned", flush=True)
"""
    with Pool(write(tmp_path, text)) as pool, ExitStack() as stack:
        clients = pool.one_client_each(stack)
        with gone_afterwards(set(clients)):
            lingering = next(iter(clients.values()))
            lingering.send('{"type": "linger"}')
            assert "lingering" in lingering.recv(timeout=PATIENCE)
            pool.tell(signal.SIGINT)
            pool.wait_for("stopping: the workers drain")
            pool.wait_for("has left: exited with code 0")  # the one that nothing keeps
            pool.tell(signal.SIGINT)
            pool.wait_for("told twice to stop")
            pool.wait_for("has left: was ended by SIGKILL")
        pool.wait_for("returned")


def test_a_signal_while_the_first_worker_imports_ends_the_pool(tmp_path: Path) -> None:
    write(tmp_path, f"import time\nprint('importing', flush=True)\nwhile True:\n    time.sleep(0.01)\n{KERNEL}")
    with Program(Path("-m"), "realtime", "serve", "app", "--workers", "2", cwd=tmp_path) as program:
        program.wait_for("importing")
        assert program.stop() == 0
    assert "Traceback" not in "".join(program.output)


def test_workers_whose_pool_was_killed_drain_and_remove_its_directory(tmp_path: Path) -> None:
    text = f"""{SCRIPT}
def setup(worker):
    global worker_here
    worker_here = worker.directory
    return make_kernel()

WorkerPool(2, setup).run()
"""
    with Pool(write(tmp_path, text)) as pool, ExitStack() as stack:
        clients = pool.one_client_each(stack)
        directory = Path(ask(next(iter(clients.values())))[1])
        assert directory.is_dir()
        with gone_afterwards(set(clients)):
            pool.tell(signal.SIGKILL)
            assert {close_code(client) for client in clients.values()} == {4013}
    assert not directory.exists()
    assert is_refused(pool.port)


# What goes wrong at the start -------------------------------------------------------------------------------


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)


def serve(folder: Path, *options: str, workers: str = "3") -> subprocess.CompletedProcess[str]:
    return run(folder, "-m", "realtime", "serve", "app:kernel", "--workers", workers, *options)


def test_a_module_that_cannot_be_imported_is_shown_once_and_exits_with_2(tmp_path: Path) -> None:
    write(tmp_path, f"{KERNEL}\n1 / 0\n")
    done = serve(tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.splitlines()[-1]
    assert last == "realtime: module 'app' could not be imported: ZeroDivisionError: division by zero"


def test_a_port_in_use_gets_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(tmp_path, KERNEL.replace("port=0", f"port={port}"))
        done = serve(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"realtime: 127.0.0.1:{port} is in use: stop what listens there, or choose")


def test_a_second_pool_does_not_share_the_port_of_the_first_unless_told_to(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path) as pool:
        write(tmp_path, KERNEL.replace("port=0", f"port={pool.port}"))
        done = serve(tmp_path)
        assert done.returncode == 1
        assert f"127.0.0.1:{pool.port} is in use" in done.stderr
        write(tmp_path, KERNEL.replace("port=0", f"port={pool.port}, reuse_port=True"))
        with Pool.serving(tmp_path) as other:
            assert other.port == pool.port
            assert other.stop() == 0
        assert pool.stop() == 0


def test_a_port_that_workers_cannot_share_is_explained(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = f"""
        from realtime import PeerMeshTransport, RealtimeKernel

        kernel = RealtimeKernel([PeerMeshTransport(port={port})], log_level="error")
    """
    write(tmp_path, text)
    done = serve(tmp_path, workers="2")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()[-1:]
    assert line.startswith(f"realtime: worker 1: 127.0.0.1:{port} is in use")
    assert line.endswith("a transport that cannot share its port needs another one in each worker")


def test_two_transports_cannot_want_the_same_port(tmp_path: Path) -> None:
    write(tmp_path, f"{KERNEL}\nfor _ in range(2):\n    kernel.use_transport(WebSocketTransport(port=54321))\n")
    done = serve(tmp_path)
    assert done.returncode == 1
    assert done.stderr == "realtime: 127.0.0.1:54321: two transports of the kernel want it\n"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return None", 1, "ConfigurationError: setup returned None: must return a RealtimeKernel"),
        ("1 / 0", 1, "ConfigurationError: ZeroDivisionError: division by zero"),
        ("os._exit(7)", 1, "ConfigurationError: worker 0 exited with code 7 before it was ready"),
        ("os.kill(os.getpid(), 11)", 1, "ConfigurationError: worker 0 was ended by SIGSEGV before it was ready"),
        ("sys.exit(5)", 5, ""),
        ("sys.exit('no database')", 1, "no database"),
    ],
)
def test_a_setup_that_fails_ends_the_pool(tmp_path: Path, body: str, code: int, message: str) -> None:
    write(tmp_path, f"{SCRIPT}\ndef setup(worker):\n    {body}\n\nWorkerPool(2, setup).run()\n", "script.py")
    done = run(tmp_path, "script.py")
    assert done.returncode == code
    assert message in (done.stderr.splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("from gevent import monkey; monkey.patch_all()", "not monkey-patched: call patch_all"),
        ("import gevent; gevent.sleep(0)", "without an event loop; here gevent was used already"),
        ("from threading import Event, Thread; Thread(target=Event().wait, name='Eve', daemon=True).start()", "is Eve"),
    ],
)
def test_a_process_that_cannot_be_forked_safely_is_refused(tmp_path: Path, before: str, message: str) -> None:
    write(tmp_path, f"{before}\n{SCRIPT}\nWorkerPool(2, lambda worker: None).run()\n", "script.py")
    done = run(tmp_path, "script.py")
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, "2", None, 1025])
def test_a_number_of_workers_that_cannot_be_is_refused(workers: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a whole number from 1 to 1024"):
        WorkerPool(workers, lambda worker: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    "options", [{"setup": None}, {"options": 3}, {"log_level": "loud"}], ids=["setup", "options", "log_level"]
)
def test_an_option_that_cannot_work_is_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
        WorkerPool(**{"workers": 2, "setup": lambda worker: None, **options})


def test_the_pauses_must_fit_together() -> None:
    with pytest.raises(ConfigurationError, match="at most backoff_max"):
        PoolOptions(backoff=31)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_workers_on_the_command_line_must_be_a_number_or_auto(tmp_path: Path, value: str) -> None:
    done = run(tmp_path, "-m", "realtime", "serve", "app", f"--workers={value}")
    assert done.returncode == 2
    assert f"{value!r}: must be a whole number from 1, or auto" in done.stderr


def test_a_transport_that_cannot_share_its_port_says_so() -> None:
    transport = MemoryTransport()
    assert transport.shared_address() is None
    with socket.socket() as sock, pytest.raises(ConfigurationError, match="MemoryTransport cannot listen on"):
        transport.listen_on(sock)


# The example ------------------------------------------------------------------------------------------------


def test_the_cluster_example_answers_from_every_worker() -> None:
    with Pool(EXAMPLES / "cluster_echo.py", "--port", "0", "--workers", "2") as pool, ExitStack() as stack:
        answers = []
        for _ in range(ENOUGH):
            answers.append(ask(stack.enter_context(connect(pool.url)), "echo", payload="hello"))
            if len({answer["pid"] for answer in answers}) == 2:
                break
        assert {answer["pid"] for answer in answers} == pool.workers()
        assert {answer["worker"] for answer in answers} == {0, 1}
        assert {answer["echo"] for answer in answers} == {"hello"}
        assert pool.stop() == 0


def test_what_the_client_of_the_cluster_example_says_is_heard_by_clients_of_all_workers() -> None:
    module("websockets")
    with Pool(EXAMPLES / "cluster_echo.py", "--port", "0", "--workers", "2") as pool:
        while sum(" joined " in line for line in pool.output) < 2:  # each of the other
            pool.wait_for(" joined ")
        done = run(EXAMPLES, "-c", client_in(EXAMPLES / "cluster_echo.py", pool.port, 8768))
        assert pool.stop() == 0
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "8 heard it"
