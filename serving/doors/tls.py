"""TLS: the context of a door, made of the operator's files and made anew when they change."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from serving.config import TlsSettings
from serving.system.file_watch import Watched
from serving.telemetry import log

EXPIRY_WARNING = timedelta(days=14)
TOLD_SECONDS = 1.0
"""Refused handshakes are told no more often: strangers cause them."""

MEANINGS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client sent no certificate; tls.client_ca asks for one",
    "unable to get local issuer certificate": "no authority in tls.client_ca signed the client's "
    "certificate",
    "HTTP_REQUEST": "the client speaks plain HTTP: its address wants https://",
    "TLSV1_ALERT_UNKNOWN_CA": "the client does not trust the authority of this server's certificate",
    "UNSUPPORTED_PROTOCOL": "the client knows no TLS newer than 1.1",
}
"""Reasons whose names say too little, in the words of whoever has to mend it."""

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
ENCRYPTED_KEY = re.compile(r"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type:.*ENCRYPTED", re.M)


class Crowded(ssl.SSLError):
    """More handshakes are under way than may be."""


class Certificates(ssl.SSLContext):
    """What `create_server` is given. Each new connection gets the newest files that are sound.

    A new context replaces the old one whole, rather than loading into the one in use: a
    certificate without its key would spoil that, and a client CA could never be taken back.
    """

    def __new__(cls, *_: Any, **__: Any) -> Certificates:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, settings: TlsSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `ConfigError` naming the setting, the file and the cause."""
        self.handshake_seconds = settings.handshake_seconds
        self._settings = settings
        self._clock = clock
        self._under_way: dict[int, float] = {}
        """When each handshake that is not done began, the oldest first."""
        self._watched = Watched(files(settings), clock)
        self._current = context(settings)
        warn(settings)

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """One connection's TLS, as asyncio and uvloop ask for it.

        Raises `Crowded`, for which they cut the connection off: who does not end his handshake is
        no connection yet that the door could count.
        """
        if self._watched.changed():
            self._read_anew()
        now = self._clock()
        self._forget_late(now)
        if len(self._under_way) >= self._settings.handshakes:
            error = Crowded(1, "too many handshakes are under way (setting tls.handshakes)")
            error.reason = "TOO_MANY_UNDER_WAY"
            _tell(error)
            raise error
        made = self._current.wrap_bio(*arguments, **options)
        assert isinstance(made, Conversation)
        made.under_way = self._under_way
        self._under_way[id(made)] = now
        return made

    def _forget_late(self, now: float) -> None:
        """Those that are cut off for their deadline by now, or whose client has gone."""
        late = now - self.handshake_seconds
        while self._under_way:
            oldest, began = next(iter(self._under_way.items()))
            if began > late:
                return
            del self._under_way[oldest]

    def _read_anew(self) -> None:
        try:
            self._current = context(self._settings)
            warn(self._settings)
        except (ConfigError, OSError) as error:
            log("error", "TLS files refused, those of before stay", reason=str(error))
        else:
            log("info", "TLS files read anew", certificate=str(self._settings.certificate))


def files(settings: TlsSettings) -> list[Path]:
    """The files that the settings name."""
    named = (settings.certificate, settings.key, settings.client_ca)
    return [path for path in named if path is not None]


def context(settings: TlsSettings) -> ssl.SSLContext:
    """A server's context. Raises `ConfigError` naming the setting, the file and the cause."""
    certificate, key = check_pair(settings)
    chain = _read(certificate, "tls.certificate")
    if not CERTIFICATE.search(chain):
        raise ConfigError(f"tls.certificate: {certificate}: there is no PEM certificate in it")
    secret = _read(key, "tls.key")
    if ENCRYPTED_KEY.search(secret):
        raise ConfigError(
            f"tls.key: {key}: the key is encrypted, and nobody could type its password: "
            f"openssl pkey -in {key} -out decrypted.pem"
        )
    if not PRIVATE_KEY.search(secret):
        raise ConfigError(f"tls.key: {key}: there is no PEM private key in it")
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION
    made.set_alpn_protocols(["http/1.1"])
    made.sslobject_class = Conversation
    try:
        made.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        raise ConfigError(_pair_failure(certificate, key, error)) from error
    except OSError as error:
        raise ConfigError(f"tls: {certificate}, {key}: {error.strerror}") from error
    if settings.client_ca:
        _require_clients(made, settings.client_ca)
    return made


