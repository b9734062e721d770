"""A gRPC client as plain as can be: bytes or messages in, messages or the failure out."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np

from serving.codecs.codec_proto import CONTENTS
from serving.proto.inference import INFERENCE, message

InferRequest = message("inference.ModelInferRequest")


class Client:
    """One channel to a server's gRPC door."""

    def __init__(
        self, port: int, secure: grpc.ChannelCredentials | None = None, **options: int
    ) -> None:
        named = [(f"grpc.{name}", value) for name, value in options.items()]
        named.append(("grpc.max_receive_message_length", -1))
        place = f"127.0.0.1:{port}"
        if secure:
            self.channel = grpc.secure_channel(place, secure, options=named)
        else:
            self.channel = grpc.insecure_channel(place, options=named)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def raw(self, path: str, payload: bytes, **more: Any) -> bytes:
        """The answer's bytes; raises `grpc.RpcError`."""
        return self.channel.unary_unary(path)(payload, **{"timeout": 20, **more})

    def call(self, method: str, request: Any = None, **more: Any) -> Any:
        """The answer of a method of the inference service; its request and answer by its name."""
        sent = (request or message(f"inference.{method}Request")()).SerializeToString()
        answer = self.raw(f"/{INFERENCE}/{method}", sent, **more)
        return message(f"inference.{method}Response").FromString(answer)

    def infer(self, request: Any, **more: Any) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return outputs(self.call("ModelInfer", request, **more))

    def failure(self, request: Any, **more: Any) -> tuple[str, str]:
        """(code, details) of an infer request that is refused; a request may also be bytes."""
        sent = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            self.raw(f"/{INFERENCE}/ModelInfer", sent, **more)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError("it was answered")


def infer_request(model: str, arrays: dict[str, np.ndarray], typed: bool = False) -> Any:
    """A request, raw unless `typed`; the arrays' types say the datatypes."""
    request = InferRequest(model_name=model)
    for name, array in arrays.items():
        kind = datatype(array)
        item = request.inputs.add(name=name, datatype=kind, shape=array.shape)
        if typed:
            values = array.reshape(-1).tolist()
            if kind == "BYTES":
                values = [text.encode() for text in values]
            getattr(item.contents, CONTENTS[kind]).extend(values)
        else:
            request.raw_input_contents.append(array.tobytes())
    return request


def outputs(answer: Any) -> dict[str, np.ndarray]:
    """The raw outputs of an answer by name."""
    assert len(answer.outputs) == len(answer.raw_output_contents)
    return {
        output.name: np.frombuffer(raw, dtype(output.datatype)).reshape(output.shape)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def datatype(array: np.ndarray) -> str:
    """The protocol's name of an array's type."""
    if array.dtype.hasobject:
        return "BYTES"
    name = array.dtype.name.upper()
    return name.replace("FLOAT", "FP")


def dtype(kind: str) -> np.dtype:
    """The other way about."""
    return np.dtype(kind.lower().replace("fp", "float"))
