"""Which workers start, end and wait, on a clock that the test moves."""

from __future__ import annotations

import logging
import random

import pytest

from realtime.config import PoolOptions
from realtime.supervision import KILL_AFTER, Backoff, Do, Phase, PoolState, Process, Supervisor

OPTIONS = PoolOptions()


class Pool:
    """A supervisor with processes that do what they are told, or not, when the test says so."""

    def __init__(self, count: int, options: PoolOptions = OPTIONS) -> None:
        self.now = 1000.0
        self.supervisor = Supervisor(count, options, jitter=lambda: 1.0)
        self.alive: dict[tuple[int, int], Process] = {}
        self.done: list[tuple[str, int, int]] = []

    def perform(self) -> list[tuple[str, int, int]]:
        """Take the actions; return what was to be done, as (what, index, generation)."""
        self.done = []
        for action in self.supervisor.take_actions():
            key = action.process.index, action.process.generation
            if action.do is Do.START:
                self.alive[key] = action.process
            self.done.append((action.do.value, *key))
        return self.done

    def begin(self) -> list[tuple[str, int, int]]:
        self.supervisor.begin(self.now)
        return self.perform()

    def ready(self, index: int, generation: int = 1) -> list[tuple[str, int, int]]:
        self.supervisor.is_serving(self.alive[index, generation], self.now)
        return self.perform()

    def end(self, index: int, generation: int = 1) -> list[tuple[str, int, int]]:
        self.supervisor.has_ended(self.alive.pop((index, generation)), self.now)
        return self.perform()

    def wait(self, seconds: float) -> list[tuple[str, int, int]]:
        self.now += seconds
        self.supervisor.tick(self.now)
        return self.perform()

    def wait_for_deadline(self) -> float:
        """Move to the next deadline; return how far that was."""
        deadline = self.supervisor.next_deadline()
        assert deadline is not None
        passed = deadline - self.now
        self.wait(passed)
        return passed

    def reload(self) -> list[tuple[str, int, int]]:
        self.supervisor.reload(self.now)
        return self.perform()

    def stop(self) -> list[tuple[str, int, int]]:
        self.supervisor.stop(self.now)
        return self.perform()

    @property
    def state(self) -> PoolState:
        return self.supervisor.state


def serving(count: int, options: PoolOptions = OPTIONS) -> Pool:
    pool = Pool(count, options)
    pool.begin()
    for index in range(count):
        pool.ready(index)
    assert pool.state is PoolState.SERVING
    return pool


# Starting ---------------------------------------------------------------------------------------------------


def test_the_others_start_once_the_first_worker_serves() -> None:
    pool = Pool(3)
    assert pool.begin() == [("start", 0, 1)]
    assert pool.ready(0) == [("start", 1, 1), ("start", 2, 1)]
    pool.ready(2)
    assert pool.state is PoolState.STARTING
    assert pool.ready(1) == []
    assert pool.state is PoolState.SERVING
    assert pool.supervisor.next_deadline() is None


def test_a_first_worker_that_cannot_start_ends_the_pool() -> None:
    pool = Pool(3)
    pool.begin()
    first = pool.alive[0, 1]
    assert pool.end(0) == []
    assert pool.state is PoolState.STOPPED
    assert pool.supervisor.failed is first


def test_a_later_one_that_cannot_start_takes_the_others_with_it() -> None:
    pool = Pool(3)
    pool.begin()
    pool.ready(0)
    assert pool.end(2) == [("terminate", 0, 1), ("terminate", 1, 1)]
    pool.end(0)
    assert pool.state is PoolState.STOPPING
    pool.end(1)
    assert pool.state is PoolState.STOPPED
    assert pool.supervisor.failed is not None
    assert pool.supervisor.failed.index == 2


def test_one_that_served_and_dies_while_others_start_is_only_restarted() -> None:
    pool = Pool(2)
    pool.begin()
    pool.ready(0)
    assert pool.end(0) == []
    assert pool.wait(0) == [("start", 0, 2)]
    pool.ready(1)
    assert pool.state is PoolState.STARTING
    pool.ready(0, 2)
    assert pool.state is PoolState.SERVING


def test_a_worker_that_does_not_get_ready_in_time_is_killed() -> None:
    pool = Pool(1)
    pool.begin()
    assert pool.wait(OPTIONS.start - 0.1) == []
    assert pool.wait(0.1) == [("kill", 0, 1)]
    assert pool.wait(100) == []
    pool.end(0)
    assert pool.state is PoolState.STOPPED
    assert pool.supervisor.failed is not None


