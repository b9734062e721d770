"""Durations in logarithmic buckets: every percentile to within a hundredth, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

BITS = 7
"""Each doubling has 2**BITS buckets: a bucket is at most 1/128 as wide as its durations are long."""

LONGEST = (1 << 36) - 1
"""Microseconds, 19 hours; what is longer counts as that."""

SIZE = ((36 - BITS) << BITS) + (1 << BITS)


class Histogram:
    """Counts durations to the microsecond. Nothing is averaged away and nothing is kept twice."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        """Seconds in all."""
        self.longest = 0.0
        """Seconds, exact."""
        self._counts = [0] * SIZE

    def add(self, seconds: float) -> None:
        """Count one duration; a negative one, which only a clock could cause, as none."""
        microseconds = max(0, min(int(seconds * 1e6), LONGEST))
        shift = microseconds.bit_length() - BITS - 1
        if shift > 0:
            self._counts[(shift << BITS) + (microseconds >> shift)] += 1
        else:
            self._counts[microseconds] += 1
        self.count += 1
        self.total += seconds
        if seconds > self.longest:
            self.longest = seconds

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the durations did not exceed; 0 where there are none."""
        wanted, seen = self.count * percent / 100, 0
        for _, above, count in self.buckets():
            seen += count
            if seen >= wanted:
                return min(above, self.longest)
        return self.longest

    @property
    def mean(self) -> float:
        """Seconds; 0 where there are none."""
        return self.total / self.count if self.count else 0.0

    def buckets(self) -> Iterator[tuple[float, float, int]]:
        """(from, to, count) of every bucket that holds something, in seconds, shortest first."""
        for index, count in enumerate(self._counts):
            if count:
                low, width = _bounds(index)
                yield low / 1e6, (low + width) / 1e6, count


def _bounds(index: int) -> tuple[int, int]:
    """(microseconds where a bucket begins, its width)."""
    if index < 2 << BITS:
        return index, 1
    shift = (index >> BITS) - 1
    return ((index & ((1 << BITS) - 1)) + (1 << BITS)) << shift, 1 << shift
