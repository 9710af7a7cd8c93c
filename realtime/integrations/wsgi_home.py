"""Starts a kernel in the process that serves, once, whoever comes first; and stops it when the process ends."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable

import gevent
from gevent.monkey import get_original

from realtime.errors import ConfigurationError, NotRunning
from realtime.kernel import RealtimeKernel
from realtime.threads import HAND_OVER_TIMEOUT, Signal, has_event_loop

__all__ = ["Launcher"]

log = logging.getLogger("realtime.wsgi")

LOOP_ANSWERS = 10.0  # seconds until the event loop of a kernel that runs already must have taken over a call
EXIT_DRAIN = 2.0  # seconds to tell clients to come back while the process ends

# the real one even in a patched process: it is never held while greenlets switch
_allocate_lock = get_original("_thread", "allocate_lock")
_launched: weakref.WeakSet[Launcher] = weakref.WeakSet()


class Launcher:
    """Runs a kernel for requests: in their event loop, or in one of its own if they come in native threads.

    :param prepare: called with the kernel right before it starts, in the process that serves.
    """

    def __init__(self, kernel: RealtimeKernel, prepare: Callable[[RealtimeKernel], None]) -> None:
        self._kernel = kernel
        self._prepare = prepare
        self._lock = _allocate_lock()
        self._done_in: int | None = None  # the process
        self._waiting: list[Signal] | None = None  # for whoever starts it
        self.failure: Exception | None = None
        """Why the kernel does not run in this process."""

    def ensure(self) -> None:
        """Return once the kernel was started in this process, or that has failed. May switch, or block the thread."""
        if self._done_in == os.getpid():
            return
        with self._lock:
            if self._done_in == os.getpid():
                return
            is_first, signal = self._waiting is None, Signal()
            if self._waiting is None:
                self._waiting = []
            else:
                self._waiting.append(signal)
        if not is_first:
            signal.wait(HAND_OVER_TIMEOUT)
            return
        try:
            self._start()
        finally:
            with self._lock:
                self._done_in = os.getpid()
                waiting, self._waiting = self._waiting, None
            for one in waiting or ():
                one.set()

    def _start(self) -> None:
        self.failure = None
        try:
            self._require_same_process()
            self._require_running_loop()
            if self._kernel.running:
                self._kernel.home.run(self._prepare, self._kernel)
            elif has_event_loop():
                self._prepare(self._kernel)
                self._kernel.start()
            else:
                _LoopThread(self._kernel, self._prepare).start()
            _launched.add(self)
        except Exception as error:
            self.failure = error
            log.error("the kernel cannot start: %s", error, exc_info=not isinstance(error, ConfigurationError))

    def _require_same_process(self) -> None:
        if self._kernel.running and self._kernel.home.pid != os.getpid():
            raise ConfigurationError(
                "the kernel was started before the server made this process from another (preloading): "
                "leave kernel.start() out, the first request does it"
            )

    def _require_running_loop(self) -> None:
        home = self._kernel.home
        if self._kernel.running and not home.is_here() and not home.answers(LOOP_ANSWERS):
            raise ConfigurationError(
                "the kernel was started in a thread whose event loop does not run, as where a server in native threads "
                "imports a module that calls kernel.start(): leave that out, the first request does it"
            )

    def at_exit(self) -> None:
        """The process ends: clients are told to come back."""
        if self._done_in == os.getpid():
            try:
                self._kernel.stop(EXIT_DRAIN)
            except NotRunning:
                pass  # its thread has ended already


@atexit.register
def _stop_all() -> None:
    for launcher in list(_launched):
        launcher.at_exit()


class _LoopThread:
    """A native thread for a kernel and its event loop, in a process whose requests come in threads without one."""

    def __init__(self, kernel: RealtimeKernel, prepare: Callable[[RealtimeKernel], None]) -> None:
        self._kernel = kernel
        self._prepare = prepare
        self._started = Signal()
        self._error: Exception | None = None

    def start(self) -> None:
        """Return when the kernel runs; raise what kept it from that."""
        threading.Thread(target=self._run, name="realtime", daemon=True).start()
        if not self._started.wait(HAND_OVER_TIMEOUT):
            raise NotRunning("the kernel did not start in time")
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._prepare(self._kernel)
            self._kernel.start()
        except Exception as error:
            self._error = error
            return
        finally:
            self._started.set()
        self._kernel.wait()
        self._kernel.home.join()  # one of them may have stopped it
        gevent.get_hub().destroy(destroy_loop=True)
