"""Clients that ask until the server is gone, and keep account of every request they sent."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter

from tests.endurance.conftest import Known

PATIENCE = 20.0
MOMENT = 0.02
"""Seconds by which a signal may have reached the server after it was sent."""


class Clients:
    """Threads that ask: on kept connections, with pauses and without, and on one each."""

    def __init__(self, port: int, known: Known, count: int) -> None:
        self.ends: Counter[str] = Counter()
        """How requests ended: answered, lost, turned away (see `_failed`), or with what status."""
        self.signalled = float("inf")
        """When SIGTERM was sent, by `time.monotonic`."""
        self._port, self._known = port, known
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        kept, pause = number % 3 != 0, 0.02 * (number % 2)
        sock: socket.socket | None = None
        while True:
            fresh = sock is None
            try:
                if sock is None:
                    connected = time.monotonic()
                    sock = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            except OSError:
                return  # the door is closed
            end, goes_on = self._exchange(sock, fresh and connected > self.signalled - MOMENT)
            with self._lock:
                self.ends[end] += 1
            if not (kept and goes_on):
                sock.close()
                sock = None
            time.sleep(chance.random() * pause)

    def _exchange(self, sock: socket.socket, late: bool) -> tuple[str, bool]:
        """(how a request ended, whether another may follow on the connection)."""
        answer = b""
        try:
            sock.sendall(self._known.request)
        except OSError:
            return "turned away" if late else "not sent whole", False
        try:
            while not _whole(answer):
                part = sock.recv(1 << 16)
                if not part:
                    return self._failed(answer, late), False
                answer += part
        except ConnectionError:
            return self._failed(answer, late), False
        except TimeoutError:
            return "hung", False
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            return head.split(b"\r\n")[0].decode(), False
        if body != self._known.answer:
            return "wrong", False
        return "answered", b"Connection: close" not in head

    @staticmethod
    def _failed(answer: bytes, late: bool) -> str:
        """A new connection that the kernel took in just as the listener closed was never accepted:
        its client is turned away by the system, not by the server, and may ask elsewhere."""
        return "turned away" if late and not answer else "lost"


def _whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name == b"Content-Length":
            return len(body) >= int(value)
    return False
