"""Live, ready, metadata, infer, predict: the only way in, whatever the door."""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.bundle.manifest import Tensor as DeclaredTensor
from pipeline.bundle.tensors import BY_NUMPY
from serving.config import ALL, Versions
from serving.errors import NotReady, ServingError
from serving.inference import prediction
from serving.inference.batching import Entry, good_rows
from serving.inference.contract import Contract
from serving.inference.model import Model
from serving.inference.runtime import runtime_version
from serving.models.repository import Repository
from serving.models.slot import ANSWERING, State
from serving.observability.call import Call
from serving.observability.exposition import Page, fill
from serving.observability.metrics import Meter
from serving.observability.statistics import ModelStatistics, statistics
from serving.protocol import (
    MAX_PRIORITY,
    IndexEntry,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Prediction,
    Tensor,
    TensorSpec,
)

INPUT_FIELDS = {
    "format": "FORMAT_NONE",
    "is_shape_tensor": False,
    "allow_ragged_batch": False,
    "optional": False,
}
OUTPUT_FIELDS = {"label_filename": "", "is_shape_tensor": False}

LINEAGE = {
    "run_id": ("mlflow", "run_id"),
    "model_id": ("mlflow", "model_id"),
    "git_commit": ("git", "commit"),
    "git_dirty": ("git", "dirty"),
    "pipeline_key": ("pipeline_key",),
    "data_sha256": ("data_sha256",),
    "weights_sha256": ("weights_sha256",),
}
"""What clients are told of a bundle's lineage: ids and digests. Where the tracking server is, and what
the files of data are called, is its owner's business; `slipway inspect` tells all on the host."""

IDENTITY = re.compile(r"[0-9A-Za-z_-]{1,128}")


@dataclass(frozen=True)
class Served:
    """One version that answers. `default` says that it does where a request names none."""

    name: str
    version: str
    default: bool
    model: Model
    rows: int


