"""What every test gets: a check that it leaves nothing behind, and a way to run blocking clients beside gevent."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gevent
import pytest
from gevent.threadpool import ThreadPool
from hypothesis import HealthCheck, settings

R = TypeVar("R")

# failing assertions there show their values
pytest.register_assert_rewrite("realtime.testing.conformance", "realtime.testing.slow_readers")

# The same examples each time, however long one takes; fresh ones only where fuzzing goes on for as long as one says.
settings.register_profile(
    "realtime",
    deadline=None,
    derandomize=not float(os.environ.get("REALTIME_FUZZ_SECONDS", "0")),
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
settings.load_profile("realtime")

GRACE = 30.0  # seconds for what was closed at the end of a test to be really gone
# no greenlet or socket in them, thousands of examples: looking for leaks would cost more than they do
_STATELESS = ("config", "errors", "events", "layering", "message")
_UNCHECKED = ("unit/protocols/", "fuzz/", *(f"unit/test_{name}.py" for name in _STATELESS))


class InThread(Protocol):
    """The type of the fixture ``in_thread``."""

    def __call__(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Run ``function`` in a native thread; see the fixture."""


def pytest_collection_finish() -> None:
    """Looking for what a test left behind passes over what was there before the first: a third of the time of all."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def in_thread() -> Iterator[InThread]:
    """Run a blocking function of a library that knows nothing of gevent: ``in_thread(socket.recv, 100)``.

    It runs in a native thread of its own while this greenlet waits and the server's event loop goes on. Returns
    its result or raises its exception. Several greenlets may do so at once.
    """
    pool = ThreadPool(16)

    def outcome(function: Callable[..., R], args: Any, kwargs: Any) -> tuple[Any, BaseException | None]:
        try:
            return function(*args, **kwargs), None
        except BaseException as error:
            return None, error  # returned, because the pool would print what is raised

    def run(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        result, error = pool.apply(outcome, (function, args, kwargs))
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    yield run
    pool.kill()


@pytest.fixture
def kernel_test() -> Iterator[Any]:
    """A running ``realtime.testing.KernelTest`` without handlers: register them on ``kernel_test.kernel``."""
    from realtime import RealtimeKernel
    from realtime.testing import KernelTest

    with KernelTest(RealtimeKernel(log_level="debug")) as running:
        yield running


def open_sockets() -> Counter[str]:
    """Return the sockets of this process, by name."""
    names: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            name = os.readlink(entry)
        except OSError:
            continue  # the descriptor of the listing itself
        if name.startswith("socket:"):
            names[name] += 1
    return names


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A kernel sets the level of the ``realtime`` logger for the whole process: not beyond the test."""
    logger = logging.getLogger("realtime")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture
def sockets_now() -> Callable[[], Counter[str]]:
    """A function that returns the sockets of this process, by name."""
    return open_sockets


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if greenlets or sockets that it made are still there a moment after it."""
    from realtime.testing.peers import living_greenlets  # not before its assertions are registered, above

    path = Path(request.node.path).relative_to(Path(__file__).parent).as_posix()
    if path.startswith(_UNCHECKED):
        yield
        return
    sockets = open_sockets()
    # kept, not just their ids: an id could be given again to one that leaks. Unit tests share no servers.
    before = [] if path.startswith("unit/") else living_greenlets()
    known = set(map(id, before))
    yield
    deadline = time.monotonic() + GRACE
    while True:
        gevent.sleep(0)
        greenlets = [one for one in living_greenlets() if id(one) not in known]
        leaked = open_sockets() - sockets
        if not greenlets and not leaked:
            return
        if time.monotonic() > deadline:
            break
        gc.collect()
        gevent.sleep(0.01)
    raise AssertionError(f"left behind: {len(leaked)} socket(s) {list(leaked)}, greenlets {greenlets}")
