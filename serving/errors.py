"""Failures by meaning, not by status code: each door keeps its own table.

The message is written for whoever can mend it: the sender of the request, the operator, or us.
"""

from __future__ import annotations

INTERNAL = "internal"
"""The label of what was not foreseen."""


class ServingError(Exception):
    """Base of every failure that is foreseen; its message may be shown to the client.

    `label` is what the access log calls it: one of few words, as nothing of a message may stand there.
    """

    label = INTERNAL


class InvalidRequest(ServingError):
    """The sender's fault: malformed, wrong shape or dtype, an unknown tensor."""

    label = "invalid_request"


class NotFound(ServingError):
    """No such model, version or path."""

    label = "not_found"


class Unauthenticated(ServingError):
    """No key, or none that is known here."""

    label = "unauthenticated"


class Forbidden(ServingError):
    """Known who asks, or of no matter, and not allowed to; `key` is the name of the asker's key."""

    label = "forbidden"

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class UnsupportedMedia(ServingError):
    """A content type or encoding this server does not read."""

    label = "unsupported_media"


class TooLarge(ServingError):
    """More than this deployment accepts in one request."""

    label = "too_large"


class Unsupported(ServingError):
    """Known to the protocol, not offered here."""

    label = "unsupported"


class NotReady(ServingError):
    """The model or the server is loading, draining or has failed; another try may succeed."""

    label = "not_ready"


class Overloaded(ServingError):
    """The queue is full; `retry_after` is in seconds."""

    label = "overloaded"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BackendFailure(ServingError):
    """The model could not answer a request that was sound."""

    label = "backend_failure"


class DeadlineExceeded(ServingError):
    """The answer would have come too late; what was running for it has been ended."""

    label = "deadline_exceeded"


class WaitedTooLong(DeadlineExceeded):
    """The request's own timeout ended before its turn came; nothing was run for it."""

    label = "waited_too_long"


class ModelRefused(ServingError):
    """A model that may not be served; raised while loading, the message says why."""

    label = "model_refused"


def label_of(error: BaseException) -> str:
    """What the access log calls a failure."""
    return error.label if isinstance(error, ServingError) else INTERNAL
