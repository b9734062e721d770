"""Sessions: serving's only import of ONNX Runtime, and its only word on where a model runs.

A session opened here runs where it was asked to or says that it does not: ONNX Runtime itself
falls back to the CPU without an error in four different ways.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

# Before the import: the Linux wheels send telemetry by default, the first event while importing.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# A model may not choose session options for us.
os.environ["ORT_LOAD_CONFIG_FROM_MODEL"] = "0"

import onnxruntime

from pipeline.bundle.tensors import BY_RUNTIME, TensorType
from serving.config import RuntimeSettings
from serving.errors import BackendFailure, ModelRefused

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
ERRORS_ONLY = 3
HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention"}
"""Operators worth a device: one of them on the CPU means that CUDA is had in name only."""


@dataclass(frozen=True)
class Port:
    """An input or output as the session has it; none stands for a free axis."""

    name: str
    type: TensorType
    shape: tuple[int | None, ...]


class Session:
    """A loaded graph. `provider` is what runs it, `requested` the policy it was opened under."""

    def __init__(self, session: onnxruntime.InferenceSession, requested: str) -> None:
        self._session = session
        self.requested = requested
        self.provider: str = session.get_providers()[0]
        self.inputs = tuple(_port(node) for node in session.get_inputs())
        self.outputs = tuple(_port(node) for node in session.get_outputs())
        self._names = [port.name for port in self.outputs]

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name for the inputs by name. Raises `BackendFailure`.

        Thread-safe; the interpreter lock is released while the graph runs.
        """
        try:
            answers = self._session.run(self._names, arrays)
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            raise BackendFailure(f"the model failed: {_first_line(error)}") from error
        return dict(zip(self._names, answers, strict=True))

    def placement(self) -> dict[str, list[str]]:
        """Operator types by the provider that runs them; empty where it was not recorded."""
        placed: dict[str, list[str]] = {}
        for part in self._session.get_provider_graph_assignment_info():
            placed.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
        return placed


def open_session(model: bytes, settings: RuntimeSettings | None = None) -> Session:
    """Load an ONNX file from memory. Raises `ModelRefused` naming the cause and the fix."""
    settings = settings or RuntimeSettings()
    check_installation()
    providers = _providers(settings)
    options = _options(settings, recorded=providers[0] != CPU)
    try:
        # Without a fallback: it would rebuild the session on the CPU, even within a request.
        loaded = onnxruntime.InferenceSession(
            model,
            options,
            providers=providers,
            provider_options=[
                {"device_id": str(settings.device)} if name == CUDA else {} for name in providers
            ],
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime has no common base for what it raises
        raise ModelRefused(f"ONNX Runtime cannot load the graph: {_first_line(error)}") from error
    session = Session(loaded, settings.provider)
    _check_provider(session, settings)
    return session


def check_installation() -> None:
    """Raise `ModelRefused` where the CPU and the CUDA wheel lie over each other."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise ModelRefused(
            "both onnxruntime and onnxruntime-gpu are installed, and each overwrites the other's "
            "files. Repair with: pip uninstall -y onnxruntime onnxruntime-gpu, then "
            "pip install 'slipway[serve]' (CPU) or pip install 'slipway[serve-cuda]' (CUDA)"
        )


def cuda_advice() -> str:
    """Why there is no CUDA here, and what brings it."""
    if CUDA not in onnxruntime.get_available_providers():
        return (
            "this ONNX Runtime is built without CUDA. Install the other wheel: "
            "pip uninstall -y onnxruntime && pip install 'slipway[serve-cuda]'"
        )
    return "CUDA did not start: the driver, CUDA 12 and cuDNN 9 must be found on this machine"


def _providers(settings: RuntimeSettings) -> list[str]:
    if settings.provider == "cpu":
        return [CPU]
    if CUDA in onnxruntime.get_available_providers():
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        return [CUDA, CPU]
    if settings.provider == "require":
        raise ModelRefused(f"CUDA is required (provider = require), and {cuda_advice()}")
    return [CPU]


def _options(settings: RuntimeSettings, recorded: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.intra_threads
    options.inter_op_num_threads = settings.inter_threads
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False  # planned for one shape; batches come in many
    options.log_severity_level = ERRORS_ONLY
    entries = {
        "optimization.constant_folding_max_output_size_in_bytes": settings.constant_folding_bytes,
        "session.function_expansion_node_limit": settings.function_nodes,
    }
    if recorded:
        entries["session.record_ep_graph_assignment_info"] = 1
    for key, value in entries.items():
        options.add_session_config_entry(key, str(value))
    return options


def _check_provider(session: Session, settings: RuntimeSettings) -> None:
    """What was required must be what runs, down to the operators worth a device."""
    if settings.provider != "require":
        return
    if session.provider != CUDA:
        raise ModelRefused(f"CUDA is required (provider = require), and {cuda_advice()}")
    stranded = sorted(HEAVY & set(session.placement().get(CPU, ())))
    if stranded:
        raise ModelRefused(
            f"CUDA is required (provider = require), but {', '.join(stranded)} would run on the CPU"
        )


def _port(node: Any) -> Port:
    if node.type not in BY_RUNTIME:
        raise ModelRefused(
            f"tensor {node.name!r} is {node.type}, which the Open Inference Protocol cannot carry"
        )
    shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
    return Port(node.name, BY_RUNTIME[node.type], shape)


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
