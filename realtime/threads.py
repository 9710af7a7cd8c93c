"""Calls from other native threads, carried to the thread that the kernel runs in.

gevent's objects belong to one thread. A call from another (a thread pool, a database driver's callback) is
handed over and its result handed back; the calling thread blocks meanwhile, the event loop does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import gevent
from gevent.monkey import get_original

from realtime.errors import NotRunning

__all__ = ["HomeThread", "on_home_thread", "run_in_pool"]

# the real ones, even where threading was monkey-patched: a patched lock would wait in the wrong hub
_get_ident = get_original("_thread", "get_ident")
_allocate_lock = get_original("_thread", "allocate_lock")

HAND_OVER_TIMEOUT = 60.0  # seconds a foreign thread waits; on top of the call's own timeout

P = ParamSpec("P")
R = TypeVar("R")


class HomeThread:
    """The thread whose event loop runs the kernel. Before ``settle`` every call is at home."""

    def __init__(self) -> None:
        self.ident: int | None = None
        self._hub: Any = None

    def settle(self) -> None:
        """The current thread is home from now on."""
        self.ident = _get_ident()
        self._hub = gevent.get_hub()

    def leave(self) -> None:
        """No thread is home any more: calls run where they are made, and find a stopped kernel."""
        self.ident = None
        self._hub = None

    def is_here(self) -> bool:
        """Tell whether the caller runs in the home thread, or there is none."""
        return self.ident is None or _get_ident() == self.ident

    def guard(self, thing: object, methods: Iterable[str]) -> None:
        """Make methods of ``thing``, which knows nothing of threads, safe to call from any native thread."""
        for name in methods:
            setattr(thing, name, functools.partial(self._run, getattr(thing, name)))

    def _run(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        return function(*args, **kwargs) if self.is_here() else self.call(function, *args, **kwargs)

    def call(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Run ``function`` in a greenlet of the home thread; return its result or raise its exception.

        :raises NotRunning: the kernel stopped, or its loop did not get to it within ``HAND_OVER_TIMEOUT``.
        """
        hub = self._hub
        if hub is None:
            raise NotRunning("the kernel has stopped")
        done = _allocate_lock()
        done.acquire()
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.extend((function(*args, **kwargs), None))
            except BaseException as error:
                outcome[:] = (None, error)
            finally:
                done.release()

        hub.loop.run_callback_threadsafe(gevent.spawn, run)
        if not done.acquire(timeout=HAND_OVER_TIMEOUT + (kwargs.get("timeout") or 0.0)):
            raise NotRunning("the kernel's event loop did not take over a call from another thread in time")
        result, error = outcome
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


def run_in_pool(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a native thread of gevent's pool; only this greenlet waits. Switches greenlets.

    If it returns a generator, each of its steps runs there too.
    """
    result = gevent.get_hub().threadpool.apply(function, args)
    return _pooled(result) if isinstance(result, Generator) else result


def _pooled(items: Generator[Any, Any, Any]) -> Generator[Any, None, Any]:
    pool = gevent.get_hub().threadpool
    end = object()
    returned: list[Any] = []

    def step() -> Any:
        try:
            return next(items)
        except StopIteration as stop:
            returned.append(stop.value)
            return end

    try:
        while (item := pool.apply(step)) is not end:
            yield item
    finally:
        pool.apply(items.close)
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
