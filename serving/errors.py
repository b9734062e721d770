"""Failures by meaning, not by status code: each door keeps its own table.

The message is written for whoever can mend it: the sender of the request, the operator, or us.
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of every failure that is foreseen; its message may be shown to the client."""


class InvalidRequest(ServingError):
    """The sender's fault: malformed, wrong shape or dtype, an unknown tensor."""


class NotFound(ServingError):
    """No such model, version or path."""


class Unauthenticated(ServingError):
    """No key, or none that is known here."""


class Forbidden(ServingError):
    """Known who asks, or of no matter, and not allowed to."""


class UnsupportedMedia(ServingError):
    """A content type or encoding this server does not read."""


class TooLarge(ServingError):
    """More than this deployment accepts in one request."""


class Unsupported(ServingError):
    """Known to the protocol, not offered here."""


class NotReady(ServingError):
    """The model or the server is loading, draining or has failed; another try may succeed."""


class Overloaded(ServingError):
    """The queue is full; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BackendFailure(ServingError):
    """The model could not answer a request that was sound."""


class DeadlineExceeded(ServingError):
    """The answer would have come too late; what was running for it has been ended."""


class WaitedTooLong(DeadlineExceeded):
    """The request's own timeout ended before its turn came; nothing was run for it."""


class ModelRefused(ServingError):
    """A model that may not be served; raised while loading, the message says why."""
