"""The bundle's manifest: frozen types, strict reading, canonical writing.

A bundle is a folder. `manifest.json` says what the model is and lists every other file with its
size and SHA-256; the bundle's identity, its *digest*, is the SHA-256 of the manifest's canonical
bytes. Equal inputs give equal bytes give an equal digest: nothing here holds a date, a path, a
host name or a duration.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.bundle.decode import Decoder
from pipeline.bundle.tensors import BY_NUMPY

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
MAX_FILES = 64
MAX_LABEL = 128
MAX_MANIFEST_BYTES = 4 << 20
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class BundleError(ValueError):
    """The folder is not a whole, unchanged bundle; the message names the file and the fix."""


class Part(BaseModel):
    """Base of the manifest's types: frozen, unknown fields refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tensor(Part):
    """A named tensor: `dtype` is numpy's name, `shape` has a name for a free axis."""

    name: str = Field(min_length=1, max_length=64)
    dtype: str
    shape: tuple[int | str, ...]

    @model_validator(mode="after")
    def _known(self) -> Tensor:
        if self.dtype not in BY_NUMPY:
            raise ValueError(f"unknown dtype {self.dtype!r}, expected one of {sorted(BY_NUMPY)}")
        if not self.shape or self.shape[0] != "batch":
            raise ValueError(f"the first axis of {self.name!r} must be 'batch', got {self.shape}")
        return self


def check_labels(labels: tuple[str, ...]) -> None:
    """Raise `ValueError` unless they are different, short texts that any file can hold."""
    for label in labels:
        if not 0 < len(label) <= MAX_LABEL or any(0xD800 <= ord(c) <= 0xDFFF for c in label):
            raise ValueError(f"label {label[:40]!r}: expected 1 to {MAX_LABEL} characters of text")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"label {twice!r} is given twice; answers could not be told apart")


class Input(Tensor):
    """What goes in. `decoder` says how a file becomes one row; without one, only tensors do.

    `padding` fills up shorter rows of a batch along a free axis, and changes no answer.
    """

    decoder: Decoder | None = None
    padding: int | None = None
    units: str = Field(description="what one number means, e.g. 'grey level 0-255'")

    @model_validator(mode="after")
    def _decoded(self) -> Input:
        if self.decoder is not None and self.decoder.row != tuple(self.shape[1:]):
            raise ValueError(
                f"{self.name!r}: the decoder gives rows {self.decoder.row}, the shape is {self.shape}"
            )
        return self


class Output(Tensor):
    """What comes out. `labels` name the last axis where it counts classes.

    `threshold`: from where each label holds by itself; none where the largest is the answer.
    """

    labels: tuple[str, ...] | None = None
    threshold: float | None = Field(None, gt=0, lt=1)
    units: str

    @model_validator(mode="after")
    def _labelled(self) -> Output:
        if self.labels is not None:
            check_labels(self.labels)
            if self.shape[-1] != len(self.labels):
                raise ValueError(f"{self.name!r}: {len(self.labels)} labels for {self.shape}")
        return self


class Parity(Part):
    """The certificate: how far ONNX Runtime's answers lie from torch's, over the test split."""

    rows: int = Field(gt=0)
    batch_sizes: tuple[int, ...]
    max_abs_difference: dict[str, float]
    tolerance: dict[str, float]
    argmax_agreement: float | None = Field(description="outside ties; none where nothing is ranked")
    ties: int | None
    metrics_torch: dict[str, float]
    metrics_onnx: dict[str, float]


class Gate(Part):
    """One condition that had to hold, and what was measured."""

    name: str
    measured: float
    limit: float
    rule: Literal["at most", "at least"]
    passed: bool

    @model_validator(mode="after")
    def _honest(self) -> Gate:
        # Both numbers are rounded, so they may cross by their last digit.
        over = self.measured - self.limit if self.rule == "at most" else self.limit - self.measured
        if self.passed and over > 0.01 * abs(self.limit):
            raise ValueError(
                f"{self.name!r} did not pass: {self.measured}, {self.rule} {self.limit}"
            )
        return self


class Variant(Part):
    """One form of the graph. Only an admitted variant may be served."""

    file: str
    precision: Literal["fp32", "fp16", "int8"]
    opset: int
    admitted: bool
    gates: tuple[Gate, ...]
    parity: Parity

    @model_validator(mode="after")
    def _earned(self) -> Variant:
        if self.admitted and not (self.gates and all(gate.passed for gate in self.gates)):
            raise ValueError(f"{self.file}: admitted, but not every gate passed")
        return self


class Golden(Part):
    """Real rows with the answers expected of them; a server replays them before it is ready."""

    file: str
    rows: int = Field(gt=0)
    tolerance: dict[str, float] = Field(description="largest absolute difference, by output")


