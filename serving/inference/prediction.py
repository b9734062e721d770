"""Predictions for people: what a file asks of a model, and what the answer says."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import numpy as np

from pipeline.bundle import decode as registry
from pipeline.bundle.decode import DecodeError, Decoder, DecoderMissing, decode
from pipeline.bundle.decode._row import RowDecoder, as_csv
from pipeline.bundle.decode.image import ImageDecoder
from pipeline.bundle.manifest import Manifest, Output
from serving.errors import BackendFailure, ModelRefused, Unsupported
from serving.protocol import Reading

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


def check(manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """Raise `ModelRefused` for files that decoders read and are damaged or another model's.

    Where a decoder's library is not installed, the model answers tensors all the same.
    """
    files = needed(manifest, contents)
    for declared in manifest.inputs:
        try:
            if declared.decoder is not None:
                registry.check(declared.decoder, files)
        except DecodeError as error:
            raise ModelRefused(f"input {declared.name!r}: {error}") from error
        except DecoderMissing:
            continue


def row(manifest: Manifest, files: Mapping[str, bytes], payload: bytes, *, invert: bool) -> Arrays:
    """One file as a batch of one row, `[1, ...]` by input. Raises `DecodeError`, `Unsupported`."""
    if invert and not reads_pictures(manifest):
        raise DecodeError(
            f"invert: only a picture can be dark on light, and model {manifest.name!r} reads no "
            "pictures; leave it out"
        )
    try:
        return {
            name: decode(decoder, payload, files, invert=invert)[None]
            for name, decoder in decoders(manifest).items()
        }
    except DecoderMissing as error:
        raise Unsupported(f"model {manifest.name!r}: {error}; tensors go to .../infer") from error


def hint(
    manifest: Manifest, files: Mapping[str, bytes], payload: bytes, *, invert: bool
) -> str | None:
    """Why the answer about a file that `row` reads is likely worthless; None where it is not."""
    told = (registry.hint(d, payload, files, invert=invert) for d in decoders(manifest).values())
    return next(filter(None, told), None)


def reads_pictures(manifest: Manifest) -> bool:
    """Whether a file for the model is a picture."""
    return any(isinstance(decoder, ImageDecoder) for decoder in decoders(manifest).values())


def row_of_table(manifest: Manifest, inputs: Mapping[str, np.ndarray]) -> str | None:
    """The first of these rows as the CSV that gives it; None where files are no rows of a table."""
    cells: dict[str, str | None] = {}
    for name, decoder in decoders(manifest).items():
        if not isinstance(decoder, RowDecoder):
            return None
        _, payload = registry.encode(decoder, inputs[name][0])
        header, values = csv.reader(io.StringIO(payload.decode(), newline=""))
        cells |= dict(zip(header, values, strict=True))
    return as_csv(cells).decode()


def example(manifest: Manifest) -> str:
    """What a file for a model that reads files may be called."""
    return registry.example(next(iter(decoders(manifest).values())))


def media(manifest: Manifest) -> list[str]:
    """The types of content that such a file is sent with."""
    return registry.media(next(iter(decoders(manifest).values())))


def answering(manifest: Manifest) -> Output:
    """The output that a person is told of, of a model that reads files.

    Raises `Unsupported` where it reads none or says nothing that a person reads.
    """
    decoders(manifest)
    for output in manifest.outputs:
        if output.name == "probabilities" and output.labels is not None:
            return output
        if output.name == "prediction" and output.shape == ("batch",):
            return output
    raise Unsupported(f"model {manifest.name!r} names no labels and no number: use .../infer")


def reading(output: Output, answers: Mapping[str, np.ndarray]) -> Reading:
    """What the model says of the first row; equals stay in the order of the labels."""
    values = answers[output.name][0]
    shape = () if output.labels is None else (len(output.labels),)
    if values.shape != shape or not np.isfinite(values).all():
        raise BackendFailure(
            f"the model's {output.name} are not as many finite numbers as declared"
        )
    if output.labels is None:
        return Reading(prediction=float(values), units=output.units)
    order = np.argsort(-values, kind="stable")
    probabilities = {output.labels[i]: float(values[i]) for i in order}
    if output.threshold is None:
        return Reading(label=output.labels[order[0]], probabilities=probabilities)
    # In float32, as the metrics of the bundle were computed.
    held = tuple(output.labels[i] for i in order if values[i] >= np.float32(output.threshold))
    return Reading(labels=held, probabilities=probabilities)