# Dying ------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_restarted_at_once_then_with_growing_pauses_up_to_the_longest() -> None:
    pool = serving(2)
    pauses = []
    for generation in range(1, 10):
        pool.end(1, generation)
        pauses.append(pool.wait_for_deadline())
        assert pool.done == [("start", 1, generation + 1)]
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_the_pauses_begin_anew_after_a_worker_that_served_long_enough() -> None:
    pool = serving(1)
    pool.end(0, 1)
    pool.wait_for_deadline()
    pool.ready(0, 2)
    pool.wait(OPTIONS.steady - 1)
    pool.end(0, 2)
    assert pool.wait_for_deadline() == 1
    pool.ready(0, 3)
    pool.wait(OPTIONS.steady)
    pool.end(0, 3)
    assert pool.wait_for_deadline() == 0


def test_time_spent_starting_is_not_time_served() -> None:
    pool = serving(1)
    pool.end(0, 1)
    pool.wait_for_deadline()
    pool.wait(OPTIONS.steady + 5)
    pool.end(0, 2)
    assert pool.wait_for_deadline() == 1


def test_jitter_takes_off_up_to_half() -> None:
    chance = random.Random(7)
    backoff = Backoff(OPTIONS, lambda: chance.uniform(0.5, 1.0))
    assert backoff.pause_after(0) == 0
    for whole in (1, 2, 4, 8, 16, 30, 30):
        assert whole / 2 <= backoff.pause_after(0) <= whole


def test_a_worker_that_ends_by_itself_is_restarted_too_and_the_others_stay() -> None:
    pool = serving(3)
    pool.end(1)
    assert pool.wait(0) == [("start", 1, 2)]
    assert set(pool.alive) == {(0, 1), (1, 2), (2, 1)}


# Connections of a worker that is down -----------------------------------------------------------------------


def test_connections_wait_for_a_worker_that_dies_once_and_others_get_them_if_it_does_not_come() -> None:
    pool = serving(2)
    pool.end(1)
    assert pool.wait(0) == [("start", 1, 2)]
    assert pool.wait(OPTIONS.hold - 1) == []
    assert pool.wait(1) == [("withdraw", 1, 1)]
    assert pool.wait(OPTIONS.hold) == []


def test_connections_wait_no_more_once_the_next_process_serves() -> None:
    pool = serving(2)
    pool.end(1)
    pool.wait(0)
    pool.ready(1, 2)
    assert pool.wait(2 * OPTIONS.hold) == []


def test_nobody_connects_to_a_worker_that_pauses_because_it_dies_again_and_again() -> None:
    pool = serving(2)
    pool.end(1)
    pool.wait(0)
    pool.ready(1, 2)
    assert pool.end(1, 2) == [("withdraw", 1, 2)]
    assert pool.wait_for_deadline() == 1
    assert pool.done == [("start", 1, 3)]
    assert pool.end(1, 3) == [("withdraw", 1, 3)]


def test_the_last_workers_that_die_keep_their_connections_until_another_serves() -> None:
    pool = serving(2)
    for index in (0, 1):
        pool.end(index)
        pool.wait(0)
    assert pool.wait(2 * OPTIONS.hold) == []
    assert pool.ready(0, 2) == []
    assert pool.wait(1) == [("withdraw", 1, 1)]


def test_a_worker_that_dies_while_its_replacement_starts_is_waited_for_as_well() -> None:
    pool = serving(2)
    pool.reload()
    pool.end(0)
    assert pool.wait(OPTIONS.hold) == [("withdraw", 0, 1)]
    assert pool.ready(0, 2) == [("start", 1, 2)]


# Reloading --------------------------------------------------------------------------------------------------


def test_a_reload_replaces_one_after_the_other() -> None:
    pool = serving(2)
    assert pool.reload() == [("start", 0, 2)]
    assert pool.ready(0, 2) == [("terminate", 0, 1), ("start", 1, 2)]
    assert pool.ready(1, 2) == [("terminate", 1, 1)]
    pool.end(0)
    pool.end(1)
    assert set(pool.alive) == {(0, 2), (1, 2)}
    assert pool.supervisor.next_deadline() is None


@pytest.mark.parametrize("how", ["ends", "takes too long"])
def test_a_new_process_that_does_not_serve_leaves_the_old_one(how: str, caplog: pytest.LogCaptureFixture) -> None:
    pool = serving(2)
    pool.reload()
    if how == "takes too long":
        assert pool.wait(OPTIONS.start) == [("kill", 0, 2)]
    with caplog.at_level(logging.ERROR, "realtime"):
        assert pool.end(0, 2) == [("start", 1, 2)]
        assert pool.ready(1, 2) == [("terminate", 1, 1)]
    assert "worker 0: the new process did not start, the old one goes on" in caplog.messages
    assert "reloaded, but not 1 of 2" in caplog.messages
    pool.end(1)
    assert set(pool.alive) == {(0, 1), (1, 2)}


