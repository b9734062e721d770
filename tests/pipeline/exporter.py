"""Torch's exporter for a process that exports many times."""

from __future__ import annotations

import functools


def once() -> None:
    """Have the exporter read the sources and signatures of its 500 operators once, not each time.

    That takes longer than a small network's own export does, and what it finds is the same. Torch's
    public `torch.onnx.export` makes its registry anew and takes none, so this reaches for private
    names; an exporter that keeps them elsewhere is left as it is, and tests take longer.
    """
    try:
        from torch.onnx._internal.exporter import _registration, _schemas
    except ImportError:
        return
    for module, name in (
        (getattr(_registration, "onnxscript_apis", None), "get_torchlib_ops"),
        (_schemas, "op_signature_from_function"),
    ):
        found = getattr(module, name, None)
        if found is not None and not hasattr(found, "cache_info"):
            setattr(module, name, functools.cache(found))
