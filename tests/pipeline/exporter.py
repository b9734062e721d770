"""Torch's exporter for a process that exports many times."""

from __future__ import annotations

import functools


def once() -> None:
    """Have the exporter read the sources of its 500 operators once, rather than for each export.

    That takes longer than a small network's own export does, and what it finds is the same. An
    exporter that keeps them elsewhere is left as it is.
    """
    from torch.onnx._internal.exporter import _registration

    apis = getattr(_registration, "onnxscript_apis", None)
    found = getattr(apis, "get_torchlib_ops", None)
    if found is not None and not hasattr(found, "cache_info"):
        apis.get_torchlib_ops = functools.cache(found)