def test_an_old_process_that_dies_meanwhile_is_not_restarted_beside_its_replacement() -> None:
    pool = serving(1)
    pool.reload()
    assert pool.end(0, 1) == []
    assert pool.supervisor.next_deadline() == pool.now + OPTIONS.start
    assert pool.ready(0, 2) == []
    assert set(pool.alive) == {(0, 2)}


def test_an_old_process_that_does_not_drain_is_killed() -> None:
    pool = serving(1)
    pool.reload()
    pool.ready(0, 2)
    assert pool.wait(OPTIONS.drain) == []
    assert pool.wait(KILL_AFTER) == [("kill", 0, 1)]


def test_a_worker_that_waits_to_be_restarted_is_started_by_a_reload() -> None:
    pool = serving(2)
    for generation in (1, 2):
        pool.end(0, generation)
        if generation == 1:
            pool.wait(0)
    assert pool.reload() == [("start", 0, 3)]
    assert pool.ready(0, 3) == [("start", 1, 2)]


def test_reloads_asked_for_meanwhile_are_one_more_reload_after_it() -> None:
    pool = serving(1)
    pool.reload()
    assert pool.reload() == []
    assert pool.reload() == []
    assert pool.ready(0, 2) == [("terminate", 0, 1)]
    assert pool.end(0, 1) == [("start", 0, 3)]  # not before the earlier process has gone: three at most
    assert pool.ready(0, 3) == [("terminate", 0, 2)]
    assert pool.end(0, 2) == []


def test_a_reload_while_the_pool_starts_comes_after_it() -> None:
    pool = Pool(2)
    pool.begin()
    assert pool.reload() == []
    assert pool.ready(0) == [("start", 1, 1)]
    assert pool.ready(1) == [("start", 0, 2)]


# Stopping ---------------------------------------------------------------------------------------------------


def test_stopping_tells_all_at_once_and_kills_what_is_left_after_the_drain() -> None:
    pool = serving(2)
    assert pool.stop() == [("terminate", 0, 1), ("terminate", 1, 1)]
    assert pool.stop() == []
    pool.end(0)
    assert pool.wait(OPTIONS.drain + KILL_AFTER) == [("kill", 1, 1)]
    pool.end(1)
    assert pool.state is PoolState.STOPPED
    assert pool.supervisor.failed is None


def test_hurrying_kills_all() -> None:
    pool = serving(2)
    pool.stop()
    pool.supervisor.hurry()
    assert pool.perform() == [("kill", 0, 1), ("kill", 1, 1)]


def test_stopping_in_the_middle_of_a_reload_ends_every_process_and_starts_none() -> None:
    pool = serving(2)
    pool.reload()
    pool.reload()
    assert pool.stop() == [("terminate", 0, 1), ("terminate", 0, 2), ("terminate", 1, 1)]
    assert pool.ready(0, 2) == []
    for key in [(0, 2), (1, 1), (0, 1)]:
        assert pool.end(*key) == []
    assert pool.state is PoolState.STOPPED


def test_stopping_while_a_worker_waits_to_be_restarted_does_not_start_it() -> None:
    pool = serving(1)
    pool.end(0)
    assert pool.stop() == []
    assert pool.state is PoolState.STOPPED
    assert pool.wait(100) == []


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_there_are_at_most_three_processes_of_a_worker_and_stopping_ends(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(1, 3)
    pool = serving(count)
    for _ in range(200):
        processes = list(pool.alive.values())
        process = chance.choice(processes) if processes else None
        what = chance.choice(["ready", "end", "reload", "wait", "told"])
        if what == "reload":
            pool.reload()
        elif what == "wait" or process is None:
            pool.wait(chance.uniform(0, 15))
        elif what == "ready" and process.phase is Phase.STARTING:
            pool.ready(process.index, process.generation)
        elif what == "end" or (what == "told" and process.phase is Phase.LEAVING):
            pool.end(process.index, process.generation)
        for index in range(count):
            phases = [one.phase for key, one in pool.alive.items() if key[0] == index]
            assert len(phases) <= 3
            assert phases.count(Phase.STARTING) <= 1
            assert phases.count(Phase.LEAVING) <= 1
            if not phases:
                assert pool.supervisor.next_deadline() is not None, "nobody will restart it"
    pool.stop()
    for key in list(pool.alive):
        pool.end(*key)
    assert pool.state is PoolState.STOPPED
