"""Vendored wire schemas.

`onnx.binpb` is the descriptor of `onnx-ml.proto` (the ONNX project, Apache-2.0) as the `onnx` package
holds it; a test compares the two. Reading a graph needs the messages alone, and the package would
be a tenth of the serving install. The descriptor lives in a pool of its own, so that a process that
also imports `onnx` (training does) has both without a clash of names. `inference.py` beside this file
has the messages of the gRPC door.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    import onnx

SCHEMA = Path(__file__).with_name("onnx.binpb")


def _model_type() -> type[onnx.ModelProto]:
    file = descriptor_pb2.FileDescriptorProto.FromString(SCHEMA.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx.ModelProto"))
    return cast("type[onnx.ModelProto]", found)


ModelProto = _model_type()
"""The message class of an ONNX file; every other message is reached through its fields."""
