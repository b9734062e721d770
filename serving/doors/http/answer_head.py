"""The head of an answer, in pieces that are made once and put together for each."""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

CLOSE, KEEP_ALIVE = b"Connection: close\r\n", b"Connection: keep-alive\r\n"


@lru_cache(maxsize=256)
def first_lines(status: int, content_type: str) -> bytes:
    """All that depends on nothing else; ends within the date."""
    phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {content_type}\r\nDate: ".encode()


def date_lines() -> bytes:
    """This moment; ends within the length of the body."""
    return f"{formatdate(usegmt=True)}\r\nContent-Length: ".encode()


@lru_cache(maxsize=256)
def more_lines(headers: tuple[tuple[str, str], ...]) -> bytes:
    """An answer's own headers, a line each."""
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)