class FileEntry(Part):
    """One file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, lt=1 << 40)


class Manifest(Part):
    """What the bundle is, what its tensors mean, and why it may be trusted."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=f"^{MODEL_NAME.pattern}$")
    task: str
    inputs: tuple[Input, ...] = Field(min_length=1)
    outputs: tuple[Output, ...] = Field(min_length=1)
    variants: dict[str, Variant] = Field(min_length=1)
    metrics: dict[str, float]
    golden: Golden
    profile: str | None
    card: str
    experiment: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        named = [v.file for v in self.variants.values()] + [self.golden.file, self.card]
        named += [self.profile] if self.profile else []
        named += [name for i in self.inputs if i.decoder is not None for name in i.decoder.reads]
        for name in named:
            if name not in self.files:
                raise ValueError(f"{name!r} is referred to but not listed under 'files'")
        for name in self.files:
            if not FILE_NAME.fullmatch(name) or name in (MANIFEST, LINEAGE):
                raise ValueError(f"{name!r} is not a file name a bundle may list")
        if len({name.casefold() for name in self.files}) != len(self.files):
            raise ValueError("two files differ only in the case of their names")
        if len(self.files) > MAX_FILES:
            raise ValueError(f"{len(self.files)} files, at most {MAX_FILES}")
        return self


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and found whole: the very bytes that were hashed."""

    manifest: Manifest
    digest: str
    contents: Mapping[str, bytes]
    lineage: Mapping[str, Any] | None = None


def sha256(payload: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(payload).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one way a value is written as JSON: sorted keys, no spare spaces, UTF-8, a last newline."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
    return (text + "\n").encode()


def canonical(manifest: Manifest) -> bytes:
    """The manifest's canonical bytes, whose SHA-256 is the bundle's digest."""
    return canonical_json(manifest.model_dump(mode="json"))


def entries(contents: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """The `files` section for these contents."""
    return {
        name: FileEntry(sha256=sha256(payload), size=len(payload))
        for name, payload in sorted(contents.items())
    }


def parse(payload: bytes, where: str = MANIFEST) -> Manifest:
    """Strictly read a manifest: no duplicate keys, no unknown fields, canonical bytes.

    Raises `BundleError` naming the field.
    """
    if len(payload) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: {len(payload)} bytes, at most {MAX_MANIFEST_BYTES}")
    try:
        raw = json.loads(payload.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not JSON this reader accepts: {error}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{where}: schema version {version!r}; this Slipway reads {SCHEMA_VERSION}. "
            "Export the model again, or install the Slipway that wrote it"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "manifest"
        raise BundleError(f"{where}: {place}: {first['msg']}") from error
    try:
        written = canonical(manifest)
    except (ValueError, RecursionError) as error:  # a lone surrogate, or nested too deep to write
        raise BundleError(f"{where}: holds what cannot be written: {error}") from error
    if written != payload:
        raise BundleError(f"{where}: not in canonical form: it was edited after it was written")
    return manifest


def read(folder: Path) -> Bundle:
    """Read a bundle whole, checking it on the way; nothing of it has been run.

    In this order: names and kinds of the files (no links, no devices), the strict manifest, then
    size and SHA-256 of the very bytes that are returned. Raises `BundleError`.
    """
    folder = Path(folder)
    try:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    except OSError as error:
        raise BundleError(f"{folder}: not a bundle folder: {error.strerror}") from error
    if MANIFEST not in found:
        raise BundleError(f"{folder}: no {MANIFEST}, so not a bundle")
    for name, status in sorted(found.items()):
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(
                f"{folder / name}: not a regular file; a bundle holds no links or folders"
            )
    manifest_bytes = _read_regular(folder / MANIFEST, MAX_MANIFEST_BYTES)
    manifest = parse(manifest_bytes, str(folder / MANIFEST))

    unlisted = sorted(set(found) - set(manifest.files) - {MANIFEST, LINEAGE})
    if unlisted:
        raise BundleError(f"{folder / unlisted[0]}: not listed in {MANIFEST}")
    contents: dict[str, bytes] = {}
    for name, entry in manifest.files.items():
        if name not in found:
            raise BundleError(f"{folder / name}: listed in {MANIFEST} but missing")
        payload = _read_regular(folder / name, entry.size)
        if len(payload) != entry.size:
            raise BundleError(
                f"{folder / name}: expected {entry.size} bytes, got {len(payload)}; copy it again"
            )
        if (actual := sha256(payload)) != entry.sha256:
            raise BundleError(
                f"{folder / name}: expected SHA-256 {entry.sha256}, got {actual}; copy it again"
            )
        contents[name] = payload
    return Bundle(manifest, sha256(manifest_bytes), contents, _read_lineage(folder, found))


def write(folder: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> str:
    """Write a whole bundle to `folder`, in place of one that may be there; return its digest.

    Everything is written and synced beside the target first, then renamed: a reader finds a whole
    bundle or none, and a full disk costs no bundle that was there.
    """
    folder = Path(folder)
    if entries(contents) != manifest.files:
        raise BundleError(f"{folder}: the manifest does not list exactly the files given")
    payload = canonical(manifest)
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.draft")
    draft.mkdir(parents=True)
    try:
        for name, data in {**contents, MANIFEST: payload}.items():
            with open(draft / name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(former := draft.with_suffix(".former"))
            draft.rename(folder)
            shutil.rmtree(former)
        else:
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sha256(payload)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return fields


def _read_regular(path: Path, limit: int) -> bytes:
    """At most `limit` + 1 bytes of a regular file, never waiting on a pipe or following a link."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(f"{path}: not a regular file")
            return file.read(limit + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise BundleError(f"{path}: there is not enough memory to read it") from error


def _read_lineage(folder: Path, found: Mapping[str, os.stat_result]) -> dict[str, Any] | None:
    """Where the bundle came from, if it is told: beside the manifest or, in a project, the folder."""
    whole = folder.resolve()  # '.' has no name
    beside = whole.with_name(f"{whole.name}.{LINEAGE}")
    path = folder / LINEAGE if LINEAGE in found else beside
    if not path.is_file():
        return None
    try:
        lineage = json.loads(_read_regular(path, MAX_MANIFEST_BYTES))
        canonical_json(lineage)  # so that whoever passes it on can write it
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON: {error}") from error
    if not isinstance(lineage, dict):
        raise BundleError(f"{path}: expected an object, got {type(lineage).__name__}")
    return lineage
