"""Where a server is and how it is spoken to: what of a request never changes."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from serving.client.errors import InvalidRequest
from serving.protocol import NAME

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VALUE = re.compile(r"[\t -~]*")
OURS = {"host", "content-length", "transfer-encoding", "connection", "content-encoding"}


@dataclass(frozen=True, slots=True)
class Address:
    """A server's place and the headers every request to it carries, already as bytes."""

    url: str
    host: str
    port: int
    prefix: str
    tls: ssl.SSLContext | None
    headers: bytes


def parse(
    url: str,
    key: str | None = None,
    ca: str | Path | None = None,
    certificate: tuple[str | Path, str | Path] | None = None,
    tls: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
    compress: bool = False,
) -> Address:
    """Raises `InvalidRequest` for what is no address, key or header; `OSError` for a lost file."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"{url}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise InvalidRequest(f"{url!r}: expected http://HOST:PORT or https://HOST:PORT")
    secure = parts.scheme == "https"
    if not secure and (ca or certificate or tls):
        raise InvalidRequest(f"{url}: certificates are for https:// addresses")
    if secure and tls is None:
        tls = ssl.create_default_context(cafile=str(ca) if ca else None)
        if certificate:
            tls.load_cert_chain(*map(str, certificate))
    lines = {"Host": parts.netloc, "User-Agent": f"{NAME}-client/{_version()}"}
    if compress:
        lines["Accept-Encoding"] = "gzip"
    if key is not None:
        lines["Authorization"] = f"Bearer {key}"
    for name, value in (headers or {}).items():
        if name.lower() in OURS:
            raise InvalidRequest(f"header {name!r} is the client's own to send")
        lines[name] = value
    for name, value in lines.items():
        if not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
            what = "the key" if name == "Authorization" else f"header {name!r}"
            raise InvalidRequest(f"{what}: expected printable ASCII without line breaks")
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    default = 443 if secure else 80
    return Address(
        base, parts.hostname, port or default, parts.path.rstrip("/"), tls if secure else None, text
    )


def _version() -> str:
    try:
        return version(NAME)
    except PackageNotFoundError:  # a checkout or an image that was not installed
        return "0"
