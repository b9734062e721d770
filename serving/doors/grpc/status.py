"""gRPC's status codes: which failure is which, and in how many words it is told."""

from __future__ import annotations

import grpc

from serving import errors
from serving.telemetry import log, places

STATUS: dict[type[errors.ServingError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.UnsupportedMedia: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.UNAVAILABLE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.WaitedTooLong: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.BackendFailure: grpc.StatusCode.INTERNAL,
    errors.ModelRefused: grpc.StatusCode.FAILED_PRECONDITION,
}

MAX_DETAILS = 2000
"""Bytes of a message: it travels in a header, where they may treble, and clients take 8 KiB."""

OK = grpc.StatusCode.OK
NAMES = {code: code.name for code in grpc.StatusCode}
"""Asking a code for its name costs more than this."""


def told(error: Exception) -> tuple[grpc.StatusCode, str]:
    """A failure as a status. What was not foreseen is logged whole and told in general words."""
    code = STATUS.get(type(error)) if isinstance(error, errors.ServingError) else None
    if code is None:
        log("error", "internal error", kind=type(error).__name__, trace=places(error))
        return grpc.StatusCode.INTERNAL, "internal error; the server's log has it"
    if isinstance(error, errors.BackendFailure):
        log("error", "backend failure", reason=str(error))
    return code, str(error).encode()[:MAX_DETAILS].decode(errors="ignore")
