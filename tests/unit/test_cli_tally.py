"""What a load counts, and how exactly."""

from __future__ import annotations

import random

import pytest

from realtime.cli.tally import KINDS, PRECISION, Histogram, Tally


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_quantiles_are_as_exact_as_the_buckets_are_wide(share: float) -> None:
    chance = random.Random(7)
    durations = [chance.lognormvariate(-6, 1) for _ in range(10_000)]
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    exact = sorted(durations)[int(share * len(durations)) - 1]
    assert histogram.quantile(share) == pytest.approx(exact, rel=2 * PRECISION)
    assert histogram.quantile(1.0) == max(durations)


def test_durations_beyond_both_ends_are_counted() -> None:
    histogram = Histogram()
    for duration in (0.0, 1e-9, 1e9):
        histogram.add(duration)
    assert histogram.count == 3
    assert histogram.quantile(0.5) <= 1e-6
    assert histogram.quantile(1.0) == 1e9


def test_nothing_took_no_time() -> None:
    assert Histogram().quantile(0.99) == 0.0


def test_a_server_that_says_something_new_each_time_does_not_fill_the_memory() -> None:
    tally = Tally()
    for number in range(10 * KINDS):
        tally.failed(f"error {number}")
        tally.closed(str(number))
    tally.failed("error 0")
    assert len(tally.errors) == len(tally.closes) == KINDS + 1
    assert tally.errors["error 0"] == 2
    assert tally.errors["other"] == 9 * KINDS
