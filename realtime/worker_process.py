"""One worker of a pool, in its own process: makes its kernel, takes over its listening sockets, serves, drains."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import gevent
import gevent.socket
from gevent.event import Event

from realtime.config import PoolOptions
from realtime.errors import ConfigurationError, PortInUse
from realtime.kernel import RealtimeKernel
from realtime.startup import label_logging
from realtime.transports.base import Transport
from realtime.transports.mesh_siblings import join_siblings
from realtime.transports.ports import join_address
from realtime.worker_channel import ChannelClosed, Wanted, WorkerEnd

__all__ = ["Setup", "Worker", "run_worker"]

log = logging.getLogger("realtime.workers")

OK, FAILED = 0, 1  # exit codes
LOOK = 0.5  # seconds within which it is noticed that the application has stopped the kernel by itself


@dataclass(frozen=True)
class Worker:
    """What ``setup`` is told of the process that it runs in."""

    index: int
    """0 to ``count - 1``; a process that takes another's place has the same."""

    count: int
    """How many workers there are."""

    generation: int
    """Counts the processes that have had this index, from 1."""

    directory: str
    """A directory of the pool's own that all its workers, and no other users, can use; removed at the end."""


Setup = Callable[[Worker], RealtimeKernel]


def run_worker(setup: Setup, worker: Worker, channel: WorkerEnd, options: PoolOptions) -> NoReturn:
    """Be a worker from now on, right after the fork. Never returns, also not by an exception.

    :param channel: to the pool; when it closes the pool is gone and the worker drains.
    """
    code = FAILED
    try:
        _settle(worker)
        code = _work(setup, worker, channel, options)
    except SystemExit as stopped:
        code = _exit_code(stopped)
    except BaseException:
        log.exception("a worker failed")
    finally:
        try:
            atexit._run_exitfuncs()
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # whatever an application's function raises, or a closed pipe
            pass
        os._exit(code)  # and run nothing of what the pool's process has on its stack


def _settle(worker: Worker) -> None:
    """Forget what belongs to the pool's process: its signal handlers and what it does at its exit."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all: the pool decides, by SIGTERM
        signal.signal(number, _leave_to_the_pool)
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    atexit._clear()
    label_logging(f"worker {worker.index}")


def _leave_to_the_pool(_number: int, _frame: FrameType | None) -> None:
    # a function instead of SIG_IGN, which programs that the application starts would inherit
    pass


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(OK)  # nobody is served yet


def _work(setup: Setup, worker: Worker, channel: WorkerEnd, options: PoolOptions) -> int:
    """Start, serve and drain; return the exit code. What prevents the start is reported to the pool."""
    stop, orphaned = Event(), Event()
    try:
        kernel = _make_kernel(setup, worker)
        _share_ports(kernel, channel, options.start)
        told = gevent.signal_handler(signal.SIGTERM, stop.set)
        watching = gevent.spawn(_watch_pool, channel, stop, orphaned)
        kernel.start()
    except ConfigurationError as error:
        channel.failed(str(error), port_in_use=isinstance(error, PortInUse))
        return FAILED
    except ChannelClosed as error:
        log.error("cannot start: %s", error)
        return FAILED
    except SystemExit as stopped:
        channel.failed(None, exit_code=_exit_code(stopped))
        raise
    except BaseException as error:
        log.exception("cannot start")
        channel.failed(" ".join(f"{type(error).__name__}: {error}".split()))
        return FAILED
    channel.ready()
    try:
        while kernel.running and not stop.wait(LOOK):
            pass
    finally:
        kernel.stop(options.drain)
        watching.kill()
        told.cancel()
        if orphaned.is_set():  # nobody else is left to do it
            shutil.rmtree(worker.directory, ignore_errors=True)
    return OK


def _make_kernel(setup: Setup, worker: Worker) -> RealtimeKernel:
    """Call ``setup``, and join the worker's kernel with those of the others."""
    kernel = setup(worker)
    if not isinstance(kernel, RealtimeKernel):
        raise ConfigurationError(f"setup returned {kernel!r}: must return a RealtimeKernel")
    if kernel.running:
        raise ConfigurationError("setup returned a kernel that runs already: the pool starts it")
    join_siblings(kernel, worker.directory)
    return kernel


def _share_ports(kernel: RealtimeKernel, channel: WorkerEnd, timeout: float) -> None:
    """Give every transport whose port can be shared its socket from the pool. Blocks the event loop.

    :raises PortInUse, ConfigurationError: the pool cannot listen there.
    """
    seen: Counter[tuple[str, int]] = Counter()
    for transport in kernel.transports:
        if not isinstance(transport, Transport):
            continue  # one that only looks like it: started in each worker as it is
        address = transport.shared_address()
        if address is None:
            continue
        place = address.host, address.port
        ordinal = seen[place]
        seen[place] += 1
        if ordinal and address.port:
            raise PortInUse(f"{join_address(*place)}: two transports of the kernel want it")
        wanted = Wanted(address.host, address.port, ordinal, address.exclusive)
        transport.listen_on(channel.socket_for(wanted, timeout))


def _watch_pool(channel: WorkerEnd, stop: Event, orphaned: Event) -> None:
    """The greenlet that drains the worker when the pool is gone: nothing else ends this stream."""
    gevent.socket.wait_read(channel.fileno())
    log.error("the pool is gone: draining")
    orphaned.set()
    stop.set()


def _exit_code(stopped: SystemExit) -> int:
    """Return what Python would exit with, and print what it would print."""
    if stopped.code is None or isinstance(stopped.code, int):
        return stopped.code or OK
    print(stopped.code, file=sys.stderr)
    return FAILED
