"""Who may ask for what: API keys, each with its scopes, kept as hashes in one file.

A line of the file is `NAME:SCOPE,SCOPE:SHA-256 of the key in hex`; empty lines and lines that begin
with `#` are passed over. A plain SHA-256 is enough because `slipway key` draws 256 random bits:
there is no dictionary to try. Neither a key nor a part of one is ever logged or repeated.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hmac import compare_digest
from pathlib import Path

from pipeline.config import ConfigError
from serving.errors import Forbidden, Unauthenticated
from serving.system.file_watch import Watched
from serving.telemetry import log

MAX_FILE_BYTES = 1 << 20
MAX_KEYS = 1000
"""Every request is compared with every key."""

MAX_KEY_CHARACTERS = 256
PREFIX = "slipway_"
"""What scanners for leaked secrets, and people, recognise a key by."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")


class Scope(StrEnum):
    """What a key opens. None includes another."""

    INFER = "infer"
    ADMIN = "admin"
    METRICS = "metrics"


Needed = Scope | tuple[Scope, ...]
"""What something asks for: a scope, or any one of several."""

INDEX: Needed = (Scope.INFER, Scope.ADMIN)
"""Who loads and unloads has to see what there is, and what became of it."""


@dataclass(frozen=True, slots=True)
class Key:
    """One line of the file."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes

    def line(self) -> str:
        """As the file has it, without the end of the line."""
        scopes = ",".join(scope for scope in Scope if scope in self.scopes)
        return f"{self.name}:{scopes}:{self.digest.hex()}"


def generated(name: str, scopes: Sequence[Scope]) -> tuple[str, Key]:
    """(a new key's text, what the file keeps of it)."""
    text = PREFIX + secrets.token_urlsafe(32)
    return text, Key(name, frozenset(scopes), _digest(text))


def presented(authorization: str, api_key: str) -> str:
    """The key in the values of `Authorization` and `X-API-Key`, '' where there is none.

    Both doors use it: gRPC metadata has the same names in lower case.
    """
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return text.strip()
    return api_key.strip()


def typed(authorization: str) -> str:
    """The key that somebody typed into a browser's own dialogue as the password, '' for none."""
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(text, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


class Access:
    """The keys of a file, which is read again when it changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `ConfigError` naming file and line."""
        self._path = path
        self._watched = Watched([path], clock)
        self._keys = read(path)

    def allow(self, needed: Needed, key: str) -> str:
        """The name of the key, which has what is needed. Raises `Unauthenticated` or `Forbidden`."""
        if self._watched.changed():
            self._read_anew()
        if not key:
            raise Unauthenticated(
                "a key is needed: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            )
        if len(key) > MAX_KEY_CHARACTERS:
            raise Unauthenticated("this key is not known here")
        digest = _digest(key)
        found = None
        for known in self._keys:  # all of them: the time taken tells nothing
            if compare_digest(digest, known.digest):
                found = known
        if found is None:
            raise Unauthenticated("this key is not known here")
        either = (needed,) if isinstance(needed, Scope) else needed
        if found.scopes.isdisjoint(either):
            has, needs = ", ".join(sorted(found.scopes)), " or ".join(either)
            told = f"key {found.name!r} has the scope {has}; this needs {needs}"
            raise Forbidden(told, found.name)
        return found.name

    def _read_anew(self) -> None:
        """Take over a changed file. One that cannot be used changes nothing, and is told once."""
        try:
            self._keys = read(self._path)
        except ConfigError as error:
            log("error", "keys file refused, the keys of before stay", reason=str(error))
        else:
            log("info", "keys file read anew", file=str(self._path), keys=len(self._keys))


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises `ConfigError` naming the file, and the line where one is wrong."""
    try:
        with open(path, "rb", opener=_open) as file:
            check_owner(path, os.fstat(file.fileno()))
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: keys file cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: keys file: at most {MAX_FILE_BYTES} bytes are read")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: keys file: not UTF-8 text") from error
    keys = parse(text, str(path))
    if not keys:
        raise ConfigError(
            f"{path}: keys file without a key, nobody could ask anything: "
            f"slipway key NAME --scope infer --file {path}"
        )
    return keys


def check_owner(path: Path, status: os.stat_result) -> None:
    """Raise `ConfigError` unless only this user, root and at most a reading group get at it.

    A group may read: that is how Kubernetes mounts a secret for a process that is not root.
    """
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path}: keys file: expected a regular file")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o027:
        raise ConfigError(
            f"{path}: keys file: others may read or write it (mode {mode:04o}): chmod 600 {path}"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path}: keys file: belongs to user {status.st_uid}, expected root or the server's "
            f"own user {os.geteuid()}"
        )


def parse(text: str, source: str) -> tuple[Key, ...]:
    """The keys in a file's text. Raises `ConfigError` naming the line, never what it holds."""
    keys: list[Key] = []
    names: dict[str, int] = {}
    digests: dict[bytes, int] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key = _key(line, f"{source}: line {number}")
        if key.name in names:
            raise ConfigError(
                f"{source}: line {number}: the name {key.name!r} is taken by line {names[key.name]}"
            )
        if key.digest in digests:
            raise ConfigError(
                f"{source}: line {number}: the same key as line {digests[key.digest]}"
            )
        names[key.name] = digests[key.digest] = number
        keys.append(key)
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"{source}: at most {MAX_KEYS} keys, got {len(keys)}")
    return tuple(keys)


def _key(line: str, place: str) -> Key:
    # What the line holds is not repeated: it may be a key that somebody pasted.
    steps = line.split(":")
    if len(steps) != 3:
        raise ConfigError(
            f"{place}: expected NAME:SCOPES:SHA-256 in three fields, got {len(steps)}"
        )
    name, scopes, digest = steps
    if not NAME.fullmatch(name) or name.startswith(PREFIX):
        raise ConfigError(
            f"{place}: the first field: expected a name of 1 to 64 letters, digits and . _ @ -, "
            f"not a key ({PREFIX}...)"
        )
    if not DIGEST.fullmatch(digest):
        raise ConfigError(
            f"{place}: the third field: expected the key's SHA-256 as 64 digits 0-9 a-f"
        )
    known = {scope.value: scope for scope in Scope}
    asked = scopes.split(",")
    if not set(asked) <= known.keys():
        raise ConfigError(
            f"{place}: the second field: expected scopes out of {', '.join(known)}, "
            "with commas between"
        )
    return Key(name, frozenset(known[scope] for scope in asked), bytes.fromhex(digest))


def _open(path: str, flags: int) -> int:
    """Not blocking, so that a pipe with no writer is refused rather than waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
