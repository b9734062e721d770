"""The same session in every contestant: one thread, the CPU, nothing else."""

import os
from pathlib import Path

import onnxruntime


def session() -> onnxruntime.InferenceSession:
    """The network named by MODEL in the folder MODELS."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(os.environ["MODELS"], os.environ["MODEL"] + ".onnx")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
