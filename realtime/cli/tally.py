"""What a load counts: round trips by how long they took, errors, and how connections ended. Bounded, however long."""

from __future__ import annotations

import math
from collections import Counter

__all__ = ["Histogram", "Tally"]

PRECISION = 0.01  # a bucket is so much wider than the one before
SHORTEST = 1e-6  # seconds; the bound of the first bucket
BUCKETS = 2200  # the last one begins at about 53 minutes
KINDS = 50  # different errors that are counted by name

_STEP = math.log1p(PRECISION)


class Histogram:
    """Durations in buckets that grow by 1 %: as exact as that, in 18 KiB, for any number of them."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.count = 0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        index = int(math.log(seconds / SHORTEST) / _STEP) + 1 if seconds > SHORTEST else 0
        self._counts[min(index, BUCKETS - 1)] += 1
        self.count += 1
        if seconds > self.longest:
            self.longest = seconds

    def quantile(self, share: float) -> float:
        """Return the seconds within which ``share`` of them were: 0.5 is the median. 0 if there are none."""
        wanted = share * self.count
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                if index == BUCKETS - 1:
                    break  # it has no bound
                return min(SHORTEST * math.exp(index * _STEP), self.longest)
        return self.longest


class Tally:
    """The result of a load."""

    def __init__(self) -> None:
        self.durations = Histogram()
        self.errors: Counter[str] = Counter()
        self.closes: Counter[str] = Counter()

    def failed(self, what: str) -> None:
        """Count an error by what it says; what a server makes up anew each time is counted as other."""
        self.errors[what if what in self.errors or len(self.errors) < KINDS else "other"] += 1

    def closed(self, how: str) -> None:
        """Count a connection that ended by itself, by its code."""
        self.closes[how if how in self.closes or len(self.closes) < KINDS else "other"] += 1
