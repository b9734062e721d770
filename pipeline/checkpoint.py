"""Weights and training state, to and from disk. A file is whole or absent, whatever is killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Checkpoints:
    """A training's `last.pt`, from which it goes on after it was killed, and `best.pt`.

    `key` tells one training from another: a file of another key counts as none.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        network: nn.Module,
        optimisers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        self.last, self.best, self.key = folder / "last.pt", folder / "best.pt", key
        self.network, self.optimisers = network, optimisers

    def save(self, progress: Mapping[str, Any]) -> None:
        """Everything that the next epoch starts from, random numbers included."""
        save_state(
            self.last,
            {
                "key": self.key,
                "network": self.network.state_dict(),
                "optimisers": {name: each.state_dict() for name, each in self.optimisers.items()},
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "progress": progress,
            },
        )

    def resume(self) -> dict[str, Any]:
        """Put back what `save` wrote of an unfinished training; its progress, empty where there is none."""
        state = load_state(self.last)
        if not state or state.get("key") != self.key or state["progress"]["finished"]:
            return {}
        self.network.load_state_dict(state["network"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        torch.set_rng_state(state["random"])
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        progress: dict[str, Any] = state["progress"]
        return progress

    def save_best(self) -> None:
        """The network as the best one so far."""
        save_state(self.best, {"key": self.key, "network": self.network.state_dict()})

    def restore_best(self) -> bool:
        """Put the best network back; whether there is one."""
        best = load_state(self.best)
        if best is None or best.get("key") != self.key:
            return False
        self.network.load_state_dict(best["network"])
        return True


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
