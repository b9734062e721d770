"""Requests that wait together run together: a pure policy, and the driver that carries it out.

Nothing ever waits for company. What one poll of the sockets delivered is joined, or, where a
thread runs the model, what gathered while it was busy. Such a thread is handed its next batch
before it is done with one, once there is a good one: under load the way to the event loop and back
would leave it idle just when there is most to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import numpy as np

from serving.config import BatchSettings
from serving.errors import (
    BackendFailure,
    DeadlineExceeded,
    Overloaded,
    ServingError,
    WaitedTooLong,
)
from serving.observability.call import Call
from serving.observability.metrics import Meter
from serving.telemetry import log

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
"""Inputs by name `[rows, ...]` to outputs by name `[rows, ...]`."""

Timed = tuple[list["Entry"], list["Arrays | Exception"], float, float]
"""Whom of a batch it ran for, what they are answered, and when it began and ended, by
`time.perf_counter`."""

Done = Callable[[Arrays | ServingError], None]
"""Told a request's outputs, or why there are none; once, on the event loop."""


MAX_COSTS = 256
"""Signatures whose cost is remembered."""

RISE = 1.25
"""How much dearer a row can be found at each run."""

GOOD = 64
"""Rows from which on a row gets hardly cheaper for running beside more."""

SHORTER = 1 / 12
"""Of the time that a batch may hold up the loop, what is left of it while another good one waits."""

WORTHWHILE = 1 / 4
"""Of a good batch, what must fit into the loop's time for a batch to be cut to that."""


class Waiting(Protocol):
    """What the policy looks at. Only equal signatures can be joined."""

    @property
    def rows(self) -> int: ...

    @property
    def signature(self) -> Hashable: ...


@dataclass(slots=True, eq=False)
class Entry:
    """A request in the queue: its arrays, where its answer goes and where its times are noted."""

    arrays: Arrays
    rows: int
    signature: Hashable
    done: Done
    priority: int = 0
    call: Call | None = None
    timeout: float = inf
    deadline: float = inf
    timer: asyncio.TimerHandle | None = None
    queue: Batcher | None = None
    begun: bool = False
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits any more: not run if it waits still, and not told in any case."""
        self.cancelled = True
        self.stop_timer()
        if self.queue is not None:
            self.queue.departed = True

    def stop_timer(self) -> None:
        """Its turn came, or it is off: a timer would keep its arrays."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def select(waiting: Sequence[Waiting], max_rows: int) -> list[int]:
    """Positions of those that run together next: the first, and whoever fits beside it.

    Order within a signature is kept: where one does not fit, nobody of its kind passes it. The
    first always runs, however many rows it has.
    """
    if not waiting:
        return []
    signature, rows = waiting[0].signature, waiting[0].rows
    chosen = [0]
    for position in range(1, len(waiting)):
        entry = waiting[position]
        if entry.signature == signature:
            rows += entry.rows
            if rows > max_rows:
                break
            chosen.append(position)
    return chosen


def execute(run: Run, batch: Sequence[Entry]) -> list[Arrays | Exception]:
    """The answer, or the failure, of each entry. A failing batch is tried again one by one, save
    where it took too long: each of its rows alone may take as long again.
    """
    try:
        if len(batch) == 1:
            answers = run(batch[0].arrays)
            _check_rows(answers, batch[0].rows)
            return [answers]
        names = batch[0].arrays.keys()
        joined = {name: np.concatenate([e.arrays[name] for e in batch]) for name in names}
        answers = run(joined)
        _check_rows(answers, sum(entry.rows for entry in batch))
    except DeadlineExceeded as error:
        return [error] * len(batch)
    except Exception as error:  # whatever a model raises is that request's answer, never the loop's
        if len(batch) == 1:
            return [error]
        return [execute(run, [entry])[0] for entry in batch]
    split: list[Arrays | Exception] = []
    start = 0
    for entry in batch:
        stop = start + entry.rows
        split.append({name: array[start:stop] for name, array in answers.items()})
        start = stop
    return split


class _Place(asyncio.Future[Arrays]):
    """A place in the queue that can be awaited. Cancelled, it is given up at once."""

    entry: Entry

    def cancel(self, msg: Any | None = None) -> bool:
        self.entry.cancel()
        return super().cancel(msg)


