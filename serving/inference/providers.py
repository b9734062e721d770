"""What ONNX Runtime is asked for: its execution providers in order, each with its options. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from serving.config import RuntimeSettings
from serving.errors import ModelRefused

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
HEAVY = frozenset(
    {
        "Attention",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "Einsum",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "GroupQueryAttention",
        "LSTM",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "MultiHeadAttention",
        "QAttention",
        "QLinearConv",
        "QLinearMatMul",
        "RNN",
    }
)
"""Operators worth a device: one of them on the CPU means that CUDA is had in name only."""

Chain = list[tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class Versions:
    """What a TensorRT engine is tied to; an unknown one is empty."""

    device: str
    tensorrt: str
    cuda: str
    onnxruntime: str


@dataclass(frozen=True)
class Placement:
    """Where a graph runs, against where it was asked to."""

    requested: str
    """The policy: cpu, prefer or require."""
    wanted: str
    """The first provider that was asked for."""
    provider: str
    """The first one that the session has."""
    nodes: dict[str, int]
    """Nodes by provider; empty where nothing but the CPU was asked for."""
    heavy_on_cpu: tuple[str, ...]
    """Operators worth a device that run on the CPU although a device was asked for."""

    @property
    def fell_back(self) -> bool:
        """Whether a device was asked for and is not had, in whole or in what counts."""
        return self.provider != self.wanted or bool(self.heavy_on_cpu)


def place(requested: str, wanted: str, provider: str, parts: dict[str, list[str]]) -> Placement:
    """Placement from the operators by provider."""
    stranded = sorted(HEAVY & set(parts.get(CPU, ()))) if wanted != CPU else []
    nodes = {name: len(operators) for name, operators in parts.items()}
    return Placement(requested, wanted, provider, nodes, tuple(stranded))


def wanted(settings: RuntimeSettings) -> str:
    """The provider that should come first."""
    if settings.provider == "cpu":
        return CPU
    return TENSORRT if settings.tensorrt.enabled else CUDA


def chain(
    settings: RuntimeSettings, available: Collection[str], digest: str, versions: Versions
) -> Chain:
    """(provider, options) in order of preference, of what this ONNX Runtime was built with.

    Raises `ModelRefused` where a device is required and the build has none for it.
    """
    if settings.provider == "cpu":
        return [(CPU, {})]
    asked: Chain = [(CUDA, cuda_options(settings)), (CPU, {})]
    if settings.tensorrt.enabled:
        asked.insert(0, (TENSORRT, tensorrt_options(settings, digest, versions)))
    first = asked[0][0]
    if settings.provider == "require" and first not in available:
        raise ModelRefused(f"{told(first)} is required (provider = require), and {advice(first)}")
    return [(name, options) for name, options in asked if name in available]


def told(provider: str) -> str:
    """What people call a provider."""
    return {CPU: "the CPU", CUDA: "CUDA", TENSORRT: "TensorRT"}.get(provider, provider)


def advice(provider: str) -> str:
    """What brings a provider that this ONNX Runtime was not built with."""
    return (
        f"this ONNX Runtime is built without {told(provider)}. Install the other wheel: "
        "pip uninstall -y onnxruntime && pip install 'slipway[serve-cuda]'"
    )


def cuda_options(settings: RuntimeSettings) -> dict[str, str]:
    """Options of the CUDA provider, as the texts it reads."""
    cuda = settings.cuda
    options = {
        "device_id": str(settings.device),
        "arena_extend_strategy": cuda.arena_extend_strategy,
        "cudnn_conv_algo_search": cuda.cudnn_conv_algo_search,
        "cudnn_conv_use_max_workspace": _switch(cuda.cudnn_conv_use_max_workspace),
        "do_copy_in_default_stream": _switch(cuda.do_copy_in_default_stream),
        "use_tf32": _switch(cuda.use_tf32),
        "prefer_nhwc": _switch(cuda.prefer_nhwc),
        "enable_cuda_graph": _switch(cuda.enable_cuda_graph),
    }
    if cuda.gpu_mem_limit is not None:
        options["gpu_mem_limit"] = str(cuda.gpu_mem_limit)
    return options


def tensorrt_options(settings: RuntimeSettings, digest: str, versions: Versions) -> dict[str, str]:
    """Options of the TensorRT provider, as the texts it reads."""
    tensorrt = settings.tensorrt
    options = {
        "device_id": str(settings.device),
        "trt_fp16_enable": _switch(tensorrt.fp16),
        "trt_max_workspace_size": str(tensorrt.max_workspace_bytes),
        "trt_builder_optimization_level": str(tensorrt.builder_optimization_level),
        "trt_cuda_graph_enable": _switch(settings.cuda.enable_cuda_graph),
    }
    if tensorrt.cache is not None:
        engines = engine_folder(Path(tensorrt.cache), digest, versions)
        timings = engines.parent / "timings"  # of kernels, whatever the model: shared by all
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(timings),
        }
    return options


def engine_folder(cache: Path, digest: str, versions: Versions) -> Path:
    """Where engines of a bundle lie: one built for another device or version is never found.

    Raises `ModelRefused` where what an engine is tied to is not known.
    """
    tied = {
        "digest": digest[:16],
        "device": versions.device,
        "tensorrt": versions.tensorrt,
        "cuda": versions.cuda,
        "onnxruntime": versions.onnxruntime,
    }
    unknown = [name for name, value in tied.items() if not value]
    if unknown:
        raise ModelRefused(
            f"runtime.tensorrt.cache: no key for engines, unknown: {', '.join(unknown)}. "
            "Leave the setting out to build engines at each start"
        )
    machine = "-".join(
        [
            _plain(versions.device),
            f"trt{_plain(versions.tensorrt)}",
            f"cuda{_plain(versions.cuda)}",
            f"ort{_plain(versions.onnxruntime)}",
        ]
    )
    return cache / machine / _plain(digest[:16])


def _plain(text: str) -> str:
    """A text as part of a file name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._") else "_" for c in text)


def _switch(value: bool) -> str:
    return "1" if value else "0"
