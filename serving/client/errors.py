"""What can go wrong with a call, by what the caller can do about it."""

from __future__ import annotations

import os


class ClientError(Exception):
    """Base of them all. The message is the server's own where it sent one.

    `status` is the HTTP status, none where no answer came; `tries` counts the attempts.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.tries = 1

    def __str__(self) -> str:
        told = super().__str__()
        return told if self.tries == 1 else f"{told} (tried {self.tries} times)"


class InvalidRequest(ClientError):
    """The request is wrong and stays wrong: malformed, too large, an unknown or ill-shaped tensor."""


class NotFound(ClientError):
    """The server has no such model, version or path."""


class Unauthorized(ClientError):
    """The key is missing, unknown, or not allowed to do this."""


class Overloaded(ClientError):
    """The server does not take this request now: its queue is full, it is loading or draining.

    `retry_after` is in seconds, none where the server did not say.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


class DeadlineExceeded(ClientError):
    """The call's time ran out, here or on the server."""


class ServerError(ClientError):
    """The server failed at a sound request, or what answered does not speak the protocol."""


class Unreachable(ClientError):
    """No answer: nobody listens, the certificate is not trusted, or the connection broke.

    `sent` says whether the server may have seen the request. `stale` marks a connection kept from
    an earlier call that turned out closed, which says nothing about the server. `permanent` marks
    what another try cannot mend.
    """

    def __init__(
        self, message: str, sent: bool = False, stale: bool = False, permanent: bool = False
    ) -> None:
        super().__init__(message)
        self.sent, self.stale, self.permanent = sent, stale, permanent


def reason(error: BaseException) -> str:
    """Why a socket failed, in the system's words: event loops put their own in front."""
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0 and type(error).__name__ != "gaierror":
        return os.strerror(number)
    return str(getattr(error, "strerror", None) or error)
