"""Golden rows: real inputs and the answers expected of them, as an `npz` without pickles.

Keys are `in/<name>` and `out/<name>`; the expected answers are torch's. Texts lie in the file as unicode
of one width, since objects would need pickles, and are objects again once read.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from pipeline.bundle.manifest import BundleError

Arrays = dict[str, np.ndarray]


def pack(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> bytes:
    """The same bytes for the same rows: entries in order, none with a date."""
    buffer = io.BytesIO()
    tagged = {f"in/{k}": v for k, v in inputs.items()} | {f"out/{k}": v for k, v in outputs.items()}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(tagged.items()):
            entry = io.BytesIO()
            stored = array.astype(np.str_) if array.dtype.hasobject else array
            np.lib.format.write_array(entry, np.ascontiguousarray(stored), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), entry.getvalue()
            )
    return buffer.getvalue()


def unpack(payload: bytes) -> tuple[Arrays, Arrays]:
    """(inputs, outputs) by name. Raises `BundleError` for anything that `pack` does not write."""
    inputs: Arrays = {}
    outputs: Arrays = {}
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            entries = archive.zip.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("compressed, and of unknown size")
            for key in archive.files:
                side, _, name = key.partition("/")
                array = archive[key]
                texts = array.astype(object) if array.dtype.kind == "U" else array
                {"in": inputs, "out": outputs}[side][name] = texts
    except Exception as error:  # zip and npy readers raise whatever damage makes them raise
        raise BundleError(f"golden rows: not readable: {error}") from error
    if not inputs or not outputs:
        raise BundleError("golden rows: no inputs or no outputs")
    return inputs, outputs
