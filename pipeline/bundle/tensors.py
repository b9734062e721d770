"""The one table of tensor types: Open Inference Protocol name, numpy dtype, ONNX names.

Whatever has to translate between the wire, numpy, ONNX and ONNX Runtime looks here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorType:
    """One element type under its four names.

    `protocol` is the Open Inference Protocol V2 datatype, `onnx` the number in
    `onnx.TensorProto.DataType`, `runtime` what ONNX Runtime's `NodeArg.type` says.
    """

    protocol: str
    numpy: np.dtype
    onnx: int
    runtime: str

    @property
    def itemsize(self) -> int:
        """Bytes per element on the wire; 0 for BYTES, whose elements vary."""
        return 0 if self.numpy.hasobject else self.numpy.itemsize


TYPES: tuple[TensorType, ...] = (
    TensorType("BOOL", np.dtype("bool"), 9, "tensor(bool)"),
    TensorType("UINT8", np.dtype("uint8"), 2, "tensor(uint8)"),
    TensorType("UINT16", np.dtype("<u2"), 4, "tensor(uint16)"),
    TensorType("UINT32", np.dtype("<u4"), 12, "tensor(uint32)"),
    TensorType("UINT64", np.dtype("<u8"), 13, "tensor(uint64)"),
    TensorType("INT8", np.dtype("int8"), 3, "tensor(int8)"),
    TensorType("INT16", np.dtype("<i2"), 5, "tensor(int16)"),
    TensorType("INT32", np.dtype("<i4"), 6, "tensor(int32)"),
    TensorType("INT64", np.dtype("<i8"), 7, "tensor(int64)"),
    TensorType("FP16", np.dtype("<f2"), 10, "tensor(float16)"),
    TensorType("FP32", np.dtype("<f4"), 1, "tensor(float)"),
    TensorType("FP64", np.dtype("<f8"), 11, "tensor(double)"),
    TensorType("BYTES", np.dtype("object"), 8, "tensor(string)"),
)

BY_PROTOCOL: dict[str, TensorType] = {t.protocol: t for t in TYPES}
BY_NUMPY: dict[str, TensorType] = {t.numpy.name: t for t in TYPES}
BY_ONNX: dict[int, TensorType] = {t.onnx: t for t in TYPES}
BY_RUNTIME: dict[str, TensorType] = {t.runtime: t for t in TYPES}