def warn(settings: TlsSettings) -> None:
    """Log what is unwise about files that are sound, and no reason to leave the clients alone."""
    certificate, key = check_pair(settings)
    if key.stat().st_mode & 0o007:
        log(
            "warning", "others may read or write the TLS key", file=str(key), fix=f"chmod 600 {key}"
        )
    try:
        end = expiry(_read(certificate, "tls.certificate"))
    except (ValueError, IndexError):
        return
    if end < datetime.now(UTC):
        log("warning", "the TLS certificate has expired", file=str(certificate), expired=str(end))
    elif end < datetime.now(UTC) + EXPIRY_WARNING:
        log("warning", "the TLS certificate expires", file=str(certificate), expires=str(end))


def check_pair(settings: TlsSettings) -> tuple[Path, Path]:
    """(certificate, key). Raises `ConfigError` where one is missing."""
    if settings.certificate is None or settings.key is None:
        missing = "tls.certificate" if settings.certificate is None else "tls.key"
        raise ConfigError(f"{missing}: missing; TLS needs a certificate and its key")
    return settings.certificate, settings.key


def expiry(pem: str) -> datetime:
    """When the first certificate of a PEM text ends. Raises `ValueError`."""
    found = CERTIFICATE.search(pem)
    if not found:
        raise ValueError("no certificate")
    # Certificate ::= SEQUENCE { tbs SEQUENCE { [0] version?, serial, algorithm, issuer, validity
    inside = _fields(_fields(_fields(ssl.PEM_cert_to_DER_cert(found[0]))[0][1])[0][1])
    validity = inside[4 if inside[0][0] == 0xA0 else 3][1]
    tag, text = _fields(validity)[1]
    year = "%y" if tag == 0x17 else "%Y"  # UTCTime has two digits until 2049
    return datetime.strptime(text.decode("ascii"), f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC)


class Conversation(ssl.SSLObject):
    """One connection's TLS, which tells the operator why a handshake failed, not too often."""

    _next_told = 0.0
    _untold = 0
    under_way: dict[int, float]

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.under_way.pop(id(self), None)
            _tell(error)
            raise
        self.under_way.pop(id(self), None)


def _tell(error: ssl.SSLError) -> None:
    Conversation._untold += 1
    now = time.monotonic()
    if now >= Conversation._next_told:
        count, Conversation._untold = Conversation._untold, 0
        Conversation._next_told = now + TOLD_SECONDS
        reason = getattr(error, "verify_message", None) or error.reason or "unknown"
        meaning = {"meaning": MEANINGS[reason]} if reason in MEANINGS else {}
        log("warning", "TLS handshake refused", reason=reason, count=count, door="http", **meaning)


def _require_clients(made: ssl.SSLContext, path: Path) -> None:
    if not CERTIFICATE.search(_read(path, "tls.client_ca")):
        raise ConfigError(f"tls.client_ca: {path}: there is no PEM certificate in it")
    try:
        made.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise ConfigError(f"tls.client_ca: {path}: cannot be used: {reason}") from error
    made.verify_mode = ssl.CERT_REQUIRED


def _pair_failure(certificate: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            f"tls: {certificate} and {key} are not a pair: the key belongs to another certificate"
        )
    return f"tls: {certificate}, {key}: cannot be used: {error.reason or error.strerror}"


def _fields(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of each field in DER. Raises `IndexError` or `ValueError` for what is none."""
    found, at = [], 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:
            width = size & 0x7F
            size, at = int.from_bytes(der[at : at + width]), at + width
        if at + size > len(der):
            raise ValueError("cut off")
        found.append((tag, der[at : at + size]))
        at += size
    return found


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: cannot be read: {error.strerror}") from error
