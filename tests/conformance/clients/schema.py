"""Our gRPC schema beside a client's: every field of ours that both know must be the same there.

    python schema.py MODULE PROTO_FOLDER

Prints how many fields were compared. Also compiles the sources in the folder and compares them with
the compiled file beside them.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

THEIRS = {
    # KServe has the model's name where Triton has the repository's; the server takes either.
    "kserve.protocol.grpc.grpc_predict_v2_pb2": {
        "RepositoryModelLoadRequest",
        "RepositoryModelUnloadRequest",
    },
}
SOURCES = ("inference.proto", "health.proto", "reflection.proto")


def fields(file: Any) -> dict[str, dict[int, tuple[Any, ...]]]:
    """(name, type, label, type's name) by number, by message."""
    found: dict[str, dict[int, tuple[Any, ...]]] = {}

    def walk(messages: Any, prefix: str) -> None:
        for message in messages:
            name = prefix + message.name
            found[name] = {
                f.number: (f.name, f.type, f.label, f.type_name.rpartition(".")[2])
                for f in message.field
            }
            walk(message.nested_type, f"{name}.")

    walk(file.message_type, "")
    return found


def described(module: str) -> Any:
    """Their schema as data, with what it imports."""
    found = descriptor_pb2.FileDescriptorProto()
    descriptor = importlib.import_module(module).DESCRIPTOR
    descriptor.CopyToProto(found)
    for other in descriptor.dependencies:
        part = descriptor_pb2.FileDescriptorProto()
        other.CopyToProto(part)
        found.message_type.extend(part.message_type)
    return found


def main(module: str, folder: str) -> None:
    compiled = Path(folder, "grpc.binpb").read_bytes()
    ours = descriptor_pb2.FileDescriptorSet.FromString(compiled).file[0]
    theirs = described(module)
    skipped = THEIRS.get(module, set())
    compared, wrong = 0, []
    their_fields = fields(theirs)
    for message, own in fields(ours).items():
        if message in skipped:
            continue
        for number, field in own.items():
            other = their_fields.get(message, {}).get(number)
            compared += other is not None
            if other is not None and other != field:
                wrong.append(f"{message} {number}: ours {field}, theirs {other}")
    methods = {m.name: m for m in theirs.service[0].method}
    for method in ours.service[0].method:
        other = methods.get(method.name)
        if other is not None and (
            (method.input_type, method.output_type, method.client_streaming)
            != (other.input_type, other.output_type, other.client_streaming)
        ):
            wrong.append(f"method {method.name}")
    with tempfile.TemporaryDirectory() as scratch:
        from grpc_tools import protoc

        target = Path(scratch, "again.binpb")
        code = protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={target}", *SOURCES])
        if code or target.read_bytes() != compiled:
            wrong.append("grpc.binpb is not what its sources compile to")
    print(compared, "fields compared", *wrong, sep="\n" if wrong else " ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
