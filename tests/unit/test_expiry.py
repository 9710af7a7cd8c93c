"""The greenlet that lets things expire: awake when something is due, and asleep while nothing is."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import gevent
import pytest
from gevent.event import Event

from realtime.expiry import Expiry

PATIENCE = 60.0


class Due:
    """Something to expire: counts the calls, and says when the next is due."""

    def __init__(self) -> None:
        self.calls = 0
        self.next: float | None = None
        self.called = Event()
        self.fails = False

    def expire(self, now: float) -> float | None:
        self.calls += 1
        self.called.set()
        if self.fails:
            self.fails = False
            raise ValueError("cannot expire")
        following, self.next = self.next, None
        return following


@pytest.fixture
def due() -> Due:
    return Due()


@pytest.fixture
def expiry(due: Due) -> Iterator[Expiry]:
    expiry = Expiry(due.expire)
    expiry.start()
    assert due.called.wait(PATIENCE)
    due.called.clear()
    yield expiry
    expiry.stop()
    expiry.stop()


def test_nothing_wakes_it_while_nothing_can_expire(due: Due) -> None:
    loop = gevent.get_hub().loop
    active = loop.activecnt
    expiry = Expiry(due.expire)
    expiry.start()
    assert due.called.wait(PATIENCE)
    for _ in range(100):
        gevent.sleep(0)
    assert due.calls == 1
    assert loop.activecnt == active  # it has no timer
    expiry.stop()


def test_it_wakes_when_something_is_due(expiry: Expiry, due: Due) -> None:
    expiry.due(monotonic() + 0.01)
    assert due.called.wait(PATIENCE)


def test_what_is_due_sooner_wakes_it_sooner(expiry: Expiry, due: Due) -> None:
    expiry.due(monotonic() + 1000)
    expiry.due(monotonic() + 2000)
    gevent.sleep(0)
    due.called.clear()
    expiry.due(monotonic())
    assert due.called.wait(PATIENCE)


def test_it_goes_on_to_what_is_due_next(expiry: Expiry, due: Due) -> None:
    due.next = monotonic() + 0.01
    expiry.due(monotonic())
    assert due.called.wait(PATIENCE)
    due.called.clear()
    assert due.called.wait(PATIENCE)


def test_a_failure_is_logged_and_does_not_end_it(
    expiry: Expiry, due: Due, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.expiry.AFTER_FAILURE", 0.01)
    due.fails = True
    expiry.due(monotonic())
    assert due.called.wait(PATIENCE)
    due.called.clear()
    assert due.called.wait(PATIENCE)
    assert "cannot expire" in caplog.text
