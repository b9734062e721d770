"""The access log: a JSON line for every request, and never anything of what was sent.

Lines are gathered and written a few times a second. A reader that stops reading never stops the
server: what does not fit into the pipe is held up to a bound, then left out and counted.
"""

from __future__ import annotations

import os
import select
import stat
from functools import lru_cache
from time import monotonic, sleep, time

import orjson

MAX_TEXT = 256
"""Characters of any one value: ids and paths come from strangers."""

MAX_HELD = 4 << 20
"""Characters that wait for a reader who has stopped reading."""

ATOMIC = select.PIPE_BUF
"""Bytes that several workers can write into one pipe without cutting each other's lines."""


class AccessLog:
    """Lines on their way to a file descriptor, standard output unless said otherwise.

    `status` is HTTP's number or the name of gRPC's code; times are in seconds; sizes are those of
    the bodies, in bytes.
    """

    def __init__(self, enabled: bool = True, descriptor: int = 1) -> None:
        self.enabled = enabled
        self.dropped = 0
        self._lines: list[str] = []
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._descriptor = descriptor
        self._pipe = False
        if enabled:
            self._open()

    def request(
        self,
        door: str,
        method: str,
        path: str,
        status: int | str,
        request_id: str,
        trace_id: str,
        received: int,
        sent: int,
        total: float,
        more: str = "",
        key: str = "",
        reason: str = "",
    ) -> None:
        """Note one request. `more` are fields of `of_model` and `times`, where a model was asked.

        `key` is the name of the API key, `reason` the label of a failure; neither where there is none.
        """
        if self.enabled:
            self._lines.append(
                f'{{"time":{time():.3f},"event":"request","door":"{door}",'
                f'"request_id":{_text(request_id)}{trace_id and _trace(trace_id)},'
                f'"method":{_known(method)},"path":{(_known if more else _text)(path)},'
                f'"status":{_known(status)}{reason and _known_as("reason", reason)}'
                f"{key and _known_as('key', key)}{more},"
                f'"received":{received},"sent":{sent},"total_ms":{total * 1e3:.3f}}}\n'
            )

    def flush(self, patience: float = 0.0) -> None:
        """Write what was gathered, waiting at most so many seconds for a slow reader."""
        if self._lines:
            self._hold("".join(self._lines).encode("utf-8", "replace"))
            self._lines.clear()
        end = monotonic() + patience
        while self._held and not self._write() and monotonic() < end:
            sleep(0.005)

    def _open(self) -> None:
        """Pipes are opened once more: not to block must not become others' mode as well."""
        try:
            self._pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
            if self._pipe:
                self._descriptor = os.open(
                    f"/proc/self/fd/{self._descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                )
        except OSError:  # no /proc here: the pipe is written as it is
            pass

    def _hold(self, text: bytes) -> None:
        if self._held_bytes + len(text) > MAX_HELD:
            self.dropped += text.count(b"\n")
            return
        self._held += _pieces(text) if self._pipe else [text]
        self._held_bytes += len(text)

    def _write(self) -> bool:
        """Whether everything is out. What cannot be written at all is given up."""
        while self._held:
            piece = self._held[0]
            try:
                written = os.write(self._descriptor, piece)
            except BlockingIOError:
                return False
            except OSError:
                self.dropped += sum(held.count(b"\n") for held in self._held)
                self._held, self._held_bytes = [], 0
                return True
            self._held_bytes -= written
            if written < len(piece):
                self._held[0] = piece[written:]
            else:
                del self._held[0]
        return True


@lru_cache(maxsize=512)
def of_model(model: str, version: str, digest: str) -> str:
    """The fields that say which bundle was asked."""
    return f',"model":{_text(model)},"version":{_text(version)},"digest":{_text(digest[:12])}'


def times(rows: int, queue: float, run: float, codec: float) -> str:
    """The fields that say where an answered request's time went, in seconds."""
    return (
        f',"rows":{rows},"queue_ms":{queue * 1e3:.3f},"run_ms":{run * 1e3:.3f},'
        f'"codec_ms":{codec * 1e3:.3f}'
    )


def _pieces(text: bytes) -> list[bytes]:
    """Whole lines, as many together as a pipe takes in one go."""
    pieces, start = [], 0
    while start < len(text):
        end = start + ATOMIC
        if end < len(text):
            # A single line is never that long, since its values are cut.
            end = text.rfind(b"\n", start, end) + 1 or text.index(b"\n", start) + 1
        pieces.append(text[start:end])
        start = end
    return pieces


def _text(value: str) -> str:
    try:
        return orjson.dumps(value[:MAX_TEXT]).decode()
    except orjson.JSONEncodeError:  # half a character, in the name of a folder
        return orjson.dumps(value[:MAX_TEXT].encode("utf-8", "replace").decode()).decode()


@lru_cache(maxsize=1024)
def _known(value: str | int) -> str:
    """What is the same again and again: methods, codes, the paths of models that answered."""
    return str(value) if isinstance(value, int) else _text(value)


@lru_cache(maxsize=2048)
def _known_as(field: str, value: str) -> str:
    """A field whose values are from a list of ours: names of keys, labels of failures."""
    return f',"{field}":{_text(value)}'


def _trace(trace_id: str) -> str:
    return f',"trace_id":"{trace_id}"'
