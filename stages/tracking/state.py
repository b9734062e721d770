"""What a pipeline state is: the key of an experiment's part of `dvc.lock`. Free of mlflow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stages.entry import StageError
from stages.tracking.lock import LOCK, STAGES, entries


def section(experiment: str, path: Path = LOCK) -> dict[str, dict[str, Any]]:
    """The lock's entries of an experiment, by stage. Raises `StageError` where one is missing."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text()
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}; `dvc repro` writes it") from None
    ours = entries(experiment, text)
    try:
        parsed = (
            YAML(typ="safe", pure=True).load("".join(f"  {entry}" for entry in ours.values())) or {}
        )
    except YAMLError as error:
        raise StageError(f"{path}: not as DVC writes it: {' '.join(str(error).split())}") from None
    for stage in STAGES:
        if f"{stage}@{experiment}" not in parsed:
            raise StageError(f"{path}: has no {stage}@{experiment}; run `dvc repro`")
    return {stage: parsed[f"{stage}@{experiment}"] for stage in STAGES}


def pipeline_key(stages: dict[str, dict[str, Any]]) -> str:
    """SHA-256 over commands, parameters, and the paths and MD5 of everything read and written."""
    normal = {
        name: {
            "cmd": entry.get("cmd"),
            "params": entry.get("params", {}),
            "deps": files(entry, "deps"),
            "outs": files(entry, "outs"),
        }
        for name, entry in stages.items()
    }
    return hashlib.sha256(json.dumps(normal, sort_keys=True).encode()).hexdigest()


def files(entry: dict[str, Any], kind: str) -> dict[str, str | None]:
    """MD5 by path of a lock entry's 'deps' or 'outs'; none where another checksum is kept."""
    return {file["path"]: file.get("md5") or file.get("etag") for file in entry.get(kind, [])}
