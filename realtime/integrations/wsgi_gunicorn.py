"""What a kernel in a worker of gunicorn does beyond serving: finds the other workers, and leaves when its worker does,
in order also when that is told to twice, as by Ctrl-C.

gunicorn tells neither to an application. Both are seen from the worker object, whose method is the process's handler of
SIGTERM, so nothing has to be configured.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import stat
import sys
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

import gevent
from gevent.monkey import is_module_patched

from realtime.errors import ConfigurationError
from realtime.kernel import RealtimeKernel
from realtime.transports.mesh_discovery import parent_for
from realtime.transports.mesh_siblings import join_siblings

__all__ = ["WorkerExit", "adapt", "current_worker", "leave_once", "meeting_place"]

log = logging.getLogger("realtime.wsgi")

LOOK = 0.25  # seconds between two looks at the worker, which itself looks once a second
ARRIVAL = 1.0  # seconds after the port was closed for requests on connections that came before: they are still served
PORT_CLOSES = 10.0  # seconds until a worker that was told to end has closed its port, on a busy machine too
SHORTEST_DRAIN, LONGEST_DRAIN = 1.0, 10.0  # seconds
RESERVE = 3.0  # seconds of graceful_timeout for gunicorn itself: it looks once a second, and kills in the end

_adapted: weakref.WeakSet[RealtimeKernel] = weakref.WeakSet()


def current_worker() -> Any:
    """Return gunicorn's worker object, if this process is one of its workers."""
    base = sys.modules.get("gunicorn.workers.base")
    handler = signal.getsignal(signal.SIGTERM)
    worker = getattr(handler, "__self__", None)
    return worker if base is not None and isinstance(worker, base.Worker) else None


def adapt(kernel: RealtimeKernel) -> None:
    """Give the kernel what it needs in a worker of gunicorn; nothing elsewhere. In its home thread."""
    worker = current_worker()
    if worker is None or kernel in _adapted:
        return
    leave_once()  # of an application that was loaded before the fork
    if worker.cfg.workers > 1:
        join_siblings(kernel, meeting_place(worker.ppid))
    kernel.add_service(WorkerExit(kernel, worker))
    _adapted.add(kernel)


def leave_once() -> None:
    """Have a worker with greenlets end by one exception, whatever signals tell it to; nothing in other processes.

    A terminal sends SIGINT to every process, and gunicorn's master sends its workers SIGQUIT then. Its worker answers
    each with a greenlet that clears ``alive``, and 0.1 s later raises SystemExit in the main greenlet. The second one,
    or the only one if the main greenlet has looked at ``alive`` in between, is raised while the process ends already:
    it cuts short what clients are told, and gevent prints its traceback.
    """
    worker = current_worker()
    ggevent = sys.modules.get("gunicorn.workers.ggevent")
    if ggevent is None or not isinstance(worker, ggevent.GeventWorker):
        return
    # but not those that the application handles itself
    ours = [one for one in (signal.SIGINT, signal.SIGQUIT) if signal.getsignal(one) == worker.handle_quit]
    leaves = False

    def quit_once(_number: int, _frame: FrameType | None) -> None:
        nonlocal leaves
        if not leaves:
            leaves = True  # before anything is called: the other signal may come in the midst of it
            gevent.spawn(_leave, worker, ours)

    for number in ours:
        signal.signal(number, quit_once)


def _leave(worker: Any, numbers: list[signal.Signals]) -> None:
    """What gunicorn's worker does on SIGINT and SIGQUIT, but without a pause between clearing ``alive`` and the end."""
    worker.cfg.worker_int(worker)
    worker.alive = False
    for number in numbers:  # not sooner: what has come already must find a handler
        signal.signal(number, signal.SIG_IGN)  # handlers in Python are gone before the process is, and it would kill
    sys.exit(0)


class WorkerExit:
    """A service that stops the kernel when its worker has been told to end, however: TERM, HUP or max_requests.

    It waits until the worker has closed its port, so that nobody is turned away whom it has accepted.
    """

    def __init__(self, kernel: RealtimeKernel, worker: Any) -> None:
        self._kernel = kernel
        self._worker = worker
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def on_start(self) -> None:
        """Watch."""
        gthread = sys.modules.get("gunicorn.workers.gthread")
        if gthread is not None and isinstance(self._worker, gthread.ThreadWorker):
            threads = self._worker.cfg.threads
            log.warning("each client occupies one of gunicorn's %d threads; for more: gunicorn -k gevent", threads)
        self._greenlet = gevent.spawn(self._watch)

    def on_stop(self) -> None:
        """Watch no more. Switches greenlets."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill()

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        return {"name": "gunicorn"}

    def _watch(self) -> None:
        while self._worker.alive:
            gevent.sleep(LOOK)
        patience = max(SHORTEST_DRAIN, min(LONGEST_DRAIN, self._worker.cfg.graceful_timeout - RESERVE))
        with gevent.Timeout(self._closes_within(), False):  # type: ignore[arg-type]  # False: just leave the block
            while any(map(_is_open, self._worker.sockets)):
                gevent.sleep(LOOK)
        gevent.sleep(ARRIVAL)
        log.info("the worker ends: clients are told to come back")
        self._kernel.stop(patience)

    def _closes_within(self) -> float:
        """Return how long to wait for the port to be closed. Threads only cease to accept, and close it at the end."""
        return PORT_CLOSES if is_module_patched("threading") else ARRIVAL


def _is_open(sock: Any) -> bool:
    """Tell whether a listening socket of gunicorn's is open; its wrapper lets go of the socket when it closes it."""
    return getattr(sock, "sock", sock) is not None and sock.fileno() >= 0


def meeting_place(master: int) -> Path:
    """Return the directory in which the workers of a master process find each other: this user's, and this master's.

    Masters that died cannot take theirs away, so that is done for them here.

    :raises ConfigurationError: somebody else has made it.
    """
    prefix = f"realtime-gunicorn-{os.geteuid()}-{_namespace()}-"
    name = f"{prefix}{master}-{_started_at(master)}"
    parent = parent_for(name)
    directory = parent / name
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError as error:
        raise ConfigurationError(f"{directory}, where gunicorn's workers meet: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigurationError(f"{directory}, where gunicorn's workers meet: must be a directory of yours, mode 0700")
    _remove_those_of_the_dead(parent, prefix)
    return directory


def _remove_those_of_the_dead(parent: Path, prefix: str) -> None:
    for directory in parent.glob(f"{prefix}*"):
        parts = directory.name.removeprefix(prefix).split("-")
        if len(parts) == 2 and parts[0].isdecimal() and _started_at(int(parts[0])) != parts[1]:
            shutil.rmtree(directory, ignore_errors=True)


def _started_at(pid: int) -> str:
    """Return what tells a process from a later one of the same id: the clock ticks from the system's start to its own
    (proc_pid_stat(5), field 22). Where there is no /proc: "0" for any process that exists."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:
            pass  # it exists, and is another user's
        return "0"


def _namespace() -> str:
    """Return what tells the process ids of one container from those of another: the inode of their namespace."""
    try:
        return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        return "0"
