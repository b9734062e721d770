"""The same seed, the same numbers: what torch must be told for that."""

from __future__ import annotations

import os

import torch


def make_deterministic(seed: int, threads: int) -> None:
    """Seed torch, have it choose reproducible algorithms, and fix its threads (0: all cores).

    Results repeat bit for bit on the same instruction set, thread count and package versions.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    # The same switch as `use_deterministic_algorithms(True, warn_only=True)`, which would also load
    # torch's compiler, a second and more, only to tell it.
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads or os.cpu_count() or 1)
