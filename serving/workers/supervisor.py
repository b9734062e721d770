"""The process that owns the sockets: it forks the workers, watches them, and replaces the dead.

It runs no model and imports neither ONNX Runtime nor numpy nor gRPC, and has one thread: what can
crash is in the workers, and a fork copies nothing that a library keeps in threads.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf
from types import FrameType
from typing import NoReturn

from pipeline.config import ConfigError
from serving.config import Settings
from serving.errors import ModelRefused
from serving.system.anonymous_files import in_memory, on_disk
from serving.system.host import memory_kills
from serving.system.sockets import StartError, withdraw
from serving.system.watchdog import STUCK_EXIT
from serving.telemetry import log, prose
from serving.workers.after_fork import settle
from serving.workers.announcement import announce
from serving.workers.channel import Channel, Closed, Line, Message
from serving.workers.restarts import Strikes, cause
from serving.workers.scoreboard import Board
from serving.workers.stderr import Stderr
from serving.workers.two_phase_commit import Consent
from serving.workers.worker import Place, State, Work, Worker

TICK_SECONDS = 0.5
ABORT_SECONDS = 5.0
"""How long an aborted worker may write its stacks before it is killed."""

LEAVE_SECONDS = 5.0
"""Beyond notice and drain: until a worker that does not leave is killed."""

UNEXPLAINED_DEATHS = 5
"""For each worker, before it was ever ready, with no model to blame: then the start has failed."""

LEAVING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HANDLED = (*LEAVING, signal.SIGCHLD)


def serve(settings: Settings, doors: Mapping[str, Sequence[socket.socket]], work: Work) -> None:
    """Keep `work` running on every socket of each door until told to stop.

    Raises `ModelRefused` or `StartError` where the first workers cannot serve; returns after
    SIGTERM, SIGINT or SIGHUP.
    """
    Supervisor(settings, doors, work).run()


class Supervisor:
    """The workers and the loop that looks after them."""

    def __init__(
        self, settings: Settings, doors: Mapping[str, Sequence[socket.socket]], work: Work
    ) -> None:
        self._settings = settings
        self._limits = settings.supervision
        self._work = work
        count = min(len(sockets) for sockets in doors.values())
        # All memory that workers share is made here, before the first fork, and handed out in
        # `Place`: what they do (the board), what they count (the ledger lays that out), and the
        # bundles they serve (the shelf).
        board = Board(count)
        self._counters, self._shelf = in_memory("slipway-metrics"), on_disk("slipway-shelf")
        self._workers = [
            Worker(n, {door: sockets[n] for door, sockets in doors.items()}, board.row(n))
            for n in range(count)
        ]
        self._consent = Consent(self._replace)
        self._look_due = inf
        self._strikes = Strikes(self._limits.quarantine_deaths, self._limits.quarantine_seconds)
        self._quarantined: dict[str, str] = {}
        self._memory_kills = memory_kills()
        self._signals: list[int] = []
        self._wake: tuple[socket.socket, socket.socket]
        self._announced = False
        self._unexplained = 0
        self._leave_by: float | None = None
        self._tick = 0.0

    def run(self) -> None:
        """Until told to stop; see `serve`."""
        self._wake = socket.socketpair()
        for end in self._wake:
            end.setblocking(False)
        before = {number: signal.getsignal(number) for number in HANDLED}
        for number in HANDLED:
            if before[number] is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._signalled)
        signal.set_wakeup_fd(self._wake[1].fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # no collection in a worker writes to, and so copies, what it inherited
        try:
            while self._step():
                pass
        finally:
            self._kill_all()
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            gc.unfreeze()

    def _step(self) -> bool:
        """Wait for whatever happens next and see to it; false at the end."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.state is State.WAITING and worker.due <= now and self._leave_by is None:
                self._start(worker)
        self._wait()
        for worker in self._workers:
            self._listen(worker)
            if worker.stderr:
                worker.stderr.pass_on(worker.number)
        self._obey()
        self._reap()
        now = time.monotonic()
        if now >= self._tick + TICK_SECONDS:
            # By turns of this loop, not by the clock: a machine that slept stopped them both.
            self._watch(now)
            self._tick = now
        self._follow(now)
        if self._leave_by is not None:
            if now >= self._leave_by:
                log("warning", "workers that did not leave were killed")
                self._kill_all()
            return any(worker.pid for worker in self._workers)
        return True

    def _wait(self) -> None:
        """Until a message, a signal, the next tick or the next start."""
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        for line in self._lines().values():
            poll.register(line.sock, select.POLLIN | (select.POLLOUT if line.unsent else 0))
        for worker in self._workers:
            if worker.stderr:
                poll.register(worker.stderr, select.POLLIN)
        now = time.monotonic()
        wake_at = self._tick + TICK_SECONDS
        if self._leave_by is None:
            wake_at = min([wake_at, *(w.due for w in self._workers if w.state is State.WAITING)])
            wake_at = min(wake_at, self._look_due)
        poll.poll(max(0.0, wake_at - now) * 1000 + 1)
        try:
            while self._wake[0].recv(1 << 10):
                pass
        except BlockingIOError:
            pass

    def _lines(self) -> dict[int, Line]:
        return {w.number: w.line for w in self._workers if w.line}

    # Starting

    def _start(self, worker: Worker) -> None:
        """Fork a worker. What fails here is tried again like a death."""
        ours, theirs = socket.socketpair()
        worker.stderr = None if prose() else Stderr()
        worker.row.wipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or its buffer would be written twice
        # A signal between the fork and the child's own handlers would be taken for ours.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        supervisor = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            ours.close()
            theirs.close()
            self._hush(worker)
            log("error", "no worker could be started", worker=worker.number, why=str(error))
            worker.due = time.monotonic() + worker.backoff.delay(0.0, sent=False)
            return
        if not pid:
            ours.close()
            self._become(worker, theirs, supervisor)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        theirs.close()
        if worker.stderr:
            worker.stderr.handed_over()
        worker.pid, worker.line, worker.state = pid, Line(ours), State.STARTING
        worker.lives += 1
        worker.looks = self._consent.lineup is None
        worker.began = time.monotonic()
        worker.beats, worker.quiet, worker.aborted, worker.refused = 0, 0.0, None, None

    def _become(self, worker: Worker, sock: socket.socket, supervisor: int) -> NoReturn:
        """From here on this process is the worker; nothing of the supervisor's may run in it."""
        code = 1
        channel = Channel(sock)
        try:
            if worker.stderr:
                worker.stderr.become()
            settle(supervisor, worker.number, worker.row, HANDLED)
            for end in self._wake:
                end.close()
            for other in self._workers:
                if other.line:
                    other.line.close()
                if other is not worker:
                    if other.stderr:
                        other.stderr.close()
                    for listener in other.sockets.values():
                        listener.close()
            code = self._work(
                Place(
                    worker.number,
                    len(self._workers),
                    worker.sockets,
                    worker.row,
                    self._counters,
                    self._shelf,
                    self._consent.lineup,
                    channel,
                    dict(self._quarantined),
                    self._strikes.apart(time.monotonic()),
                    successor=worker.lives > 0,
                    withdrawn=worker.withdrawn,
                )
            )
        except (ModelRefused, ConfigError, ModuleNotFoundError) as error:
            channel.failed(type(error).__name__, str(error), getattr(error, "name", None) or "")
        except BaseException:  # this is the last frame of the process
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    # What workers say

    def _listen(self, worker: Worker) -> None:
        line = worker.line
        if line is None:
            return
        line.flush()
        try:
            messages = line.receive()
        except Closed:
            return  # it is dying; `_reap` buries it
        for message in messages:
            self._heard(worker, line, message)

    def _heard(self, worker: Worker, line: Line, message: Message) -> None:
        match message["kind"]:
            case "loaded":
                self._consent.loaded(worker.number, line, message["lineup"], worker.looks)
            case "ready":
                self._is_ready(worker, message)
            case "failed":
                worker.refused = message
            case "ask":
                self._consent.ask(worker.number, message)
            case "reply":
                self._consent.reply(worker.number, message)

    def _is_ready(self, worker: Worker, message: Message) -> None:
        worker.state, worker.withdrawn = State.READY, False
        now = time.monotonic()
        if worker.lives > 1:
            log(
                "info",
                "worker is back",
                worker=worker.number,
                pid=worker.pid,
                after_seconds=round(now - worker.died, 3),
            )
        if not self._announced and all(w.state is State.READY for w in self._workers):
            self._announced = True
            if pause := self._settings.repository.poll_seconds:
                self._look_due = now + pause
            announce(self._settings, worker.sockets, message["models"], message["missing"])

    # What workers suffer

    def _reap(self) -> None:
        """Every child that has ended. As process 1 of a container, those of others too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            worker = next((w for w in self._workers if w.pid == pid), None)
            if worker:
                self._buried(worker, os.waitstatus_to_exitcode(status))

    def _buried(self, worker: Worker, code: int) -> None:
        """A worker has ended: by a signal where `code` is negative."""
        self._listen(worker)  # its last words
        self._hush(worker)
        self._consent.died(worker.number)
        if worker.line:
            worker.line.close()
        now = time.monotonic()
        lived, worker.died = now - worker.began, now
        was_ready = worker.state is State.READY
        worker.pid, worker.line, worker.state = 0, None, State.WAITING
        if self._leave_by is not None:
            return
        if not self._announced:
            self._give_up(worker, code)
        if worker.refused:
            log("error", "worker cannot serve", worker=worker.number, why=worker.refused["error"])
        sent = self._report(worker, code, lived, now)
        worker.due = now + worker.backoff.delay(lived, sent)
        if not was_ready:
            self._withdraw(worker)

    def _hush(self, worker: Worker) -> None:
        """Pass on the last that a worker wrote; what it has started may write on, to nobody."""
        if worker.stderr:
            worker.stderr.pass_on(worker.number, over=True)
            worker.stderr.close()
            worker.stderr = None

    def _withdraw(self, worker: Worker) -> None:
        """Leave the clients of a worker that does not come back to the others."""
        if not worker.withdrawn and any(w.state is State.READY for w in self._workers):
            worker.withdrawn = True
            log("error", "worker does not come back: others take its clients", worker=worker.number)
            for sock in worker.sockets.values():
                withdraw(sock)

    def _give_up(self, worker: Worker, code: int) -> None:
        """Raise what ended a first worker, where the next one would fare no better."""
        if worker.refused:
            text = worker.refused["error"]
            match worker.refused["type"]:
                case "ConfigError":
                    raise ConfigError(text)
                case "ModuleNotFoundError":
                    raise ModuleNotFoundError(text, name=worker.refused["name"])
            raise ModelRefused(text)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if code > 0 and code != STUCK_EXIT:
            raise StartError(
                f"worker {worker.number} failed before it was ready ({how}), see above"
            )
        self._unexplained += not worker.row.suspects()
        if self._unexplained >= UNEXPLAINED_DEATHS * len(self._workers):
            raise StartError(f"workers die before they are ready, and of no model (last: {how})")

    def _report(self, worker: Worker, code: int, lived: float, now: float) -> bool:
        """Log a death and blame whom it may concern; whether somebody sent it."""
        kills, before = memory_kills(), self._memory_kills
        self._memory_kills = kills
        number = worker.row.outside or -code
        stuck = worker.aborted is not None or (code == STUCK_EXIT and not worker.row.outside)
        why, sent = cause(number, bool(worker.row.outside), stuck, kills > before)
        suspects = worker.row.suspects()
        log(
            "error" if code else "info",
            "worker died",
            worker=worker.number,
            why=why,
            how=signal.Signals(number).name if number > 0 else f"exit code {code}",
            lived_seconds=round(lived, 3),
            models=[suspect.key for suspect in suspects],
        )
        if not sent and (code < 0 or code == STUCK_EXIT):
            for key in self._strikes.struck(suspects, now):
                self._quarantine(key, why)
        return sent

    def _quarantine(self, key: str, why: str) -> None:
        reason = (
            f"quarantined: workers died {self._limits.quarantine_deaths} times within "
            f"{self._limits.quarantine_seconds:g} s while it was being opened or run, last: {why}"
        )
        self._quarantined[key] = reason
        self._consent.quarantined(key, reason)
        log("error", "model quarantined", model=key, reason=reason)
        for line in self._lines().values():
            line.send({"kind": "quarantine", "key": key, "reason": reason})

    def _watch(self, now: float) -> None:
        """Count the ticks without a beat; end those who give none."""
        for worker in self._workers:
            if not worker.pid:
                continue
            beats = worker.row.beats
            worker.quiet = 0.0 if beats != worker.beats else worker.quiet + TICK_SECONDS
            worker.beats = beats
            if worker.aborted is not None:
                if now >= worker.aborted + ABORT_SECONDS:
                    os.kill(worker.pid, signal.SIGKILL)
            elif worker.quiet > self._limits.stuck_seconds:
                log("error", "worker is stuck", worker=worker.number, pid=worker.pid)
                worker.aborted = now
                os.kill(worker.pid, signal.SIGABRT)

    def _follow(self, now: float) -> None:
        """Have the folder looked at, where it is to be followed and its time has come."""
        if now >= self._look_due:
            self._look_due = now + self._settings.repository.poll_seconds
            if self._consent.idle:
                self._consent.refresh()

    def _replace(self, number: int) -> None:
        """Have a worker leave, for another in its place."""
        if pid := self._workers[number].pid:
            os.kill(pid, signal.SIGTERM)

    # Leaving

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)

    def _obey(self) -> None:
        while self._signals:
            self._signals.pop()
            if self._leave_by is not None:
                log("warning", "stopped at once: a second signal came")
                self._kill_all()
                os._exit(1)
            self._leave()

    def _leave(self) -> None:
        """Tell all workers; they take what is left of the way by themselves."""
        settings = self._settings
        patience = settings.notice_seconds + settings.drain_seconds + LEAVE_SECONDS
        self._leave_by, self._look_due = time.monotonic() + patience, inf
        for worker in self._workers:
            for sock in worker.sockets.values():
                sock.close()  # or clients would queue here when the worker has closed its own
            if worker.line:
                worker.line.send({"kind": "leave"})

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
                worker.pid = 0
            self._hush(worker)
