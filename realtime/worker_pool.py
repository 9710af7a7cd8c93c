"""All cores of a machine: worker processes that share a port, are restarted when they die, and reload one by one.

The pool's own process is a plain one. It has no event loop and no threads, and does not import the application: it
forks, waits and reaps. :mod:`realtime.supervision` decides what it does, :mod:`realtime.worker_process` is what
happens in the workers.
"""

from __future__ import annotations

import logging
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gevent._hub_local import get_hub_if_exists
from gevent.monkey import is_module_patched

from realtime import startup
from realtime.config import PoolOptions
from realtime.errors import ConfigurationError, PortInUse
from realtime.supervision import Do, Phase, PoolState, Process, Supervisor
from realtime.transports.mesh_discovery import parent_for
from realtime.worker_channel import ChannelClosed, Failed, PoolEnd, Ready, Wanted, WorkerEnd, channel_pair
from realtime.worker_ports import WorkerPorts
from realtime.worker_process import Setup, Worker, run_worker

__all__ = ["Worker", "WorkerPool", "usable_cpus"]

log = logging.getLogger("realtime.workers")

MOST = 1024  # workers: far more than pay off on any machine, far fewer than harm it
_NEEDED = ((os, "fork"), (socket, "SO_REUSEPORT"), (socket, "send_fds"))
_MUST_BE_PLAIN = ("os", "select", "signal", "socket", "threading", "time")
_STOPPING = (signal.SIGINT, signal.SIGTERM)
PREFIX = "realtime-"  # of the pool's directory; mkdtemp adds eight characters


