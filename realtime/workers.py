"""The greenlets that handlers run in: made on demand, kept for the next job, owned by the hub.

A job that never waits costs no greenlet switch of its own: one worker does every job that is ready in this
turn of the loop. Only where a job waits does the next one get another worker.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import gevent
from gevent.hub import Hub as GeventHub
from greenlet import GreenletExit, greenlet

__all__ = ["Workers"]

Job = Callable[[], None]

TURN = 0.010  # seconds of jobs after which the loop gets to look at the sockets again
IDLE_KEPT = 64  # parked greenlets kept for the next burst; each holds a stack


class Workers:
    """Runs jobs in greenlets, first come first served. Never more greenlets than jobs that wait.

    :param hub: gevent's hub of the thread that everything runs in.
    """

    def __init__(self, hub: GeventHub) -> None:
        self._hub = hub
        self._ready: deque[Job] = deque()
        self._idle: list[greenlet] = []
        self._busy: set[greenlet] = set()
        self._scheduled = False
        self._stopped = False
        self._turn_ends = 0.0
        self.parked_jobs = 0
        self._context = contextvars.copy_context()

    @property
    def count(self) -> int:
        """Greenlets alive, idle ones included."""
        return len(self._idle) + len(self._busy)

    @property
    def busy(self) -> int:
        """Greenlets in the middle of a job."""
        return len(self._busy)

    def busy_others(self) -> int:
        """Jobs that are ready or running, but for the caller's own."""
        return len(self._ready) + len(self._busy - {gevent.getcurrent()})

    @contextmanager
    def parked(self) -> Iterator[None]:
        """While a job waits for a client: ``parked_jobs`` counts it, if this greenlet is a worker."""
        is_job = gevent.getcurrent() in self._busy
        self.parked_jobs += is_job
        try:
            yield
        finally:
            self.parked_jobs -= is_job

    def runs_current(self) -> bool:
        """Tell whether the caller's greenlet is one of these workers."""
        return gevent.getcurrent() in self._busy

    @property
    def stopping(self) -> bool:
        """Whether jobs are being ended."""
        return self._stopped

    def submit(self, job: Job) -> None:
        """Have ``job`` run in a worker, soon and after those submitted before. Never switches.

        A job must catch its own exceptions; one that escapes goes to gevent's hub, which prints it.
        """
        if self._stopped:
            return
        self._ready.append(job)
        if not self._scheduled:
            self._scheduled = True
            self._hub.loop.run_callback(self._run_ready)

    def _run_ready(self) -> None:
        """In gevent's hub: switch into workers until no job is ready or the turn is over."""
        self._turn_ends = perf_counter() + TURN
        while self._ready and not self._stopped:
            worker = self._idle.pop() if self._idle else greenlet(self._work, self._hub)
            self._busy.add(worker)
            worker.switch()  # comes back when the worker is out of jobs, or when its job waits
            if perf_counter() > self._turn_ends:
                break
        self._scheduled = bool(self._ready) and not self._stopped
        if self._scheduled:
            self._hub.loop.run_callback(self._run_ready)

    def _work(self) -> None:
        """The life of a worker."""
        ready = self._ready
        current = gevent.getcurrent()
        job: Job | None
        while not self._stopped:
            while ready:
                job = ready.popleft()
                try:
                    # each job starts with a context of its own, as in a greenlet of its own
                    self._context.copy().run(job)
                except GreenletExit:
                    if self._stopped:
                        break
                except BaseException as error:
                    self._hub.handle_error(job, type(error), error, error.__traceback__)
                if perf_counter() > self._turn_ends:
                    break
            self._busy.discard(current)
            if self._stopped or len(self._idle) >= IDLE_KEPT:
                return
            self._idle.append(current)
            job = None  # a worker that parks holds no client that has gone
            self._hub.switch()  # park; _run_ready switches back
        self._busy.discard(current)

    def wait_quiet(self, timeout: float) -> bool:
        """Wait until no job is ready or running; return whether that came in time. Switches greenlets.

        The worker that calls this, if one does, is not waited for.
        """
        return self._wait(lambda: not self.busy_others(), timeout)

    def stop(self, timeout: float = 1.0) -> None:
        """End every worker: those in the middle of a job get GreenletExit where they wait. Switches.

        :param timeout: seconds to wait for jobs that still have something to finish.
        """
        self._stopped = True
        self._ready.clear()
        workers = [worker for worker in (*self._idle, *self._busy) if worker is not gevent.getcurrent()]
        self._idle.clear()
        for worker in workers:
            self._hub.loop.run_callback(worker.throw, GreenletExit)
        self._wait(lambda: all(worker.dead for worker in workers), timeout)
        self._busy.difference_update([worker for worker in workers if worker.dead])

    def _wait(self, done: Callable[[], bool], timeout: float) -> bool:
        """Poll: this is for stopping only, and a worker has no room to announce its own end."""
        deadline = perf_counter() + timeout
        while not done():
            if perf_counter() >= deadline:
                gevent.sleep(0)  # what was due while this process was held up gets its turn
                return done()
            gevent.sleep(0.002)
        return True