class DataPlane:
    """What can be asked of a server. Names and versions are texts, as the doors have them."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._sampled: dict[tuple[str, str], Meter] = {}

    def live(self) -> bool:
        """Whether this process answers at all."""
        return True

    def ready(self) -> bool:
        """Whether this server should be sent requests."""
        return self._repository.ready()

    def leave(self) -> None:
        """From now on unready; what comes in all the same is still answered."""
        self._repository.drain()

    def model_ready(self, name: str, version: str | None) -> None:
        """Raises `NotFound` or `NotReady` with the reason."""
        slot, _ = self._repository.get(name, version)
        if slot.state is not State.READY:
            raise NotReady(f"model {slot.name!r} version {slot.version} is {slot.state.value}")

    def models(self) -> list[str]:
        """The names of the models."""
        return self._repository.names()

    def index(self, ready_only: bool) -> list[IndexEntry]:
        """Every version with its state."""
        return self._repository.index(ready_only)

    def metadata(self, name: str, version: str | None) -> ModelMetadata:
        """What a model is. Raises `NotFound` or `NotReady`."""
        _, model = self._repository.get(name, version)
        return ModelMetadata(
            name=name,
            versions=self._repository.versions(name),
            inputs=tuple(_spec(tensor) for tensor in model.manifest.inputs),
            outputs=tuple(_spec(tensor) for tensor in model.manifest.outputs),
            properties=_properties(model),
        )

    @property
    def keys(self) -> bool:
        """Whether requests need a key."""
        return self._repository.settings.access.keys_file is not None

    @property
    def scheme(self) -> str:
        """How the HTTP door is called: http or https."""
        return "https" if self._repository.settings.tls.certificate else "http"

    def served(self) -> list[Served]:
        """Every version that answers, by name and number."""
        repository = self._repository
        answering = [(s, s.model) for s in repository.slots() if s.state in ANSWERING and s.model]
        return [
            Served(
                slot.name,
                str(slot.version),
                repository.answers(slot),
                model,
                repository.settings.of(slot.name).batching.request_rows,
            )
            for slot, model in answering
        ]

    def config(self, name: str, version: str | None) -> dict[str, Any]:
        """A model's configuration as Triton's clients know it. Raises `NotFound` or `NotReady`.

        In the JSON form of `inference.ModelConfig`; shapes are without the axis of rows.
        """
        slot, model = self._repository.get(name, version)
        settings = self._repository.settings.of(slot.name)
        on_cpu = model.session.provider.startswith("CPU")
        return {
            "name": slot.name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "runtime": "",
            "version_policy": _version_policy(self._repository.settings.versions_of(slot.name)),
            "max_batch_size": settings.batching.request_rows,
            "input": [_port(tensor) | INPUT_FIELDS for tensor in model.manifest.inputs],
            "output": [_port(tensor) | OUTPUT_FIELDS for tensor in model.manifest.outputs],
            "batch_input": [],
            "batch_output": [],
            "optimization": {"priority": "PRIORITY_DEFAULT"},
            "dynamic_batching": {
                "preferred_batch_size": [good_rows(settings.batching)],
                "max_queue_delay_microseconds": 0,
                "preserve_ordering": False,
                "priority_levels": MAX_PRIORITY,
                "default_priority_level": settings.batching.default_priority,
                "priority_queue_policy": {},
            },
            "instance_group": [
                {
                    "name": slot.name,
                    "kind": "KIND_CPU" if on_cpu else "KIND_GPU",
                    "count": 1,
                    "gpus": [] if on_cpu else [settings.runtime.device],
                }
            ],
            "default_model_filename": model.manifest.variants[model.variant].file,
            "cc_model_filenames": {},
            "metric_tags": {},
            "parameters": {"bundle": {"string_value": model.bundle.digest}},
            "model_warmup": [],
            "model_transaction_policy": {"decoupled": False},
        }

    def statistics(self, name: str | None, version: str | None) -> list[ModelStatistics]:
        """What all workers counted of the versions that answer: of one, of a model, or of all.

        Raises `NotFound` or `NotReady`.
        """
        repository = self._repository
        if name is None:
            slots = [slot for slot in repository.slots() if slot.state in ANSWERING]
        elif version is None and (answering := repository.versions(name)):
            slots = [repository.numbered(name, number) for number in answering]
        else:
            slots = [repository.get(name, version)[0]]
        return [statistics(repository.metrics.ledger, slot.name, slot.text) for slot in slots]

    async def metrics(self, build: str, openmetrics: bool) -> bytes:
        """What all workers counted, as Prometheus reads it. `build` is the server's version.

        Other requests get their turn between two models.
        """
        self._repository.metrics.sample()
        versions = {
            "version": build,
            "python": platform.python_version(),
            "onnxruntime": runtime_version(),
        }
        ledger = self._repository.metrics.ledger
        page = Page(openmetrics)
        for _ in fill(page, ledger, self._infos(), versions):
            await asyncio.sleep(0)
        return page.body()

    def sample(self) -> None:
        """Note what each model is at now; called a few times a second."""
        seen: dict[tuple[str, str], Meter] = {}
        for slot in self._repository.slots():
            key = (slot.name, slot.text)
            if slot.state is State.UNLOADED and key not in self._sampled:
                continue  # never served: an account would be wasted on it
            meter = seen[key] = self._repository.metrics.meter(*key)
            model = slot.model
            meter.now(
                slot.state.value,
                *(model.waiting if model else (0, 0)),
                model is not None and model.fell_back,
            )
        for key in self._sampled.keys() - seen.keys():
            self._sampled[key].now(None, 0, 0, False)
        self._sampled = seen

    def _infos(self) -> list[dict[str, str]]:
        """Labels of every bundle that answers."""
        return [
            {
                "model": slot.name,
                "version": slot.text,
                "digest": slot.model.bundle.digest,
                "variant": slot.model.variant,
                "provider_requested": slot.model.session.requested,
                "provider": slot.model.session.provider,
            }
            for slot in self._repository.slots()
            if slot.state in ANSWERING and slot.model
        ]

    def submit(
        self,
        name: str,
        version: str | None,
        read: Callable[[Contract], InferRequest],
        done: Callable[[InferRequest, InferResponse | ServingError], None],
        call: Call | None = None,
    ) -> Entry:
        """Run a model on what `read` makes of a request; `done` is told both, later.

        An unknown model is told before a bad tensor: `read` is only called for one that answers,
        and gets its contract, so that a bad shape is told before its data is read; nor is it where
        the queue is full, as reading what is then refused would take the model's time. Raises
        `NotFound`, `NotReady`, `Overloaded` and what `read` and `Model.infer` raise.
        """
        slot, model = self._repository.get(name, version)
        if call is not None:
            call.meter, call.digest = model.meter, model.bundle.digest
        model.check_room()
        request = read(model.contract)

        def answered(outputs: tuple[Tensor, ...] | ServingError) -> None:
            if isinstance(outputs, ServingError):
                done(request, outputs)
            else:
                digest = model.bundle.digest
                done(request, InferResponse(slot.name, slot.text, digest, outputs))

        return model.infer(request, answered, call)

    def check(
        self, name: str, version: str | None, call: Call | None = None
    ) -> Callable[[str, str, Sequence[int]], None]:
        """Holds an input's name, datatype and shape against the model, before its data is read.

        Raises `NotFound` or `NotReady` unless the model answers, `Overloaded` where its queue is
        full.
        """
        _, model = self._repository.get(name, version)
        if call is not None:
            call.meter, call.digest = model.meter, model.bundle.digest
        model.check_room()
        return model.contract.check

    def takes_texts(self, name: str, version: str | None) -> bool:
        """Whether one of the model's inputs is of texts. Raises `NotFound` or `NotReady`."""
        return self._repository.get(name, version)[1].contract.takes_texts

    def inputs(self, name: str, version: str | None) -> tuple[TensorSpec, ...]:
        """What the model takes, without the rest of its metadata."""
        _, model = self._repository.get(name, version)
        return tuple(_spec(tensor) for tensor in model.manifest.inputs)

    def media(self, name: str, version: str | None) -> list[str]:
        """The types of content that a model's files are sent with. Raises `Unsupported`."""
        return prediction.media(self._repository.get(name, version)[1].manifest)

    async def predict(
        self,
        name: str,
        version: str | None,
        payload: bytes,
        invert: bool,
        call: Call | None = None,
    ) -> Prediction:
        """What a model says of one file's bytes."""
        slot, model = self._repository.get(name, version)
        if call is not None:
            call.meter, call.digest = model.meter, model.bundle.digest
        reading = await model.predict(payload, invert, call)
        return Prediction(
            model_name=slot.name,
            model_version=str(slot.version),
            bundle=model.bundle.digest,
            label=reading.label,
            labels=reading.labels,
            probabilities=reading.probabilities,
            prediction=reading.prediction,
            units=reading.units,
            hint=reading.hint,
        )


