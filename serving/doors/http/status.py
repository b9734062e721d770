"""The status each kind of failure has, and failures as answers."""

from __future__ import annotations

from http import HTTPStatus

from serving import errors
from serving.doors.http.exchange import Response, failure
from serving.telemetry import log, places

STATUS: dict[type[errors.ServingError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.UnsupportedMedia: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.Unsupported: HTTPStatus.NOT_IMPLEMENTED,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.BackendFailure: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ModelRefused: HTTPStatus.BAD_REQUEST,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    errors.WaitedTooLong: HTTPStatus.GATEWAY_TIMEOUT,
}


def failed(error: BaseException) -> Response:
    """A failure as an answer. What was not foreseen is logged whole and told in general words."""
    status = STATUS.get(type(error)) if isinstance(error, errors.ServingError) else None
    if status is None:
        log("error", "internal error", kind=type(error).__name__, trace=places(error))
        told = "internal error; the server's log has it"
        return failure(HTTPStatus.INTERNAL_SERVER_ERROR, told, reason=errors.INTERNAL)
    headers: tuple[tuple[str, str], ...] = ()
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers = (("Retry-After", str(getattr(error, "retry_after", 1))),)
    if status is HTTPStatus.UNAUTHORIZED:
        headers = (("WWW-Authenticate", 'Bearer realm="slipway"'),)
    if type(error) in (errors.BackendFailure, errors.DeadlineExceeded):
        log("error", "backend failure", reason=str(error))
    return failure(status, str(error), headers, errors.label_of(error))
