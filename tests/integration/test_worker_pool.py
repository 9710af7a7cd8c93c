"""Worker processes behind one port: spread, restarted and reloaded, with real processes and clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections import defaultdict
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from programs import EXAMPLES, PATIENCE, Program, client_in, complain_of_faults
from raw import frame, request
from requirements import module
from worker_rig import (
    ENOUGH,
    KERNEL,
    NEVER_READY_AGAIN,
    SCRIPT,
    SOCKET,
    Pool,
    ask,
    close_code,
    connect,
    gone_afterwards,
    is_refused,
    run,
    write,
)

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="SO_REUSEPORT spreads connections on Linux only"
)


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
    complain_of_faults(pool.text, "Warning", "Traceback", "not monkey-patched")


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


@pytest.mark.parametrize("variable", ["TMPDIR", "XDG_RUNTIME_DIR"])
def test_workers_meet_although_temporary_files_go_where_no_socket_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path) as pool:
        while not any(" joined " in line for line in pool.output):
            pool.wait_for(" joined ")
        assert list(long.iterdir()) == []
        assert pool.stop() == 0


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
        self.era = 1
        self._versions: defaultdict[int, list[int]] = defaultdict(list)  # that answered, by the era of the attempt
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
        era = self.era
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as sock:
            sock.sendall(request())
            sock.sendall(frame(1, b'{"type": "who", "ack": 1}'))
            answer = answer_in(sock)
        if answer.startswith(b"{"):
            self._versions[era].append(json.loads(answer)["payload"]["result"][1])
        else:
            assert int.from_bytes(answer[:2], "big") == 4013, answer
            self.told_to_come_back += 1

    def versions(self) -> list[int]:
        """Return what answered those that began in this era."""
        return self._versions[self.era]

    def wait_for(self, count: int) -> None:
        """Wait until so many attempts of this era have been answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.versions()) >= count or self.failures, PATIENCE)

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
            stream.wait_for(50)
            for version in (22, 333, 4444):  # of other lengths, so that no cached bytecode fits
                write(tmp_path, KERNEL.replace("version = 1", f"version = {version}"))
                with gone_afterwards(pool.workers()):
                    pool.tell(signal.SIGHUP)
                    pool.wait_for("reloaded$")
                stream.era = version  # who was asked before this may still be answered by the workers of before
                stream.wait_for(50)
                assert set(stream.versions()) == {version}
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
    text = f"{NEVER_READY_AGAIN}WorkerPool(1, setup, options=PoolOptions(start=5)).run()\n"
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
        with gone_afterwards(pool.workers()):  # who leave once they have stopped listening
            pool.tell(signal.SIGHUP)
            new = [pool.wait_for(SOCKET)[1] for _ in range(2)]
            pool.wait_for("reloaded$")
        assert len(set(new)) == 1
        with connect(new[0]) as client:
            assert ask(client)[0] in pool.workers()
        assert is_refused(pool.port)
        assert pool.stop() == 0


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


def hear_each_other(pool: Pool, stack: ExitStack) -> None:
    """Have a client at each of two workers hear the other one: from then on each knows that the room is there too."""
    by_pid: dict[int, ClientConnection] = {}
    for _ in range(ENOUGH):
        client = stack.enter_context(connect(pool.url))
        by_pid.setdefault(ask(client, "echo")["pid"], client)
        if len(by_pid) == 2:
            break
    assert len(by_pid) == 2
    for speaker, listener in permutations(by_pid, 2):
        for number in range(int(PATIENCE)):
            by_pid[speaker].send(json.dumps({"type": "say", "payload": number}))
            if hears(by_pid[listener], {"said": number, "pid": speaker}):
                break
        else:
            raise AssertionError(f"{listener} does not hear {speaker}")


def hears(client: ClientConnection, what: dict[str, Any]) -> bool:
    """Whether a client is told this within a second, and so all that was said before it."""
    try:
        while not what.items() <= json.loads(client.recv(timeout=1.0))["payload"].items():
            pass
    except TimeoutError:
        return False
    return True


def test_what_the_client_of_the_cluster_example_says_is_heard_by_clients_of_all_workers() -> None:
    module("websockets")
    with Pool(EXAMPLES / "cluster_echo.py", "--port", "0", "--workers", "2") as pool:
        while sum(" joined " in line for line in pool.output) < 2:  # each of the other
            pool.wait_for(" joined ")
        with ExitStack() as stack:
            hear_each_other(pool, stack)
            done = run(EXAMPLES, "-c", client_in(EXAMPLES / "cluster_echo.py", pool.port, 8768))
        assert pool.stop() == 0
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "8 heard it"