def _spec(tensor: DeclaredTensor) -> TensorSpec:
    shape = tuple(-1 if isinstance(axis, str) else axis for axis in tensor.shape)
    return TensorSpec(tensor.name, BY_NUMPY[tensor.dtype].protocol, shape)


def _port(tensor: DeclaredTensor) -> dict[str, Any]:
    """A tensor as a configuration has it, its dims without the axis of rows."""
    datatype = BY_NUMPY[tensor.dtype].protocol
    dims = [-1 if isinstance(axis, str) else axis for axis in tensor.shape[1:]]
    port = {
        "name": tensor.name,
        "data_type": "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}",
        "dims": dims or [1],
    }
    return port if dims else port | {"reshape": {"shape": []}}  # Triton knows no row without axes


def _version_policy(versions: Versions) -> dict[str, Any]:
    if versions == ALL:
        return {"all": {}}
    if isinstance(versions, str):
        return {"latest": {"num_versions": int(versions.split()[1])}}
    return {"specific": {"versions": list(versions)}}


def _properties(model: Model) -> dict[str, str]:
    """Texts by name, as the protocol wants them; what is no text is told as JSON."""
    manifest = model.manifest
    properties = {
        "bundle": model.bundle.digest,
        "bundle_name": manifest.name,
        "task": manifest.task,
        "variant": model.variant,
        "opset": str(manifest.variants[model.variant].opset),
        "provider_requested": model.session.requested,
        "provider": model.session.provider,
    }
    placement = model.session.placement
    if placement.nodes:
        properties |= {
            "fell_back": str(placement.fell_back).lower(),
            "nodes": orjson.dumps(placement.nodes).decode(),
            "heavy_on_cpu": orjson.dumps(placement.heavy_on_cpu).decode(),
        }
    labels = next((output.labels for output in manifest.outputs if output.labels), None)
    if labels:
        properties["labels"] = orjson.dumps(labels).decode()
    for source in manifest.inputs:
        if source.decoder:
            place = "decoder" if len(manifest.inputs) == 1 else f"decoder.{source.name}"
            properties[place] = source.decoder.model_dump_json()
    for place, steps in LINEAGE.items():
        told = _written(_within(model.bundle.lineage, steps))
        if told is not None:
            properties[f"lineage.{place}"] = told
    return properties


def _within(value: Any, steps: Sequence[str]) -> Any:
    """What lies there in nested objects, none where there is nothing."""
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _written(value: Any) -> str | None:
    """An id, a digest or a switch as text, none for whatever else stands in its place."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and IDENTITY.fullmatch(value) else None
