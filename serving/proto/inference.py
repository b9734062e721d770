"""The gRPC messages, built when asked for from `grpc.binpb`.

`grpc.binpb` is `inference.proto`, `health.proto` and `reflection.proto`, in that order, as one
FileDescriptorSet. It is written, with any protoc of 3.12 or later, by

    cd serving/proto && protoc -I. --descriptor_set_out=grpc.binpb \\
        inference.proto health.proto reflection.proto

and compared with its sources by `make conformance`. Descriptors instead of generated code: generated
code holds for one line of protobuf, a descriptor for all. The pool is our own, so that a process that
also imports a client, with descriptors of the same names, has both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SCHEMAS = Path(__file__).with_name("grpc.binpb")
INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1.ServerReflection"
OLDER_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"


def _files() -> list[descriptor_pb2.FileDescriptorProto]:
    """Every schema; reflection a second time, under its older package."""
    found = descriptor_pb2.FileDescriptorSet.FromString(SCHEMAS.read_bytes())
    inference, health, reflection = found.file
    renamed = descriptor_pb2.FileDescriptorProto.FromString(reflection.SerializeToString())
    renamed.name = "reflection_v1alpha.proto"
    renamed.package = "grpc.reflection.v1alpha"
    for message in renamed.message_type:
        for field in (f for f in message.field if f.type_name):
            field.type_name = field.type_name.replace(".v1.", ".v1alpha.")
    for method in renamed.service[0].method:
        method.input_type = method.input_type.replace(".v1.", ".v1alpha.")
        method.output_type = method.output_type.replace(".v1.", ".v1alpha.")
    return [inference, health, reflection, renamed]


FILES = _files()
POOL = descriptor_pool.DescriptorPool()
for _file in FILES:
    POOL.Add(_file)


def message(name: str) -> Any:
    """The class of a message by its full name. Its fields are only known at run time."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))
