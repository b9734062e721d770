"""Keys and TLS at the gRPC door: which call needs which scope, and credentials of the files."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from pipeline.config import ConfigError
from serving.config import TlsSettings
from serving.doors import tls
from serving.doors.access import INDEX, Access, Needed, Scope, presented
from serving.doors.grpc.core import Metadata
from serving.errors import InvalidRequest
from serving.proto.inference import HEALTH, INFERENCE
from serving.system.file_watch import Watched
from serving.telemetry import log

OPEN = {f"/{INFERENCE}/ServerLive", f"/{INFERENCE}/ServerReady"}
OPEN_SERVICE = f"/{HEALTH}/"
ADMIN = {f"/{INFERENCE}/RepositoryModelLoad", f"/{INFERENCE}/RepositoryModelUnload"}

INDEX_PATH = f"/{INFERENCE}/RepositoryIndex"


def check(access: Access, path: str, metadata: Metadata) -> str:
    """The name of the key that a call came with, '' where it needs none.

    Raises `Unauthenticated`, `Forbidden` or `InvalidRequest` unless it may go on.
    """
    needed = scope_of(path)
    if needed is None:
        return ""
    authorization = _single(metadata, "authorization")
    return access.allow(needed, presented(authorization, _single(metadata, "x-api-key")))


def scope_of(path: str) -> Needed | None:
    """What a method asks for, none where it is open to everyone; unknown ones need a key too."""
    if path in OPEN or path.startswith(OPEN_SERVICE):
        return None
    if path == INDEX_PATH:
        return INDEX
    return Scope.ADMIN if path in ADMIN else Scope.INFER


def credentials(settings: TlsSettings) -> grpc.ServerCredentials:
    """Credentials that every handshake takes from the newest files that are sound.

    Raises `ConfigError` naming the file.
    """
    first, fetch = _fetching(settings)
    return grpc.dynamic_ssl_server_credentials(first, fetch, settings.client_ca is not None)


def _fetching(
    settings: TlsSettings,
) -> tuple[
    grpc.ServerCertificateConfiguration,
    Callable[[], grpc.ServerCertificateConfiguration | None],
]:
    watched = Watched(tls.files(settings))
    first = _configuration(settings)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        if not watched.changed():
            return None  # as before
        try:
            return _configuration(settings)
        except (ConfigError, OSError) as error:
            log("error", "TLS files refused, those of before stay", door="grpc", reason=str(error))
            return None

    return first, fetch


def _configuration(settings: TlsSettings) -> grpc.ServerCertificateConfiguration:
    tls.context(settings)  # refuses what is unsound, in words
    certificate, key = tls.check_pair(settings)
    client_ca = settings.client_ca.read_bytes() if settings.client_ca else None
    pair = (key.read_bytes(), certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], client_ca)


def _single(metadata: Metadata, name: str) -> str:
    found = [value for key, value in metadata if key == name]
    if len(found) > 1:  # whoever stands before this door may have looked at the other one
        raise InvalidRequest(f"metadata {name!r} is given twice")
    value = found[0] if found else ""
    return value.decode("latin-1") if isinstance(value, bytes) else value
