"""How a pool of workers stops, and what keeps it from starting, with real processes and clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports
from programs import PATIENCE, Program, complain_of_faults
from worker_rig import (
    KERNEL,
    NEVER_READY_AGAIN,
    SCRIPT,
    Pool,
    ask,
    close_code,
    connect,
    gone_afterwards,
    is_refused,
    run,
    write,
)

from realtime import ConfigurationError, PoolOptions, WorkerPool
from realtime.transports.memory import MemoryTransport

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="SO_REUSEPORT spreads connections on Linux only"
)


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
    complain_of_faults(output, "Traceback")


def test_a_signal_in_the_middle_of_a_reload_ends_old_and_new_processes(tmp_path: Path) -> None:
    text = f"{NEVER_READY_AGAIN}WorkerPool(2, setup).run()\n"
    with Pool(write(tmp_path, text)) as pool, connect(pool.url) as client:
        assert ask(client)[1] == 1
        pool.tell(signal.SIGHUP)
        pool.wait_for("reloading the workers one by one")
        while len(processes := pool.workers()) < 3:  # the new one is not ready, and will not be
            time.sleep(0.01)
        with gone_afterwards(processes):
            assert pool.stop(signal.SIGTERM) == 0
        assert close_code(client) == 4013
    assert is_refused(pool.port)


def test_ctrl_c_in_a_terminal_reaches_all_processes_and_drains_once(tmp_path: Path) -> None:
    write(tmp_path, KERNEL)
    with Pool.serving(tmp_path) as pool, ExitStack() as stack:
        clients = pool.one_client_each(stack)
        for pid in (*clients, pool.pid):  # a terminal tells its whole foreground group
            os.kill(pid, signal.SIGINT)
        assert {close_code(client) for client in clients.values()} == {4013}
        assert pool.stop(signal.SIGCONT) == 0  # which tells it nothing
    assert "killing the workers" not in pool.text


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
    complain_of_faults(program.text, "Traceback")


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
    [port] = free_ports(1)
    text = f"""
        from realtime import PeerMeshTransport, RealtimeKernel

        kernel = RealtimeKernel([PeerMeshTransport(port={port})], log_level="error")
    """
    write(tmp_path, text)
    done = serve(tmp_path, workers="2")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()[-1:]
    assert line.startswith(f"realtime: worker 1: 127.0.0.1:{port} is in use")
    assert "a transport that cannot share its port needs another one in each worker" in line
    assert "a PeerMeshTransport has one with port=0" in line


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
