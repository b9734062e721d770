"""When a dead worker comes back, and which model stays away: pure policy, no clock, no process.

`now` is in seconds of any clock that does not go backwards.
"""

from __future__ import annotations

import signal
from collections import defaultdict, deque
from collections.abc import Sequence

from serving.workers.scoreboard import Doing, Suspect

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
LONG_LIFE = 30.0


class Backoff:
    """The delays between one worker's lives: at once, then 0.1 s, 0.2 s, ... up to 5 s."""

    def __init__(self) -> None:
        self._deaths = 0

    def delay(self, lived: float, sent: bool) -> float:
        """Seconds to wait after a life of `lived` seconds.

        A death that was `sent` by somebody says nothing about how the next life will go.
        """
        if sent or lived >= LONG_LIFE:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (self._deaths - 2))


def cause(number: int, outside: bool, stuck: bool, out_of_memory: bool) -> tuple[str, bool]:
    """(why a worker died, whether somebody sent it): `number` is the signal, 0 or less for none.

    `outside` says that it saw the signal come from another process; `out_of_memory` that the kernel
    has killed for want of memory since the last death.
    """
    if stuck:
        return "stuck", False
    if outside:
        return "signalled", True
    if number <= 0:
        return "ended", number == 0
    if number == signal.SIGKILL:
        return ("out of memory", False) if out_of_memory else ("signalled", True)
    return ("signalled", True) if number == signal.SIGTERM else ("crashed", False)


class Strikes:
    """Deaths by model, and the models that died too often.

    One suspect is guilty. Of several, those being opened are; where all were running, nobody can
    say, so each gets a strike that decides nothing, and from then on they take turns (`apart`):
    the next death has one suspect.
    """

    def __init__(self, deaths: int, seconds: float) -> None:
        self._deaths = deaths
        self._seconds = seconds
        self._times: dict[str, deque[float]] = defaultdict(deque)
        self._apart: dict[str, float] = {}

    def struck(self, suspects: Sequence[Suspect], now: float) -> list[str]:
        """Note a death; the keys of the models that have now died too often."""
        opening = [s.key for s in suspects if s.doing is Doing.OPENING]
        guilty = opening or [s.key for s in suspects]
        if len(guilty) > 1:
            self._apart.update(dict.fromkeys(guilty, now))
            return []
        for key in guilty:
            times = self._times[key]
            times.append(now)
            while now - times[0] > self._seconds:
                times.popleft()
            if self._deaths and len(times) >= self._deaths:
                del self._times[key]
                return [key]
        return []

    def apart(self, now: float) -> frozenset[str]:
        """The models that must not run at the same time, until one of them is found out."""
        return frozenset(k for k, since in self._apart.items() if now - since <= self._seconds)
