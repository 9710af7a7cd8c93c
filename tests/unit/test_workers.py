"""The greenlets that handlers run in: few, in order, and gone when stopped."""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event

from realtime.workers import IDLE_KEPT, Workers

PATIENCE = 60.0


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(gevent.get_hub())
    yield made
    made.stop()


def test_jobs_run_in_the_order_they_came(workers: Workers) -> None:
    done: list[int] = []
    for number in range(100):
        workers.submit(lambda number=number: done.append(number))
    assert done == []
    assert workers.wait_quiet(PATIENCE)
    assert done == list(range(100))


def test_jobs_that_do_not_wait_share_one_greenlet(workers: Workers) -> None:
    greenlets = set()
    for _ in range(1000):
        workers.submit(lambda: greenlets.add(gevent.getcurrent()))
    assert workers.wait_quiet(PATIENCE)
    assert len(greenlets) == 1
    assert (workers.count, workers.busy) == (1, 0)


def test_a_job_that_waits_holds_up_no_other(workers: Workers) -> None:
    go, done = Event(), []

    def wait() -> None:
        go.wait()
        done.append("waited")

    workers.submit(wait)
    workers.submit(lambda: done.append("other"))
    while not done:
        gevent.sleep(0)
    assert done == ["other"]
    assert workers.busy == 1
    assert workers.wait_quiet(0) is False
    go.set()
    assert workers.wait_quiet(PATIENCE)
    assert done == ["other", "waited"]


def test_a_job_submitted_by_a_job_runs_after_those_that_wait(workers: Workers) -> None:
    done: list[str] = []

    def first() -> None:
        done.append("first")
        workers.submit(lambda: done.append("third"))

    workers.submit(first)
    workers.submit(lambda: done.append("second"))
    assert workers.wait_quiet(PATIENCE)
    assert done == ["first", "second", "third"]


def test_after_a_burst_of_waiting_jobs_only_some_greenlets_are_kept(workers: Workers) -> None:
    go = Event()
    for _ in range(IDLE_KEPT * 3):
        workers.submit(go.wait)
    while workers.busy < IDLE_KEPT * 3:
        gevent.sleep(0)
    go.set()
    assert workers.wait_quiet(PATIENCE)
    assert workers.count <= IDLE_KEPT


def test_a_job_that_fails_is_printed_and_harms_nothing(workers: Workers, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def fail() -> None:
        raise RuntimeError("as it happens")

    workers.submit(fail)
    workers.submit(lambda: done.append("next"))
    assert workers.wait_quiet(PATIENCE)
    assert done == ["next"]
    assert "as it happens" in capsys.readouterr().err


def test_a_job_that_is_killed_alone_harms_nothing(workers: Workers) -> None:
    done: list[str] = []

    def leave() -> None:
        raise gevent.GreenletExit

    workers.submit(leave)
    workers.submit(lambda: done.append("next"))
    assert workers.wait_quiet(PATIENCE)
    assert done == ["next"]


def test_context_variables_of_one_job_are_not_seen_by_the_next(workers: Workers) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def job() -> None:
        seen.append(variable.get())
        variable.set("set by the job before")

    workers.submit(job)
    workers.submit(job)
    assert workers.wait_quiet(PATIENCE)
    assert seen == ["unset", "unset"]


def test_stop_ends_the_jobs_that_wait_and_lets_them_clean_up(workers: Workers) -> None:
    ended: list[str] = []

    def wait() -> None:
        try:
            Event().wait()
        finally:
            ended.append("cleaned up")

    for _ in range(3):
        workers.submit(wait)
    while workers.busy < 3:
        gevent.sleep(0)
    workers.stop()
    assert ended == ["cleaned up"] * 3
    assert (workers.count, workers.busy) == (0, 0)


def test_stop_ends_jobs_also_where_the_process_is_held_up_past_the_timeout(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.submit(Event().wait)
    while workers.busy < 1:
        gevent.sleep(0)
    clock = itertools.count(step=10.0)
    monkeypatch.setattr("realtime.workers.perf_counter", lambda: next(clock))
    workers.stop(timeout=1.0)
    assert (workers.count, workers.busy) == (0, 0)


def test_after_stop_nothing_runs_any_more(workers: Workers) -> None:
    done: list[str] = []
    workers.submit(lambda: done.append("before"))
    workers.stop()
    workers.submit(lambda: done.append("after"))
    for _ in range(3):
        gevent.sleep(0)
    assert done == []
    assert workers.count == 0


def test_a_job_can_stop_the_workers_it_runs_in(workers: Workers) -> None:
    ended = Event()

    def stop() -> None:
        workers.stop()
        ended.set()

    workers.submit(stop)
    assert ended.wait(PATIENCE)
    gevent.sleep(0)
    assert workers.count == 0


def test_the_job_that_waits_for_quiet_is_not_waited_for(workers: Workers) -> None:
    results: list[bool] = []
    workers.submit(lambda: results.append(workers.wait_quiet(PATIENCE)))
    assert workers.wait_quiet(PATIENCE)
    assert results == [True]
