"""A client of MLflow's registry that needs no MLflow: resolve a version, fetch its bundle.

It speaks HTTP to the MLflow server itself, so a host needs no access to the store behind it. What
arrives is believed only as far as its digests go: the manifest's is the `bundle` tag of the
registered version, every other file's is in the manifest.
"""

from __future__ import annotations

import base64
import errno
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.bundle.manifest import (
    LINEAGE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    parse,
    sha256,
)

TIMEOUT = 30.0
"""Seconds without a byte after which a server is given up on."""

ATTEMPTS = 4
PAUSE = 0.5
"""Seconds before the second attempt, doubled for each further one."""

CHUNK = 1 << 20


class PullError(RuntimeError):
    """The bundle cannot be had; the message says why and what to do."""


class _Transient(PullError):
    """Worth another attempt."""


@dataclass(frozen=True)
class Version:
    """A registered version; by its `bundle` tag, `digest` is the SHA-256 of its manifest."""

    name: str
    number: int
    digest: str


@dataclass(frozen=True)
class Registry:
    """An MLflow server, spoken to over HTTP."""

    base: str
    headers: Mapping[str, str]

    @classmethod
    def from_environment(cls) -> Registry:
        """By `MLFLOW_TRACKING_URI`; with a user and password, or a token, where MLflow's own
        variables give them. Raises `PullError` where there is no server to speak to."""
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        try:
            parts = urllib.parse.urlsplit(uri)
            parts.port  # noqa: B018  (raises where it is no number)
        except ValueError as error:
            shown = re.sub(r"(?<=://)[^/?#]*@", "", uri)
            raise PullError(f"MLFLOW_TRACKING_URI is {shown}, not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PullError(
                f"MLFLOW_TRACKING_URI is {uri or 'not set'}; a registry is asked over HTTP. "
                "Set it to the MLflow server of where the model was trained; on that machine "
                "`make ui` starts one (http://127.0.0.1:5000). "
                "Or pull the bundle's folder: slipway pull bundles/NAME --to REPOSITORY"
            )
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or urllib.parse.unquote(
            parts.username or ""
        )
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or urllib.parse.unquote(
            parts.password or ""
        )
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        headers = {"Accept-Encoding": "identity", "User-Agent": "slipway"}
        if user:
            pair = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        elif token:
            headers["Authorization"] = f"Bearer {token}"
        host = parts.netloc.rpartition("@")[2]
        return cls(parts._replace(netloc=host, query="", fragment="").geturl().rstrip("/"), headers)

    def resolve(self, source: str) -> Version:
        """`models:/NAME@ALIAS` or `models:/NAME/VERSION` to a version, asked once.

        The alias may move while files arrive; they are all of the version it named first.
        """
        path = source.removeprefix("models:/")
        if match := re.fullmatch(r"([^/@]+)@([^/@]+)", path):
            call, query = "registered-models/alias", {"name": match[1], "alias": match[2]}
        elif match := re.fullmatch(r"([^/@]+)/(\d{1,9})", path):
            call, query = "model-versions/get", {"name": match[1], "version": match[2]}
        else:
            raise PullError(f"{source}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        answer = self._json(f"/api/2.0/mlflow/{call}", query, source)
        try:
            found = answer["model_version"]
            tags = {tag["key"]: tag["value"] for tag in found.get("tags", [])}
            name, number = str(found["name"]), int(found["version"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise PullError(f"{self.base}: answers, but not as an MLflow registry does") from None
        digest = tags.get("bundle", "")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise PullError(
                f"{source}: version {number} has no 'bundle' tag, so nothing says what it must be; "
                "register it with `slipway register`"
            )
        return Version(name, number, digest)

    def download(self, version: Version, folder: Path) -> None:
        """Every file of the bundle into `folder`, sizes and digests held to on the way."""
        self._fetch(version, MANIFEST, folder, MAX_MANIFEST_BYTES)
        payload = (folder / MANIFEST).read_bytes()
        where = f"{version.name} version {version.number} on {self.base}: {MANIFEST}"
        if (actual := sha256(payload)) != version.digest:
            raise PullError(
                f"{where}: SHA-256 {actual}, but the version's bundle is {version.digest}: "
                "it was changed after it was registered"
            )
        manifest = parse(payload, where)
        for name, entry in manifest.files.items():
            size = self._fetch(version, name, folder, entry.size)
            if size != entry.size:
                raise PullError(f"{name}: {size} bytes came, the manifest says {entry.size}")
        try:
            self._fetch(version, LINEAGE, folder, MAX_MANIFEST_BYTES)
        except _Missing:
            (folder / LINEAGE).unlink(missing_ok=True)

    def _fetch(self, version: Version, name: str, folder: Path, limit: int) -> int:
        """One file, at most `limit` bytes of it; its size."""
        query = {"name": version.name, "version": str(version.number), "path": name}

        def save(answer: IO[bytes]) -> int:
            size = 0
            with (folder / name).open("wb") as file:
                while chunk := answer.read(min(CHUNK, limit + 1 - size)):
                    size += len(chunk)
                    if size > limit:
                        raise PullError(f"{name}: more than the {limit} bytes it may have; refused")
                    file.write(chunk)
            return size

        return self._ask("/model-versions/get-artifact", query, name, save)

    def _json(self, path: str, query: Mapping[str, str], what: str) -> Any:
        def decode(answer: IO[bytes]) -> Any:
            try:
                return json.loads(answer.read(CHUNK))
            except ValueError:
                raise PullError(
                    f"{self.base}: answers, but not as an MLflow registry does"
                ) from None

        return self._ask(path, query, what, decode)

    def _ask(self, path: str, query: Mapping[str, str], what: str, receive: Any) -> Any:
        """`receive(answer)`; a broken connection or an overloaded server is tried again."""
        for attempt in range(ATTEMPTS):
            try:
                return self._once(path, query, what, receive)
            except _Transient:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _once(self, path: str, query: Mapping[str, str], what: str, receive: Any) -> Any:
        request = urllib.request.Request(
            f"{self.base}{path}?{urllib.parse.urlencode(query)}", headers=dict(self.headers)
        )
        try:
            with self._opener().open(request, timeout=TIMEOUT) as answer:
                return receive(answer)
        except urllib.error.HTTPError as error:
            raise self._refusal(error, what) from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EROFS,
            ):
                raise
            reason = getattr(error, "reason", error)
            raise _Transient(f"{self.base}: {what}: {reason or type(error).__name__}") from None

    def _refusal(self, error: urllib.error.HTTPError, what: str) -> PullError:
        if error.code in (429, 500, 502, 503, 504):
            return _Transient(f"{self.base}: {what}: HTTP {error.code}")
        if error.code in (401, 403):
            return PullError(
                f"{self.base}: {what}: HTTP {error.code}; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        try:
            said = json.loads(error.read(CHUNK)).get("message", "")
        except (ValueError, AttributeError, OSError):
            said = ""
        message = f"{self.base}: {what}: HTTP {error.code} {said}".rstrip()
        return _Missing(message) if error.code == 404 else PullError(message)

    def _opener(self) -> urllib.request.OpenerDirector:
        host = urllib.parse.urlsplit(self.base).hostname or ""
        handlers: list[urllib.request.BaseHandler] = [_SameOrigin()]
        if host in ("localhost", "::1") or host.startswith("127."):
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy's loopback is not ours
        return urllib.request.build_opener(*handlers)


class _Missing(PullError):
    """The server has no such thing."""


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows a redirect elsewhere without taking the password along."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]  # as typeshed has it
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
            if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                following.remove_header("Authorization")
        return following
