"""The load itself: asyncio protocols that send bytes made before and count what comes back.

A closed loop asks again as soon as it is answered, so a server that stalls is asked less just then
and its stall hardly shows: coordinated omission. An open loop has requests due at moments fixed
beforehand and counts from those, whether or not a connection was free.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from math import inf
from typing import cast

import httptools

from serving.client.address import Address
from serving.client.errors import reason
from serving.client.reading import Reply
from serving.load.alarm import Alarm
from serving.load.outcome import Outcome
from serving.load.work import Request

RECONNECT_SECONDS = 0.05
STOPPING_SECONDS = 1.0
OPENING = 32
"""Connections opened at a time: more would overflow a listening queue and wait a second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to ask. `rate` none is a closed loop; else requests a second over all connections."""

    connections: int = 64
    seconds: float = 10.0
    warm_up: float = 1.0
    rate: float | None = None
    poisson: bool = False
    """Arrivals at random, as independent users make them, instead of evenly spaced."""
    patience: float = 5.0
    """Seconds after the end for what is still under way."""
    seed: int = 0


async def run(
    address: Address,
    requests: Sequence[Request],
    plan: Plan,
    stop: asyncio.Event | None = None,
) -> Outcome:
    """One stretch of load; setting `stop` ends it early with what there is so far.

    Raises `OSError` where the server cannot be connected to at all.
    """
    load = _Load(address, requests, plan)
    waiting = asyncio.ensure_future(stop.wait()) if stop else None
    try:
        await load.open()
        if waiting:
            waiting.add_done_callback(lambda _: load.stop())
        load.begin()
        await load.over.wait()
    finally:
        if waiting:
            waiting.cancel()
        load.close()
    return load.outcome


class _Load:
    """The connections, the schedule and the counting of one stretch."""

    def __init__(self, address: Address, requests: Sequence[Request], plan: Plan) -> None:
        self.address, self.plan = address, plan
        self.requests = cycle(requests)
        self.outcome = Outcome(plan.connections, plan.rate, requests[0].rows, plan.warm_up)
        self.over = asyncio.Event()
        self.counting = self.ended = False
        self.first = self.last = inf
        """When counting begins and ends."""
        self.received_bytes = self.sent_bytes = 0
        kind = _Checked if requests[0].expected else _Connection
        self._connections = [kind(self) for _ in range(plan.connections)]
        self._free: list[_Connection] = []
        self._due = inf
        self._starved = False
        """Whether the next request due has been waiting for a connection."""
        self._random = random.Random(plan.seed)
        self._alarm: Alarm | None = None
        self._handles: list[asyncio.TimerHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._before = (0, 0, 0.0)

    async def open(self) -> None:
        """Connect them all. Raises `OSError` where the first cannot."""
        await self._connections[0].connect()
        rest = self._connections[1:]
        for at in range(0, len(rest), OPENING):
            opening = (connection.connect() for connection in rest[at : at + OPENING])
            for found in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(found, OSError):
                    self.outcome.errors[reason(found)] += 1
                elif isinstance(found, BaseException):
                    raise found

    def begin(self) -> None:
        """Set the clock and ask."""
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        self.first = now + self.plan.warm_up
        self.last = self.first + self.plan.seconds
        end = self.plan.warm_up + self.plan.seconds
        self._handles = [
            loop.call_later(self.plan.warm_up, self._count),
            loop.call_later(end, self._end),
            loop.call_later(end + self.plan.patience, self.over.set),
        ]
        if self.plan.rate is None:
            for connection in self._connections:
                if connection.usable:
                    connection.ask(next(self.requests), time.perf_counter())
                else:
                    self.reconnect(connection)
            return
        self._free = [connection for connection in self._connections if connection.usable]
        for connection in self._connections:
            if not connection.usable:
                self.reconnect(connection)
        self._due = now
        self._alarm = Alarm(loop, self._dispatch)
        self._dispatch()

    def stop(self) -> None:
        """End now; what is under way has a moment to be answered."""
        if self.over.is_set() or self.outcome.seconds:
            return
        self.outcome.stopped = True
        if not self.counting:
            self.over.set()
            return
        self.last = time.perf_counter()
        moment = min(self.plan.patience, STOPPING_SECONDS)
        self._handles.append(asyncio.get_running_loop().call_later(moment, self.over.set))
        self._end()

    def close(self) -> None:
        """Count what is unanswered and leave."""
        now = time.perf_counter()
        self.ended = True
        if self.counting:
            self._note(now)
        for handle in self._handles:
            handle.cancel()
        for task in self._tasks:
            task.cancel()
        if self._alarm:
            self._alarm.close()
        while self._due < min(now, self.last):  # due and never sent: it waited too
            if self._due >= self.first:
                self.outcome.asked += 1
                self.outcome.unanswered += 1
                self.outcome.latencies.add(now - self._due)
            self._due += self._gap()
        for connection in self._connections:
            if connection.waiting and connection.due >= self.first:
                self.outcome.unanswered += 1
                self.outcome.latencies.add(now - connection.due)
            connection.waiting = False
            connection.abort()

    # The schedule

    def _dispatch(self) -> None:
        """Send what is due over what is free, and be called again when the next is due."""
        now = time.perf_counter()
        while self._due <= now and self._due < self.last:
            if not self._free:
                self._starved = True
                return
            connection = self._free.pop()
            if not connection.usable:
                continue
            if not self._starved and self._due >= self.first:
                self.outcome.lags.add(now - self._due)
            connection.ask(next(self.requests), self._due)
            self._due += self._gap()
            now = time.perf_counter()
        self._starved = False
        if self._due < self.last and self._alarm:
            self._alarm.set(self._due)

    def _gap(self) -> float:
        rate = self.plan.rate or inf
        return self._random.expovariate(rate) if self.plan.poisson else 1 / rate

    def next(self, connection: _Connection) -> None:
        """A connection is free again."""
        if self.plan.rate is not None:
            if not self.ended:
                self._free.append(connection)
                if self._starved:
                    self._dispatch()
            elif self._idle():
                self.over.set()
        elif not self.ended:
            connection.ask(next(self.requests), time.perf_counter())
        elif self._idle():
            self.over.set()

    def _idle(self) -> bool:
        return not any(connection.waiting for connection in self._connections)

    # Counting

    def _count(self) -> None:
        self.counting = True
        self._before = (self.sent_bytes, self.received_bytes, time.process_time())

    def _end(self) -> None:
        self._note(time.perf_counter())
        self.ended = True
        if self._due < self.last:  # still to be sent, late: as long as patience lasts
            self.ended = False
            self._handles.append(
                asyncio.get_running_loop().call_later(0.01, self._end_when_all_is_sent)
            )
        elif self._idle():
            self.over.set()

    def _end_when_all_is_sent(self) -> None:
        if self._due < self.last:
            self._handles.append(
                asyncio.get_running_loop().call_later(0.01, self._end_when_all_is_sent)
            )
            return
        self.ended = True
        if self._idle():
            self.over.set()

    def _note(self, now: float) -> None:
        """The figures of the stretch that ends now."""
        if self.outcome.seconds:
            return
        sent, received, cpu = self._before
        self.outcome.seconds = min(now, self.last) - self.first
        self.outcome.sent_bytes = self.sent_bytes - sent
        self.outcome.received_bytes = self.received_bytes - received
        self.outcome.cpu_seconds = time.process_time() - cpu

    def reconnect(self, connection: _Connection) -> None:
        """Open a connection anew, as long as it takes."""
        if connection in self._free:
            self._free.remove(connection)  # it comes back once
        if not self.ended:
            task = asyncio.ensure_future(self._reopen(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _reopen(self, connection: _Connection) -> None:
        while not self.ended:
            await asyncio.sleep(RECONNECT_SECONDS)
            try:
                await connection.connect()
            except OSError as error:
                self.outcome.errors[reason(error)] += 1
            else:
                self.next(connection)
                return


class _Connection(asyncio.Protocol):
    """One connection with one request at a time; it reads no body."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._outcome = load.outcome
        self.usable = self.waiting = False
        self.due = 0.0
        self._whole = False

    async def connect(self) -> None:
        """Raises `OSError`."""
        address = self._load.address
        await asyncio.get_running_loop().create_connection(
            lambda: self, address.host, address.port, ssl=address.tls
        )

    def ask(self, request: Request, due: float) -> None:
        """Send a request that was due then."""
        self._request = request
        self.due, self.waiting = due, True
        if self._load.first <= due:
            self._outcome.asked += 1
        self._load.sent_bytes += len(request.wire)
        self._transport.write(request.wire)

    def abort(self) -> None:
        """Close at once."""
        if self.usable:
            self.usable = False
            self._transport.abort()

    def is_right(self) -> bool:
        """Whether the answer is, as far as is known."""
        return True

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit it
        self._parser = httptools.HttpResponseParser(self)
        self.usable, self._whole = True, False

    def data_received(self, data: bytes) -> None:
        load = self._load
        load.received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._outcome.errors[f"not an HTTP answer: {error}"] += 1
            self._transport.abort()
            return
        if not self._whole:
            return
        self._whole = False
        now, due, status = time.perf_counter(), self.due, self._status
        if not self.waiting:
            self._outcome.errors[f"{status} before anything was asked"] += 1
            self._transport.abort()
            return
        self.waiting = False
        good = 200 <= status < 300
        if load.first <= due:
            self._outcome.statuses[status] += 1
            (self._outcome.latencies if good else self._outcome.refusals).add(now - due)
            if good and not self.is_right():
                self._outcome.wrong += 1
        if good and load.first <= now < load.last:
            self._outcome.answered += 1
        if self._kept:
            load.next(self)
        else:
            self.usable = False
            self._transport.close()
            load.reconnect(self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.usable:
            return
        self.usable = False
        if self.waiting or error:  # a server may close what has been idle for long
            self._outcome.errors[reason(error) if error else "closed by the server"] += 1
        if self.waiting:
            self.waiting = False
            if self._load.first <= self.due:
                self._outcome.lost += 1
        self._load.reconnect(self)

    # What the parser calls

    def on_message_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._whole = True
            self._kept = self._parser.should_keep_alive()


class _Checked(_Connection):
    """One that reads the answer too."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.on_message_begin()

    def is_right(self) -> bool:
        reply = Reply(self._status, self._headers, b"".join(self._body))
        return self._request.is_right(reply)

    def on_message_begin(self) -> None:
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
