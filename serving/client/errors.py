"""What can go wrong with a call, by what the caller can do about it."""

from __future__ import annotations

import os
import ssl


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


NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
"""What OpenSSL, by its version, calls an answer that is no TLS."""


def no_handshake(where: str, error: ssl.SSLError) -> Unreachable:
    """No TLS was agreed on with a server that accepted the connection."""
    lasting = isinstance(error, ssl.SSLCertVerificationError) or error.reason in NO_TLS
    return Unreachable(f"{where}: {reason(error)}", permanent=lasting)


def reason(error: BaseException) -> str:
    """Why a socket failed, in the system's words: event loops put their own in front."""
    if isinstance(error, ssl.SSLError):  # whose numbers are not the system's
        return _tls_reason(error)
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0 and type(error).__name__ != "gaierror":
        return os.strerror(number)
    return str(getattr(error, "strerror", None) or error)


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if error.reason in NO_TLS:
        return "the server does not speak TLS: use http://, or start it with --tls-cert, --tls-key"
    return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