def usable_cpus() -> int:
    """Return how many processors this process may use: what ``--workers auto`` takes."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Child:
    """A process that has been forked and not been reaped."""

    def __init__(self, pid: int, channel: PoolEnd) -> None:
        self.pid = pid
        self.channel: PoolEnd | None = channel
        self.wanted: list[Wanted] = []
        self.failure: Failed | None = None

    def close(self) -> None:
        """Close the channel."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class WorkerPool:
    """Runs a kernel in each of several processes, all behind the same ports.

    ::

        def setup(worker):
            from gevent import monkey
            monkey.patch_all()          # here, not before: the pool's own process stays as it is
            from chat import kernel     # imported by the workers only, so that a reload loads what changed
            return kernel

        WorkerPool(4, setup).run()

    :param workers: how many processes.
    :param setup: ``setup(worker)`` returns the kernel, not started; called in each worker process. ``worker`` has
        ``index``, ``count``, ``generation`` and ``directory``.
    :param log_level: of the ``realtime`` logger in the pool's own process, and in the workers until the kernel sets it.
    :param options: how long things may take, and how soon workers are restarted.
    :raises ConfigurationError: an option that cannot work.

    Ports: each worker has a listening socket of its own for the port of a WebSocketTransport, and the system spreads
    new connections over these (``SO_REUSEPORT``). That is Linux's doing: macOS and the BSDs give nearly all connections
    to one of the workers, and Windows, which cannot fork, has no pool. ``port=0`` is the same port for all. The pool
    holds the sockets, so connections that wait while a worker is replaced, or has died, are served by the next one. One
    that does not come within ``PoolOptions.hold``, or fails again and again, is not waited for: they are reset, and the
    other workers get all connections until it is back. A transport that cannot share its port
    (:meth:`realtime.Transport.shared_address`) must have another address in each worker.

    Signals to the pool's process: SIGTERM and SIGINT drain all workers and end it, a second one kills them; SIGHUP
    replaces them one by one. A worker that is to go takes no more connections and tells its clients to come back (close
    code 4013).

    What a worker keeps in memory is its own. Rooms, presence and messages are those of all: a kernel without a
    PeerMeshTransport gets one that joins it with the other workers, through sockets in ``worker.directory``. One that
    the kernel has, to be joined with other machines, joins the workers there as well; it needs a port of its own in
    each worker (``port=0``, or ``9090 + worker.index``), and a ``node_id`` too if it has any.
    """

    def __init__(
        self,
        workers: int,
        setup: Setup,
        *,
        log_level: str = "info",
        options: PoolOptions = PoolOptions(),  # noqa: B008  # frozen
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= MOST:
            raise ConfigurationError(f"workers={workers!r}: must be a whole number from 1 to {MOST}")
        if not callable(setup):
            raise ConfigurationError(f"setup={setup!r}: must be a function of one argument, the worker")
        if not isinstance(options, PoolOptions):
            raise ConfigurationError(f"options={options!r}: must be a realtime.PoolOptions")
        startup.check_log_level(log_level)
        self._count = workers
        self._setup = setup
        self._log_level = log_level
        self._options = options
        self._supervisor = Supervisor(workers, options, jitter=lambda: random.uniform(0.5, 1.0))
        self._children: dict[Process, _Child] = {}
        self._ports = WorkerPorts()
        self._directory = ""
        self._failure: Failed | None = None
        self._stop_signals = 0
        self._reload_wanted = False
        self._wakeup: socket.socket | None = None

    def run(self) -> None:
        """Run the workers until SIGINT or SIGTERM; blocks. Once.

        :raises ConfigurationError, PortInUse: a worker could not start when the pool did; the text is the worker's.
        :raises SystemExit: ``setup`` raised it then.
        """
        if self._supervisor.state is not PoolState.NEW:
            raise ConfigurationError("a WorkerPool runs once: make another one")
        _require_plain_process()
        startup.configure_logging(self._log_level)
        self._directory = tempfile.mkdtemp(prefix=PREFIX, dir=parent_for(f"{PREFIX}{'0' * 8}"))
        try:
            with self._signals():
                self._supervise()
        finally:
            self._clean_up()
        self._raise_failure()

    # The loop ----------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        supervisor = self._supervisor
        supervisor.begin(time.monotonic())
        self._perform()
        while supervisor.state is not PoolState.STOPPED:
            self._wait()
            now = time.monotonic()
            self._heed_signals(now)
            for process, child in list(self._children.items()):
                self._listen_to(process, child, now)
            self._reap(now)
            supervisor.tick(now)
            self._perform()

    def _wait(self) -> None:
        """Wait for a signal, for something that a worker says, or for the next deadline."""
        assert self._wakeup is not None
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        for child in self._children.values():
            if child.channel is not None:
                poller.register(child.channel, select.POLLIN)
        deadline = self._supervisor.next_deadline()
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000 + 1
        poller.poll(timeout)
        try:
            while self._wakeup.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _perform(self) -> None:
        """Do what the supervisor says; that may lead to more."""
        while actions := self._supervisor.take_actions():
            for action in actions:
                if action.do is Do.START:
                    self._fork(action.process)
                elif action.do is Do.WITHDRAW:
                    self._withdraw(action.process.index)
                else:
                    self._send_signal(action.process, action.do)
        if self._supervisor.state in (PoolState.STOPPING, PoolState.STOPPED):
            self._ports.close()

    # Signals -----------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals end the wait, and be counted, meanwhile."""
        self._wakeup, wake = socket.socketpair()
        before = {}
        try:
            self._wakeup.setblocking(False)
            wake.setblocking(False)
            previous_wakeup = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            for number in (*_STOPPING, signal.SIGHUP, signal.SIGCHLD):
                before[number] = signal.signal(number, self._on_signal)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's
            signal.set_wakeup_fd(previous_wakeup)
            self._wakeup.close()
            wake.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOPPING:
            self._stop_signals += 1
        elif number == signal.SIGHUP:
            self._reload_wanted = True

    def _heed_signals(self, now: float) -> None:
        stops, self._stop_signals = self._stop_signals, 0
        if stops and self._supervisor.state is not PoolState.STOPPING:
            log.info("stopping: the workers drain")
            self._supervisor.stop(now)
            stops -= 1
        if stops and self._supervisor.state is PoolState.STOPPING:
            log.warning("told twice to stop: killing the workers")
            self._supervisor.hurry()
        if self._reload_wanted:
            self._reload_wanted = False
            self._supervisor.reload(now)

    # Processes ---------------------------------------------------------------------------------------

    def _fork(self, process: Process) -> None:
        """Start a worker process. What cannot be is reported to the supervisor as its end."""
        ours, theirs = channel_pair()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # else both processes would print what waits there
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPPING, signal.SIGHUP, signal.SIGCHLD))
        try:
            pid = os.fork()
            if not pid:
                try:
                    self._be_worker(process, ours, theirs)
                finally:
                    os._exit(1)  # whatever happens, this process must not go on as a second pool
        except OSError as error:
            log.error("worker %d: cannot fork: %s", process.index, error.strerror)
            ours.close()
            self._failure = Failed(f"cannot start a process: {error.strerror}")
            self._supervisor.has_ended(process, time.monotonic())
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
        self._children[process] = _Child(pid, ours)
        log.debug("worker %d is process %d", process.index, pid)

    def _be_worker(self, process: Process, ours: PoolEnd, theirs: WorkerEnd) -> None:
        """In the new process: give back what is the pool's, and work. Never returns."""
        assert self._wakeup is not None
        ours.close()
        for child in self._children.values():
            child.close()
        self._ports.close()
        self._wakeup.close()
        worker = Worker(process.index, self._count, process.generation, self._directory)
        run_worker(self._setup, worker, theirs, self._options)

    def _send_signal(self, process: Process, do: Do) -> None:
        child = self._children.get(process)
        if child is not None:  # not reaped, so the pid is still its own
            os.kill(child.pid, signal.SIGKILL if do is Do.KILL else signal.SIGTERM)

    def _listen_to(self, process: Process, child: _Child, now: float) -> None:
        """Deal with what a worker has said."""
        while child.channel is not None:
            try:
                reports = child.channel.receive()
            except ChannelClosed as error:
                log.debug("worker %d: %s", process.index, error)
                child.close()
                return
            if not reports:
                return
            for report in reports:
                if isinstance(report, Wanted):
                    self._give_socket(process, child, report)
                elif isinstance(report, Ready):
                    self._ports.keep(process.index, child.wanted)
                    self._supervisor.is_serving(process, now)
                else:
                    child.failure = report

    def _give_socket(self, process: Process, child: _Child, wanted: Wanted) -> None:
        assert child.channel is not None
        try:
            sock = self._ports.open(process.index, wanted)
        except ConfigurationError as error:
            child.channel.refuse(error)
            return
        child.wanted.append(wanted)
        child.channel.give(sock)

    def _withdraw(self, index: int) -> None:
        """Nobody accepts in a slot. Where its next process has its sockets already, that will do so in a moment."""
        if any(child.wanted for process, child in self._children.items() if process.index == index):
            return
        if self._ports.withdraw(index):
            log.warning("worker %d is down: the others get its share of connections", index)

    def _reap(self, now: float) -> None:
        """Notice which processes have ended."""
        for process, child in list(self._children.items()):
            try:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = child.pid, 0  # somebody else has waited for it
            if not pid:
                continue
            self._listen_to(process, child, now)
            child.close()
            del self._children[process]
            how = _how_it_ended(status)
            self._log_end(process, child, how)
            self._supervisor.has_ended(process, now)
            if process is self._supervisor.failed:
                self._failure = child.failure or Failed(f"worker {process.index} {how} before it was ready")

    def _log_end(self, process: Process, child: _Child, how: str) -> None:
        if process.phase is Phase.LEAVING:
            log.info("worker %d (process %d) has left: %s", process.index, child.pid, how)
            return
        if self._supervisor.state is PoolState.STARTING and process.generation == 1:
            return
        log.error("worker %d (process %d) %s", process.index, child.pid, how)
        if child.failure is not None and child.failure.text is not None:
            log.error("worker %d cannot start: %s", process.index, child.failure.text)

    # The end -----------------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        """Leave nothing behind, however the loop ended."""
        self._ports.close()
        for child in self._children.values():
            child.close()
            try:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
            except (ChildProcessError, ProcessLookupError):
                pass  # somebody else has waited for it
        self._children.clear()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _raise_failure(self) -> None:
        failure = self._failure
        if self._supervisor.failed is None or failure is None:
            return
        if failure.text is None:
            raise SystemExit(failure.exit_code)
        index = self._supervisor.failed.index
        if failure.port_in_use and index:
            # the first worker has it: a transport that is started in each
            text = (
                f"{failure.text}; in a pool, a transport that cannot share its port needs another one in each worker "
                "(a PeerMeshTransport has one with port=0, or from `serve --mesh HOST:PORT` instead of in the code)"
            )
            raise PortInUse(f"worker {index}: {text}")
        raise (PortInUse if failure.port_in_use else ConfigurationError)(failure.text)


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was ended by {signal.Signals(number).name}"
        except ValueError:
            return f"was ended by signal {number}"
    return f"exited with code {os.waitstatus_to_exitcode(status)}"


def _require_plain_process() -> None:
    """Raise ConfigurationError if forking would copy what cannot be copied."""
    missing = [name for module, name in _NEEDED if not hasattr(module, name)]
    if missing:
        raise ConfigurationError(f"a WorkerPool needs {', '.join(missing)}, which this system does not have")
    if any(is_module_patched(name) for name in _MUST_BE_PLAIN):
        raise ConfigurationError(
            "a WorkerPool runs in a process that is not monkey-patched: call patch_all() in setup(worker) instead"
        )
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError("a WorkerPool runs in the main thread")
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others:
        raise ConfigurationError(f"a WorkerPool runs before any thread is started; there is {', '.join(others)}")
    if get_hub_if_exists() is not None:
        raise ConfigurationError(
            "a WorkerPool runs in a process without an event loop; here gevent was used already: do so in setup(worker)"
        )
