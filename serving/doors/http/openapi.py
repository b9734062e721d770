"""The OpenAPI 3.1 document of the models that are served here, with real rows as examples.

Every path names its model, every tensor its type and shape, and every example is a golden row with
the answer that was proven: sent to this server, it comes back as shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from pipeline.bundle.manifest import Input, Manifest, Output
from pipeline.bundle.manifest import Tensor as Declared
from pipeline.bundle.tensors import BY_NUMPY
from serving.codecs.tensor_data import to_json
from serving.dataplane import Served
from serving.errors import Unsupported
from serving.inference import prediction
from serving.inference.model import Model
from serving.protocol import MAX_PRIORITY, Tensor

Document = dict[str, Any]

MAX_EXAMPLE = 4096
"""Numbers of one row that are still shown as JSON; larger rows travel better as bytes or a file."""

ERRORS: dict[int, tuple[str, str]] = {
    400: ("malformed, or not what the model takes", "the message names the tensor and the fix"),
    401: ("no key, or one that is not known here", "send a key"),
    403: ("a key without the scope, or a door that does not offer this", "ask the operator"),
    404: ("no such path, model or version, or one that is not loaded", "see the list of models"),
    405: ("the path is right, the method is not", "the header Allow names it"),
    408: ("headers or body did not arrive in time", "send faster, or less"),
    413: ("larger than this deployment accepts", "send fewer rows, or tensors as bytes"),
    415: ("a content type or encoding that is not read here", "the message names those that are"),
    500: ("the model or the server failed", "the server's log has the cause"),
    501: ("known to the protocol, not offered here", "the message names the other way"),
    503: ("loading, leaving, or the queue is full", "again after the seconds in Retry-After"),
    504: ("it waited longer than the request's timeout allowed", "allow more, or ask less"),
}
"""(what happened, what helps) by status; every failure is `{"error": "..."}`."""

NUMBERS: dict[str, Document] = {
    "b": {"type": "boolean"},
    "u": {"type": "integer", "minimum": 0},
    "i": {"type": "integer"},
    "f": {"type": "number"},
    "O": {"type": "string"},
}
READ = {"400", "404", "503"}
ASK = {"400", "404", "413", "415", "500", "501", "503", "504"}


@dataclass(frozen=True)
class Example:
    """One golden row as a request, and the answer proven for it."""

    request: Document
    answer: Document
    inputs: Mapping[str, np.ndarray]


def document(served: Sequence[Served], version: str, keys: bool = False) -> Document:
    """The whole document; `keys` tells that requests need one."""
    paths: Document = dict(_server_paths())
    schemas: Document = {"Error": ERROR, "Parameters": PARAMETERS}
    for one in served:
        stem = f"{one.name}.{one.version}"
        schemas |= {
            f"{stem}.Request": _request_schema(one),
            f"{stem}.Answer": _answer_schema(one),
        }
        paths |= _model_paths(one, stem, f"/v2/models/{one.name}/versions/{one.version}")
        if one.default:
            paths |= _model_paths(one, stem, f"/v2/models/{one.name}", "default")
    told: Document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Models on this server",
            "version": version,
            "description": "The Open Inference Protocol V2, as the models loaded here speak it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": "server"}, *({"name": n} for n in sorted({s.name for s in served}))],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {str(status): _failure(status) for status in ERRORS},
        },
    }
    if keys:
        told["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        told["security"] = [{"bearer": []}, {"header": []}]
        for path in ("/v2/health/live", "/v2/health/ready"):
            paths[path]["get"]["security"] = []
    return told


def example(model: Model, name: str, version: str) -> Example | None:
    """The first golden row that JSON can say; none where it is too large to read."""
    manifest, inputs, outputs = model.manifest, model.golden.inputs, model.golden.expected
    place = _sayable(inputs)
    if place is None:
        return None
    here = slice(place, place + 1)
    if sum(array[:1].size for array in inputs.values()) > MAX_EXAMPLE:
        return None
    row = {tensor.name: inputs[tensor.name][here] for tensor in manifest.inputs}
    wanted = [t for t in manifest.outputs if outputs[t.name][here].size <= MAX_EXAMPLE]
    request: Document = {
        "inputs": [_tensor(tensor, row[tensor.name]) for tensor in manifest.inputs]
    }
    if len(wanted) < len(manifest.outputs):
        request["outputs"] = [{"name": tensor.name} for tensor in wanted]
    answer = {
        "model_name": name,
        "model_version": version,
        "parameters": {"bundle": model.bundle.digest},
        "outputs": [_tensor(tensor, outputs[tensor.name][here]) for tensor in wanted],
    }
    return Example(request, answer, row) if wanted else None


def _sayable(inputs: Mapping[str, np.ndarray]) -> int | None:
    """The first row without NaN (a gap) or infinity, which JSON has no words for."""
    for row in range(len(next(iter(inputs.values())))):
        if all(a.dtype.kind != "f" or np.isfinite(a[row]).all() for a in inputs.values()):
            return row
    return None


def reads_files(model: Model) -> Output | None:
    """What a model that takes files answers, none of one that takes tensors only."""
    try:
        return prediction.answering(model.manifest)
    except Unsupported:
        return None


BINARY = "application/octet-stream"
BYTES: Document = {
    "description": "JSON, as many bytes as the header Inference-Header-Content-Length says, then the "
    "tensors it tells the binary_data_size of, little-endian, one after the other",
}
ERROR: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
PARAMETERS: Document = {
    "type": "object",
    "description": "Ours and Triton's; unknown ones are passed over.",
    "properties": {
        "binary_data_output": {"type": "boolean", "description": "answer with binary tensors"},
        "timeout": {
            "type": "integer",
            "minimum": 0,
            "description": "microseconds it may wait for its turn; 0: for ever",
        },
        "priority": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_PRIORITY,
            "description": "1 goes first; 0: the default",
        },
    },
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
IDENTITY: Document = {"type": "string", "maxLength": 1024, "description": "comes back as it is"}


def _server_paths() -> Document:
    live = {"type": "object", "properties": {"live": {"type": "boolean"}}}
    ready = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    entry = {
        "type": "object",
        "required": ["name", "version", "state", "reason"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "state": {"enum": ["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]},
            "reason": {"type": "string"},
        },
    }
    anything: Document = {"type": "object"}
    return {
        "/v2": _get("server", "What this server is and which extensions it has", anything),
        "/v2/health/live": _get("server", "Whether the process answers", live),
        "/v2/health/ready": _get("server", "Whether to send it requests", ready, {"503"}),
        "/v2/models": _get("server", "The names of the models", anything),
        "/v2/repository/index": {
            "post": {
                "tags": ["server"],
                "summary": "Every version with its state",
                "operationId": "index",
                "requestBody": {
                    "content": _json(
                        {"type": "object", "properties": {"ready": {"type": "boolean"}}}
                    )
                },
                "responses": _responses({"type": "array", "items": entry}, {"400", "413"}),
            }
        },
    }


def _model_paths(one: Served, stem: str, path: str, which: str = "") -> Document:
    """The paths of one version; `which` marks the form that names none."""
    suffix = which or one.version
    shown = example(one.model, one.name, one.version)
    about = f"version {one.version}" + (", which answers where none is named" if which else "")

    def operation(summary: str, what: str) -> Document:
        return {
            "tags": [one.name],
            "summary": f"{summary} ({about})",
            "operationId": f"{one.name}.{suffix}.{what}",
        }

    request, answer = _ref(f"{stem}.Request"), _ref(f"{stem}.Answer")
    infer = operation("Ask with tensors", "infer") | {
        "requestBody": {
            "required": True,
            "content": _json(request, shown.request if shown else None),
        },
        "responses": _responses(answer, ASK, shown.answer if shown else None),
    }
    infer["requestBody"]["content"][BINARY] = {"schema": BYTES}
    infer["responses"]["200"]["content"][BINARY] = {"schema": BYTES}
    anything: Document = {"type": "object"}
    paths: Document = {
        path: {"get": operation("What it takes and answers", "metadata") | _answers(anything)},
        f"{path}/ready": {"get": operation("Whether it answers", "ready") | _answers(anything)},
        f"{path}/config": {
            "get": operation("Its configuration, as Triton tells it", "config") | _answers(anything)
        },
        f"{path}/infer": {"post": infer},
    }
    answered = reads_files(one.model)
    if answered is not None:
        file = _file(answered, one.model.manifest)
        paths[f"{path}/predict"] = {"post": operation("Ask with a file", "predict") | file}
    return paths


def _said(output: Output) -> Document:
    """The properties of `protocol.Reading` that a model with this output fills in."""
    if output.labels is None:
        return {"prediction": {"type": "number"}, "units": {"const": output.units}}
    label: Document = {"enum": list(output.labels)}
    held = {"type": "array", "items": label, "description": "those that hold, the likeliest first"}
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    return {
        **({"label": label} if output.threshold is None else {"labels": held}),
        "probabilities": {
            "type": "object",
            "description": "by label, the likeliest first",
            "properties": dict.fromkeys(output.labels, probability),
        },
    }


def _file(output: Output, manifest: Manifest) -> Document:
    """The door for people: a file in; labels and probabilities, or a number, out."""
    said = _said(output)
    answer = {
        "type": "object",
        "required": ["model_name", "model_version", *said],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            **said,
            "parameters": {
                "type": "object",
                "properties": {
                    "bundle": {
                        "type": "string",
                        "description": "digest of the bundle that answered",
                    },
                    "hint": {
                        "type": "string",
                        "description": "why the answer is likely worthless, where it seems so",
                    },
                },
            },
        },
    }
    invert = {
        "name": "invert",
        "in": "query",
        "description": "swap dark and light of the picture first",
        "schema": {"type": "boolean"},
    }
    return {
        "parameters": [invert] if prediction.reads_pictures(manifest) else [],
        "requestBody": {
            "required": True,
            "content": {kind: {} for kind in (*prediction.media(manifest), BINARY)},
        },
        "responses": _responses(answer, ASK),
    }


def _request_schema(one: Served) -> Document:
    inputs = [_input_schema(tensor, one.rows) for tensor in one.model.manifest.inputs]
    names = [tensor.name for tensor in one.model.manifest.outputs]
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": IDENTITY,
            "inputs": {
                "type": "array",
                "minItems": len(inputs),
                "maxItems": len(inputs),
                "items": inputs[0] if len(inputs) == 1 else {"oneOf": inputs},
            },
            "outputs": {
                "type": "array",
                "description": "those wanted, in this order; left out: all",
                "maxItems": len(names),
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": names},
                        "parameters": {
                            "type": "object",
                            "properties": {"binary_data": {"type": "boolean"}},
                        },
                    },
                },
            },
            "parameters": _ref("Parameters"),
        },
    }


def _answer_schema(one: Served) -> Document:
    outputs = [_tensor_schema(tensor) for tensor in one.model.manifest.outputs]
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "id": IDENTITY,
            "model_name": {"const": one.name},
            "model_version": {"const": one.version},
            "parameters": {
                "type": "object",
                "properties": {"bundle": {"type": "string", "description": "what answered"}},
            },
            "outputs": {
                "type": "array",
                "items": outputs[0] if len(outputs) == 1 else {"oneOf": outputs},
            },
        },
    }


def _input_schema(tensor: Input, rows: int) -> Document:
    """An input, axis by axis. Not so for outputs: tools that check answers stumble over it."""
    schema = _tensor_schema(tensor)
    schema["properties"]["parameters"] = {"type": "object"}
    schema["properties"]["shape"]["prefixItems"] = [
        {"type": "integer", "minimum": 1, "maximum": rows, "description": "rows"},
        *(
            {"type": "integer", "minimum": 0, "description": axis}
            if isinstance(axis, str)
            else {"const": axis}
            for axis in tensor.shape[1:]
        ),
    ]
    return schema


def _tensor_schema(tensor: Input | Output) -> Document:
    kind = BY_NUMPY[tensor.dtype]
    value = dict(NUMBERS[kind.numpy.kind])
    if kind.numpy.kind in "ui":
        limits = np.iinfo(kind.numpy)
        value |= {"minimum": int(limits.min), "maximum": int(limits.max)}
    schema: Document = {
        "type": "object",
        "description": f"{kind.protocol} {shape(tensor)}"
        + (f": {tensor.units}" if tensor.units else ""),
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": tensor.name},
            "datatype": {"const": kind.protocol},
            "shape": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0},
                "minItems": len(tensor.shape),
                "maxItems": len(tensor.shape),
            },
            "data": {
                "type": "array",
                "description": "row by row, flat or nested as the shape",
                "items": {"anyOf": [value, {"type": "array"}]},
            },
        },
    }
    if isinstance(tensor, Output) and tensor.labels:
        schema["x-labels"] = list(tensor.labels)
    return schema


def shape(tensor: Declared) -> str:
    """A shape as people write it, n for the rows."""
    return "[" + ", ".join("n" if axis == "batch" else str(axis) for axis in tensor.shape) + "]"


def _tensor(tensor: Declared, rows: np.ndarray) -> Document:
    wire = Tensor(tensor.name, BY_NUMPY[tensor.dtype].protocol, rows)
    return {
        "name": tensor.name,
        "datatype": wire.datatype,
        "shape": list(rows.shape),
        "data": orjson.loads(to_json(wire)),
    }


def _get(tag: str, summary: str, schema: Document, failures: set[str] | None = None) -> Document:
    name = summary.lower().replace(" ", "-")
    return {
        "get": {
            "tags": [tag],
            "summary": summary,
            "operationId": name,
            "responses": _responses(schema, failures or set()),
        }
    }


def _answers(schema: Document) -> Document:
    return {"responses": _responses(schema, READ)}


def _responses(schema: Document, failures: set[str], shown: Any = None) -> Document:
    told: Document = {"200": {"description": "the answer", "content": _json(schema, shown)}}
    for status in sorted(failures):
        told[status] = {"$ref": f"#/components/responses/{status}"}
    return told


def _failure(status: int) -> Document:
    happened, helps = ERRORS[status]
    return {
        "description": f"{happened}: {helps}",
        "content": _json(_ref("Error")),
    }


def _json(schema: Document, shown: Any = None) -> Document:
    content: Document = {"schema": schema}
    if shown is not None:
        content["example"] = shown
    return {"application/json": content}


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}
