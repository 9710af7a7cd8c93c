"""Calls from other native threads, carried to the thread that the kernel runs in.

gevent's objects belong to one thread. A call from another (a thread pool, a database driver's callback) is
handed over and its result handed back; the calling thread blocks meanwhile, the event loop does not.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Iterable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import gevent
import gevent.event
from gevent._hub_local import get_hub_if_exists
from gevent.hub import Hub as EventLoop
from gevent.monkey import get_original, is_module_patched
from gevent.pool import Group
from gevent.threadpool import ThreadPool

from realtime.errors import NotRunning

__all__ = ["HomeThread", "Signal", "has_event_loop", "on_home_thread", "run_in_pool", "runs_in_pool"]

# the real ones, even where threading was monkey-patched: a patched lock would wait in the wrong hub
_get_ident = get_original("_thread", "get_ident")
_allocate_lock = get_original("_thread", "allocate_lock")

HAND_OVER_TIMEOUT = 60.0  # seconds until the loop must have begun with a call; if not, something holds it
STOPPING = 5.0  # seconds that a call has to end when the kernel stops under it

P = ParamSpec("P")
R = TypeVar("R")


class HomeThread:
    """The thread whose event loop runs the kernel. Before ``settle`` every call is at home."""

    def __init__(self) -> None:
        self.ident: int | None = None
        self.pid: int | None = None
        """The process that the thread belongs to: a fork copies the rest, but no thread."""
        self._hub: Any = None
        self._carriers = Group()

    def settle(self) -> None:
        """The current thread is home from now on."""
        self.ident = _get_ident()
        self.pid = os.getpid()
        self._hub = gevent.get_hub()

    def leave(self) -> None:
        """No thread is home any more: calls run where they are made, and find a stopped kernel. Switches."""
        self.ident = None
        self._hub = None
        # not the one that may be stopping the kernel, for another thread
        others = [carrier for carrier in self._carriers if carrier is not gevent.getcurrent()]
        gevent.killall(others, timeout=1.0)

    def join(self) -> None:
        """Return when no call from another thread is under way. In the home thread, after ``leave``. Switches."""
        self._carriers.join(STOPPING)

    def is_here(self) -> bool:
        """Tell whether the caller runs in the home thread, or there is none."""
        return self.ident is None or _get_ident() == self.ident

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run ``function`` here if this is home, otherwise there: see :meth:`call`."""
        return function(*args, **kwargs) if self.is_here() else self.call(function, *args, **kwargs)

    def guard(self, thing: object, methods: Iterable[str]) -> None:
        """Make methods of ``thing``, which knows nothing of threads, safe to call from any native thread."""
        for name in methods:
            setattr(thing, name, functools.partial(self.run, getattr(thing, name)))

    def call(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Run ``function`` in a greenlet of the home thread; return its result or raise its exception.

        A plain thread blocks meanwhile; one with an event loop of its own (another kernel's) parks its greenlet.

        :raises NotRunning: the kernel has stopped, or its loop did not begin within ``HAND_OVER_TIMEOUT``.
        """
        hub = self._hub
        if hub is None:
            raise NotRunning("the kernel has stopped")
        errand = _Errand(function, args, kwargs)
        hub.loop.run_callback_threadsafe(self._carry, errand)
        if not errand.begun.wait(HAND_OVER_TIMEOUT):
            errand.cancelled = True
            raise NotRunning("the kernel's event loop did not take over a call from another thread in time")
        while not errand.done.wait(1.0):
            if self._hub is not hub and not errand.done.wait(STOPPING):
                raise NotRunning("the kernel stopped in the middle of a call from another thread")
        if errand.error is not None:
            raise errand.error
        return errand.result  # type: ignore[no-any-return]

    def answers(self, timeout: float) -> bool:
        """Tell whether the home thread's event loop runs: it took over a call within ``timeout`` seconds.

        From another thread, which blocks; one with an event loop of its own parks its greenlet.
        """
        hub = self._hub
        if hub is None:
            return False
        errand = _Errand(bool, (), {})
        hub.loop.run_callback_threadsafe(self._carry, errand)
        errand.cancelled = not errand.begun.wait(timeout)
        return not errand.cancelled

    def _carry(self, errand: _Errand) -> None:
        """In the home thread's loop."""
        if not errand.cancelled:
            self._carriers.spawn(errand.run)


class _Errand:
    """A call that one thread makes and another carries out."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._work = functools.partial(function, *args, **kwargs)
        self.begun = Signal()
        self.done = Signal()
        self.cancelled = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do it, and say so; never raises."""
        self.begun.set()
        try:
            self.result = self._work()
        except gevent.GreenletExit:
            self.error = NotRunning("the kernel stopped in the middle of a call from another thread")
        except BaseException as error:
            self.error = error
        self.done.set()


class Signal:
    """Set once by one thread, waited for by another: natively, or in that thread's own event loop."""

    def __init__(self) -> None:
        self._hub = get_hub_if_exists()
        self._lock = _allocate_lock()
        self._lock.acquire()
        self._event = gevent.event.Event() if self._hub is not None else None

    def set(self) -> None:
        """Wake the one that waits."""
        self._lock.release()
        if self._hub is not None and self._event is not None:
            self._hub.loop.run_callback_threadsafe(self._event.set)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, in the thread that made it; return whether it was set."""
        if self._event is not None:
            return bool(self._event.wait(timeout))
        return bool(self._lock.acquire(timeout=-1 if timeout is None else timeout))


def has_event_loop() -> bool:
    """Tell whether waiting here lets other greenlets run: in a greenlet of an event loop, or a patched process."""
    return isinstance(gevent.getcurrent().parent, EventLoop) or is_module_patched("threading")


def run_in_pool(pool: ThreadPool, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a native thread of a pool; only this greenlet waits. Switches greenlets.

    If it returns a generator, each of its steps runs there too.
    """
    result = _apply(pool, functools.partial(function, *args))
    return _pooled(pool, result) if isinstance(result, Generator) else result


def runs_in_pool(items: Generator[Any, Any, Any]) -> bool:
    """Tell whether the steps of a generator run in a native thread: then they cannot be interrupted."""
    return getattr(items, "gi_code", None) is _pooled.__code__


def _apply(pool: ThreadPool, work: Callable[[], Any]) -> Any:
    """Run in the pool; exceptions come back as values, since the pool prints those it sees."""

    def guarded() -> tuple[Any, BaseException | None]:
        try:
            return work(), None
        except BaseException as error:
            return None, error

    result, error = pool.apply(guarded)
    if error is not None:
        raise error
    return result


def _pooled(pool: ThreadPool, items: Generator[Any, Any, Any]) -> Generator[Any, None, Any]:
    end = object()
    returned: list[Any] = []

    def step() -> Any:
        try:
            return next(items)
        except StopIteration as stop:
            returned.append(stop.value)
            return end

    try:
        while (item := _apply(pool, step)) is not end:
            yield item
    finally:
        _apply(pool, items.close)
    return returned[0]


class _AtHome(Protocol):
    _home: HomeThread


S = TypeVar("S", bound=_AtHome)


def on_home_thread(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make a method safe to call from any native thread: elsewhere than at home it is handed over."""

    @functools.wraps(method)
    def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        home = self._home
        if home.ident is None or home.ident == _get_ident():
            return method(self, *args, **kwargs)
        return home.call(method, self, *args, **kwargs)

    return wrapper
