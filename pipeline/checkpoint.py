"""Weights and training state, to and from disk. A file is whole or absent, whatever is killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain Python values atomically."""
    _atomically(path, lambda draft: torch.save(dict(state), draft))


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or none where there is no readable file. Never runs code from it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged zip, damaged pickle, foreign types: all mean "start anew"
        print(f"{path}: not a readable checkpoint ({error}); training starts anew", flush=True)
        return None


def save_weights(
    path: Path, weights: Mapping[str, torch.Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Write weights as safetensors, the same bytes for the same weights and notes."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    _atomically(path, lambda draft: save_file(tensors, draft, dict(notes or {}) or None))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """What `save_weights` wrote. Raises `SafetensorError` naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise SafetensorError(f"{path}: damaged ({error}); run `dvc repro`") from error


def _atomically(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch.save puts the file's own name inside it: the draft keeps that name, in a folder of its own.
    draft = path.parent / f".{path.name}.draft" / path.name
    draft.parent.mkdir(exist_ok=True)
    try:
        write(draft)
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
        draft.parent.rmdir()
