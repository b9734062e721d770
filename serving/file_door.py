"""The door for people: what a file asks of a model, and what the answer says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.bundle.decode import Decoder, decode
from pipeline.bundle.manifest import Manifest, Output
from serving.errors import BackendFailure, Unsupported

Arrays = dict[str, np.ndarray]


def decoders(manifest: Manifest) -> dict[str, Decoder]:
    """Each input's decoder. Raises `Unsupported` for a model that reads no files."""
    found = {i.name: i.decoder for i in manifest.inputs if i.decoder is not None}
    if len(found) < len(manifest.inputs):
        raise Unsupported(f"model {manifest.name!r} takes tensors, not files: use .../infer")
    return found


def needed(manifest: Manifest, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Of a bundle's files, those that its decoders read."""
    names = {n for i in manifest.inputs if i.decoder is not None for n in i.decoder.reads}
    return {name: contents[name] for name in sorted(names)}


def row(manifest: Manifest, files: Mapping[str, bytes], payload: bytes, *, invert: bool) -> Arrays:
    """One file as a batch of one row, `[1, ...]` by input. Raises `DecodeError`, `Unsupported`."""
    return {
        name: decode(decoder, payload, files, invert=invert)[None]
        for name, decoder in decoders(manifest).items()
    }


def probable(manifest: Manifest) -> tuple[Output, tuple[str, ...]]:
    """The output of probabilities and its labels, of a model that reads files.

    Raises `Unsupported` where it reads none or names no labels.
    """
    decoders(manifest)
    output = next((o for o in manifest.outputs if o.name == "probabilities"), None)
    if output is None or output.labels is None:
        raise Unsupported(f"model {manifest.name!r} names no labels: use .../infer")
    return output, output.labels


def ranked(probabilities: np.ndarray, labels: tuple[str, ...]) -> tuple[str, dict[str, float]]:
    """(label, probability by label), most likely first; equals stay in the order of the labels."""
    if probabilities.shape != (len(labels),) or not np.isfinite(probabilities).all():
        raise BackendFailure("the model's probabilities are not one finite number per label")
    order = np.argsort(-probabilities, kind="stable")
    return labels[order[0]], {labels[i]: float(probabilities[i]) for i in order}
