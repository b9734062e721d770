"""What one worker counts, and where: its row of the ledger. Written on the event loop only.

Counters keep what workers before this one counted; gauges begin at nothing.
"""

from __future__ import annotations

import mmap
import resource
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

from serving.observability import cells
from serving.observability.cells import (
    ANSWERED,
    BATCH_ROWS,
    BATCH_SECONDS,
    BATCHES,
    CODEC,
    CODEC_SUM,
    DECODE_SECONDS,
    DOORS,
    EXACT_ROWS,
    GRPC_CODES,
    HTTP_CODES,
    LAST,
    OUTCOMES,
    QUEUE,
    QUEUE_SUM,
    RECEIVED,
    REQUESTS,
    ROWS,
    RUN,
    RUN_SUM,
    SECONDS,
    SENT,
    TOTAL,
    TOTAL_SUM,
    account,
    batch_place,
)
from serving.observability.ledger import Cells, Ledger

PROCESS_SECONDS = 2.0
"""How old what the kernel tells of a process may get."""

SUCCESSES = tuple(REQUESTS + door * len(OUTCOMES) for door in range(len(DOORS)))
CODES = tuple(
    {
        (int(code) if code.isdigit() else code): ANSWERED[door] + place
        for place, code in enumerate(names)
    }
    for door, names in enumerate((HTTP_CODES, GRPC_CODES))
)


class Meter:
    """Where one worker counts one model version. Durations are in seconds, sizes in bytes."""

    __slots__ = ("_cells", "name", "version")

    def __init__(self, account: Cells, name: str = "", version: str = "") -> None:
        self._cells = account
        self.name = name
        self.version = version

    def success(
        self,
        door: int,
        rows: int,
        received: int,
        sent: int,
        queue: float,
        run: float,
        decode: float,
        encode: float,
        total: float,
    ) -> None:
        """Count one answered request, with where its time went."""
        account = self._cells
        account[SUCCESSES[door]] += 1.0
        account[ROWS] += rows
        account[RECEIVED] += received
        account[SENT] += sent
        account[DECODE_SECONDS] += decode
        account[QUEUE + bisect_left(SECONDS, queue)] += 1.0
        account[QUEUE_SUM] += queue
        account[RUN + bisect_left(SECONDS, run)] += 1.0
        account[RUN_SUM] += run
        codec = decode + encode
        account[CODEC + bisect_left(SECONDS, codec)] += 1.0
        account[CODEC_SUM] += codec
        account[TOTAL + bisect_left(SECONDS, total)] += 1.0
        account[TOTAL_SUM] += total

    def failure(self, door: int, outcome: int, received: int, sent: int, total: float) -> None:
        """Count one request that did not get an answer of the model's."""
        account = self._cells
        account[REQUESTS + door * len(OUTCOMES) + outcome] += 1.0
        account[RECEIVED] += received
        account[SENT] += sent
        account[cells.FAILED_SECONDS] += total

    def batch(self, rows: int, seconds: float) -> None:
        """Count one run of the model."""
        account = self._cells
        place = rows if rows <= EXACT_ROWS else batch_place(rows)
        account[BATCHES + place] += 1.0
        account[BATCH_SECONDS + place] += seconds
        account[BATCH_ROWS] += rows
        account[LAST] = time.time()

    def now(self, state: str | None, waiting: int, rows: int, fell_back: bool) -> None:
        """Say how this model version is now: its state, what waits for it, whether CUDA is missed.

        `state` is one of `STATES`, none once the version is gone. What is counted together with
        others has no state of its own.
        """
        if self.name == cells.OTHER:
            return
        account = self._cells
        account[cells.STATE] = cells.STATES.index(state) + 1 if state else 0
        account[cells.WAITING] = waiting
        account[cells.WAITING_ROWS] = rows
        account[cells.FALLBACK] = fell_back


class Metrics:
    """One worker's hand on the ledger. Make it in the process that is to write, once."""

    def __init__(self, ledger: Ledger | None = None, worker: int = 0) -> None:
        self.ledger = ledger or Ledger()
        self._row = self.ledger.row(worker)
        self._meters: dict[int, Meter] = {}
        self._sampled = -PROCESS_SECONDS
        self._clear_gauges()
        self._row[cells.STARTS] += 1
        self._row[cells.STARTED] = time.time()
        self._cpu = 0.0
        self.nameless = self._metered(cells.NAMELESS, "", "")
        """Where requests are counted that found no model."""
        self.samplers: list[Callable[[], None]] = [self.sample_process]
        """What is asked, a few times a second and before a scrape, to say how things are now."""

    def meter(self, name: str, version: str) -> Meter:
        """Where a model version of the repository is counted; the same object every time."""
        slot = self.ledger.slot(name, version)
        if slot == cells.OVERFLOW:
            return self._metered(slot, cells.OTHER, "")
        return self._metered(slot, name, version)

    def answered(self, door: int, code: int | str) -> None:
        """Count one answer of any kind, by HTTP's number or by the name of gRPC's code."""
        places = CODES[door]
        self._row[places[code] if code in places else places["other"]] += 1.0

    def connections(self, number: int) -> None:
        """Say how many HTTP connections are open now."""
        self._row[cells.CONNECTIONS] = number

    def in_flight(self, door: int, number: int) -> None:
        """Say how many requests are being answered now."""
        self._row[cells.IN_FLIGHT + door] = number

    def refused(self) -> None:
        """Count one HTTP connection that was turned away."""
        self._row[cells.REFUSED] += 1.0

    def dropped(self, lines: int) -> None:
        """Count lines of the access log that nobody read in time."""
        self._row[cells.DROPPED] += lines

    def sample(self) -> None:
        """Bring the gauges up to now."""
        for sampler in self.samplers:
            sampler()

    def sample_process(self) -> None:
        """Note what the kernel says of this process, at most every `PROCESS_SECONDS`."""
        now = time.monotonic()
        if now < self._sampled + PROCESS_SECONDS:
            return
        self._sampled = now
        # Differences, so that the sum goes on where a dead worker's stopped.
        cpu = _cpu_seconds()
        self._row[cells.CPU_SECONDS] += cpu - self._cpu
        self._cpu = cpu
        self._row[cells.MEMORY] = _resident_bytes()
        self._row[cells.FILES] = _open_files()

    def _metered(self, slot: int, name: str, version: str) -> Meter:
        if slot not in self._meters:
            self._meters[slot] = Meter(self._row[account(slot)], name, version)
        return self._meters[slot]

    def _clear_gauges(self) -> None:
        """A worker before this one may have died with requests in its hands."""
        for place in cells.HEAD_GAUGES:
            self._row[place] = 0.0
        for slot in [*range(len(self.ledger.names()) + 1), cells.OVERFLOW]:
            for place in cells.ACCOUNT_GAUGES:
                self._row[account(slot).start + place] = 0.0


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * mmap.PAGESIZE
    except OSError:  # not Linux: the most it ever was
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _open_files() -> int:
    try:
        # Linux 6.2 and later tell the number as the folder's size, which costs far less than a list.
        folder = Path("/proc/self/fd")
        return folder.stat().st_size or sum(1 for _ in folder.iterdir())
    except OSError:
        return 0