def good_rows(settings: BatchSettings) -> int:
    """Rows of the batch that is worth handing over before it is larger still."""
    return min(settings.rows, GOOD)


class RowCost:
    """Seconds that a row takes, by the signature of its batch: long texts take longer than short.

    A run that was interrupted says little, so a cost falls at once and rises a little at a time.
    """

    def __init__(self, first: float) -> None:
        self._first = first
        self._known: dict[Hashable, float] = {}

    def of(self, signature: Hashable) -> float:
        """What a row of this kind took, or the dearest of those seen: `first` before any was."""
        known = self._known.get(signature)
        return known if known is not None else max(self._known.values(), default=self._first)

    def note(self, signature: Hashable, seconds: float) -> None:
        """Learn of one run."""
        known = self._known.get(signature)
        if known is None and len(self._known) >= MAX_COSTS:
            self._known.clear()
        self._known[signature] = seconds if known is None else min(seconds, known * RISE)


class Batcher:
    """The queue before one model. Lives on the event loop; `executor` runs what is slow.

    What is slow is told batch by batch: a row of a small network is answered sooner on the loop
    than a thread wakes, while sixty of them leave time to read and answer others. `row_seconds` is
    what a row took when the model was proven; it is measured anew at every run.
    """

    def __init__(
        self,
        run: Run,
        settings: BatchSettings,
        executor: Executor | None = None,
        row_seconds: float = inf,
    ) -> None:
        self._run = run
        self._settings = settings
        self._good = good_rows(settings)
        self._executor = executor
        self._cost = RowCost(row_seconds)
        self.meter: Meter | None = None
        self._waiting: list[Entry] = []
        self._rows = 0
        self._scheduled = False
        """Whether a batch runs, or will be taken at the loop's next turn."""
        self._running = 0
        """Batches handed to the thread and not done: one, and one ahead."""
        self.departed = False
        """Whether somebody who may still be in the queue has given up."""
        self._in_order = True
        """Whether what waits can run as it came: nothing has a deadline or priority of its own."""

    def enqueue(
        self,
        arrays: Arrays,
        rows: int,
        signature: Hashable,
        done: Done,
        timeout: float = 0.0,
        priority: int = 0,
        call: Call | None = None,
    ) -> Entry:
        """Queue one request; `done` is told its outputs, as views of the batch's, later.

        Where its turn has not come after `timeout` seconds, `done` is told `WaitedTooLong`; 0 waits
        for ever. `priority` 1 goes before 2, 0 stands for the default. Raises `Overloaded` where
        the queue is full. A callback rather than a future: what a future and a task cost each time
        is more than all else that a small request costs here.
        """
        limits = self._settings
        if call is not None:
            call.rows = rows
            call.queued = time.perf_counter()
        if self._waiting:
            self.check_room(rows)
        level = priority or limits.default_priority
        entry = Entry(arrays, rows, signature, done, level, call, queue=self)
        if timeout or level != limits.default_priority:
            self._in_order = False
            if timeout:
                self._set_deadline(entry, timeout)
        self._waiting.append(entry)
        self._rows += rows
        if not self._scheduled:
            self._schedule(asyncio.get_running_loop())
        elif self._running == 1:
            self._go_ahead(asyncio.get_running_loop())
        return entry

    def submit(
        self, arrays: Arrays, rows: int, signature: Hashable, call: Call | None = None
    ) -> asyncio.Future[Arrays]:
        """The same as something to await; cancelled, it gives up its place in the queue."""
        future = _Place(loop=asyncio.get_running_loop())

        def done(answer: Arrays | ServingError) -> None:
            if future.done():
                return
            if isinstance(answer, ServingError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        future.entry = self.enqueue(arrays, rows, signature, done, call=call)
        return future

    def check_room(self, rows: int = 1) -> None:
        """Raise `Overloaded` where a request of so many rows would find no place."""
        if self._waiting and self._is_full(rows):
            if self.departed:  # looking for them at every refusal would make it dear
                self._forget_cancelled()
            if self._waiting and self._is_full(rows):
                limits = self._settings
                raise Overloaded(
                    f"the queue is full: {len(self._waiting)} requests with {self._rows} rows "
                    f"wait, at most {limits.queue_requests} and {limits.queue_rows} may"
                )

    def _is_full(self, rows: int) -> bool:
        limits = self._settings
        return len(self._waiting) >= limits.queue_requests or self._rows + rows > limits.queue_rows

    def _forget_cancelled(self) -> None:
        self._waiting = [entry for entry in self._waiting if not entry.cancelled]
        self._rows = sum([entry.rows for entry in self._waiting])
        self.departed = False

    def _set_deadline(self, entry: Entry, timeout: float) -> None:
        """Tell a request that it waited too long when it has, whatever the model is busy with."""
        loop = asyncio.get_running_loop()
        entry.timeout, entry.deadline = timeout, loop.time() + timeout
        entry.timer = loop.call_at(entry.deadline, self._expire, entry)

    def _expire(self, entry: Entry) -> None:
        if not entry.cancelled and not entry.begun:
            late = WaitedTooLong(
                f"its turn did not come within the request's timeout of "
                f"{entry.timeout * 1e6:.6g} microseconds; nothing was run for it"
            )
            self._deliver([entry], [late])
            entry.cancel()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def waiting_rows(self) -> int:
        """Rows of the requests in the queue."""
        return self._rows

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return self._scheduled or bool(self._waiting)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._scheduled and self._waiting:
            self._scheduled = True
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        crowded = self._rows >= 2 * self._good
        batch = self._take(self._most(crowded))
        if not batch:
            self._scheduled = False
        elif self._executor is None or not self._is_slow(
            batch[0].signature, sum([entry.rows for entry in batch]), crowded
        ):
            self._done_with(batch, self._timed, batch)
            self._scheduled = False
            self._schedule(loop)  # by way of the loop: sockets get their turn in between
        else:
            self._hand_over(loop, self._executor, batch)
            self._go_ahead(loop)

    def _most(self, crowded: bool) -> int:
        """Rows to run next: a good batch, or what the loop has time for, if that is nearly one.

        Of small rows that crowd before a thread, as many as the loop would have had time for: the
        thread waits for the interpreter after each run, so runs of a millisecond would idle it.
        """
        if self._rows <= 1 or self._executor is None:
            return self._settings.rows
        signature = self._waiting[0].signature
        fitting = int(self._settings.slow_ms / (1000 * self._cost.of(signature) or inf))
        if not crowded:
            return fitting if WORTHWHILE * self._good <= fitting < self._good else self._good
        if self._is_slow(signature, self._good, crowded):
            return min(self._settings.rows, max(self._good, fitting))
        return self._good

    def _go_ahead(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand the thread its next batch early, once a good one waits.

        Not where requests run one by one: there the order counts, and is settled as each begins.
        """
        if self._good == 1 or self._running != 1 or not self._executor or self._rows < self._good:
            return
        if self._is_slow(self._waiting[0].signature, self._good, crowded=True):
            batch = self._take(self._most(crowded=True), ahead=True)
            if batch:
                self._hand_over(loop, self._executor, batch)

    def _hand_over(
        self, loop: asyncio.AbstractEventLoop, executor: Executor, batch: list[Entry]
    ) -> None:
        try:
            work = loop.run_in_executor(executor, self._begun, batch)
        except RuntimeError as error:  # it was shut down: the model is gone
            stopped = BackendFailure("the model was unloaded")
            stopped.__cause__ = error
            self._deliver(batch, [stopped] * len(batch))
            if not self._running:
                self._scheduled = False
                self._schedule(loop)
        else:
            self._running += 1
            work.add_done_callback(lambda done: self._finished(loop, batch, done))

    def _is_slow(self, signature: Hashable, rows: int, crowded: bool) -> bool:
        """Whether running so many rows would hold up the loop for longer than it may.

        Much shorter where a crowd waits: then there is a queue to fill or refuse meanwhile, and the
        way to the thread costs nothing, as its batches lie ready there.
        """
        milliseconds = 1000 * rows * self._cost.of(signature)
        return milliseconds > self._settings.slow_ms * (SHORTER if crowded else 1)

    def _begun(self, batch: list[Entry]) -> Timed:
        """In the thread: run for those who have not given up since the batch was handed over."""
        batch = [entry for entry in batch if not entry.cancelled]
        for entry in batch:
            entry.begun = True
        return self._timed(batch) if batch else ([], [], 0.0, 0.0)

    def _timed(self, batch: list[Entry]) -> Timed:
        began = time.perf_counter()
        answers = execute(self._run, batch)
        ended = time.perf_counter()
        rows = sum([entry.rows for entry in batch])
        self._cost.note(batch[0].signature, (ended - began) / rows)
        return batch, answers, began, ended

    def _take(self, most: int, ahead: bool = False) -> list[Entry]:
        """The next batch of at most so many rows, leaving out those whose client has gone.

        One taken `ahead` has not begun: who waits too long until then is told so.
        """
        waiting = [entry for entry in self._waiting if not entry.cancelled]
        self.departed = False
        if not self._in_order:
            waiting = self._ordered(waiting)
        chosen = select(waiting, most)
        if not self._in_order and not ahead:
            for at in chosen:
                waiting[at].stop_timer()
        if len(chosen) == len(waiting):
            self._waiting, self._rows, self._in_order = [], 0, True
            return waiting
        taken = set(chosen)
        self._waiting = [entry for at, entry in enumerate(waiting) if at not in taken]
        self._rows = sum([entry.rows for entry in self._waiting])
        return [waiting[at] for at in chosen]

    def _ordered(self, waiting: list[Entry]) -> list[Entry]:
        """Higher priority first, those of one as they came; what is too late is told so."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for entry in waiting:
            if entry.deadline < now:
                # Not from within: whoever is told may queue the next request at once.
                entry.stop_timer()
                loop.call_soon(self._expire, entry)
        kept = [entry for entry in waiting if entry.deadline >= now]
        return sorted(kept, key=lambda entry: entry.priority)

    def _finished(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[Entry],
        done: asyncio.Future[Timed],
    ) -> None:
        self._running -= 1
        self._done_with(batch, done.result)
        if self._running:
            self._go_ahead(loop)
        else:
            self._scheduled = False
            self._schedule(loop)

    def _done_with(self, batch: list[Entry], timed: Callable[..., Timed], *given: Any) -> None:
        """Tell a batch its answers; where there are none, whatever the cause, that it has failed."""
        try:
            ran, answers, started, ended = timed(*given)
            self._note(ran, started, ended)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception):  # the other is a thread that was told to end
                log("error", "internal error", kind=type(error).__name__, where="a batch")
            stopped = BackendFailure("the model's thread was stopped")
            self._deliver(batch, [stopped] * len(batch))
        else:
            self._deliver(ran, answers)

    def _note(self, batch: Sequence[Entry], started: float, ended: float) -> None:
        if not batch:
            return
        rows = 0
        for entry in batch:
            rows += entry.rows
            if entry.call is not None:
                entry.call.started, entry.call.ended = started, ended
        if self.meter is not None:
            self.meter.batch(rows, ended - started)

    @staticmethod
    def _deliver(batch: Sequence[Entry], answers: Sequence[Arrays | Exception]) -> None:
        for entry, answer in zip(batch, answers, strict=True):
            if entry.timer is not None:
                entry.stop_timer()
            if entry.cancelled:
                continue
            if isinstance(answer, Exception) and not isinstance(answer, ServingError):
                failure = BackendFailure(f"the model failed: {type(answer).__name__}")
                failure.__cause__ = answer
                answer = failure
            try:
                entry.done(answer)
            except Exception as error:  # a defect of ours; the neighbours get their answers
                log("error", "internal error", kind=type(error).__name__, where="an answer's way")
                with suppress(Exception):  # and this one is not left waiting for ever
                    entry.done(BackendFailure("the answer could not be told"))


def _check_rows(answers: Arrays, rows: int) -> None:
    for name, array in answers.items():
        if not array.ndim or len(array) != rows:
            raise BackendFailure(
                f"output {name!r}: expected {rows} rows, the model gave shape {list(array.shape)}"
            )
