"""Sessions: serving's only import of ONNX Runtime, and its only word on where a model runs.

A session opened here runs where it was asked to or says that it does not: ONNX Runtime itself
falls back to the CPU without an error in four different ways. And it ends: a run, or a load, that
takes longer than it may is told to stop.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

# Before the import: the Linux wheels send telemetry by default, the first event while importing.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# A model may not choose session options for us.
os.environ["ORT_LOAD_CONFIG_FROM_MODEL"] = "0"

import onnxruntime

from pipeline.bundle.tensors import BY_RUNTIME
from serving.config import RuntimeSettings
from serving.errors import BackendFailure, DeadlineExceeded, InvalidRequest, ModelRefused
from serving.inference import providers
from serving.inference.binding import FIRST_RUNS, BoundRunner, Port
from serving.inference.buckets import padded, run_padded
from serving.inference.providers import CUDA, TENSORRT, Chain, Placement, Versions
from serving.system.malloc import release_memory
from serving.system.watchdog import watchdog
from serving.telemetry import log

FATAL_ONLY = 4
"""What a session says on its own: of errors it raises, too, and its words hold values of requests."""

SHRINK = "memory.enable_memory_arena_shrinkage"
STATUS_MESSAGE = "Status Message:"
"""Before it, ONNX Runtime names the failure, the operator and the node; after it may be values."""

FAILURE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\w.+-]*")
OUT_OF_BOUNDS = ("out of data bounds", "invalid index found")

UNLIMITED = RuntimeSettings(run_seconds=0, load_seconds=0)
"""What stages and scripts run with, where nobody waits at the other end."""

Arrays = Mapping[str, np.ndarray]


class Session:
    """A loaded graph. `placement` is where it runs, against where it was asked to."""

    def __init__(
        self, session: onnxruntime.InferenceSession, settings: RuntimeSettings = UNLIMITED
    ) -> None:
        self._session = session
        self._settings = settings
        self._seconds = settings.run_seconds
        self._watchdog = watchdog()
        self.inputs = tuple(_port(node) for node in session.get_inputs())
        self.outputs = tuple(_port(node) for node in session.get_outputs())
        self._names = [port.name for port in self.outputs]
        self.placement = _placement(session, settings)
        self.buckets = settings.buckets
        self._bound = self._binding(settings)

    @property
    def requested(self) -> str:
        """The provider policy that it was opened under."""
        return self.placement.requested

    @property
    def provider(self) -> str:
        """What runs it."""
        return self.placement.provider

    def run(self, arrays: Arrays, deadline: float | None = None) -> dict[str, np.ndarray]:
        """Every output by name for the inputs by name.

        `deadline` is in seconds of `time.monotonic`; `run_seconds` of the settings holds besides.
        Raises `BackendFailure`, `InvalidRequest` for an index that the model has no entry for, or
        `DeadlineExceeded` where the run was ended or is too late to begin. Thread-safe; the
        interpreter lock is released while the graph runs.
        """
        if self.buckets:
            return run_padded(partial(self._run, deadline=deadline), arrays, self.buckets)
        return self._run(arrays, deadline)

    def warm(self, arrays: Arrays, deadline: float | None = None) -> None:
        """Run every bucket with rows like `arrays` until it is as fast as it gets. As `run` raises.

        A device finds its algorithms, and records its graphs, in the first runs of each shape.
        """
        for rows in self.buckets:
            part = {name: padded(array[:rows], rows) for name, array in arrays.items()}
            for _ in range(1 if self._bound is None else FIRST_RUNS):
                self._run(part, deadline, recording=True)

    def tidy(self, arrays: Arrays, deadline: float | None = None) -> dict[str, np.ndarray]:
        """One run that ends by handing unused memory back: what a burst of work left behind."""
        answers = self._run(arrays, deadline, shrink=True)
        release_memory()
        return answers

    def _run(
        self,
        arrays: Arrays,
        deadline: float | None = None,
        shrink: bool = False,
        recording: bool = False,
    ) -> dict[str, np.ndarray]:
        ends = deadline
        if self._seconds:
            latest = time.monotonic() + self._seconds
            if ends is None or latest < ends:
                ends = latest
        # Of this run alone: told to stop just as it ends, it harms none that follows.
        options = onnxruntime.RunOptions()
        if shrink:
            options.add_run_config_entry(SHRINK, "cpu:0")
        key = None
        if ends is not None:
            if ends is deadline and ends <= time.monotonic():
                raise DeadlineExceeded("the request's deadline had passed before the model ran")
            key = self._watchdog.begin(ends, self._settings.stuck_seconds, options)
        try:
            if self._bound is None:
                answers = self._session.run(self._names, arrays, options)
            else:
                answers = self._bound.run(arrays, options, recording)
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            if options.terminate:
                raise DeadlineExceeded(self._too_late(ends is deadline)) from None
            raise self._failure(error) from error
        finally:
            if key is not None:
                self._watchdog.end(key)
        return dict(zip(self._names, answers, strict=True))

    def _failure(self, error: Exception) -> BackendFailure | InvalidRequest:
        """What went wrong in a run, told without the values that it went wrong with.

        An index beyond a table is its sender's fault, in a model that takes whole numbers and has
        answered its golden rows. All else is the model's, whatever ONNX Runtime calls it.
        """
        told = _without_values(_first_line(error))
        invalid = type(error).__name__ == "InvalidArgument"
        beyond = invalid and any(words in told for words in OUT_OF_BOUNDS)
        if beyond and any(port.type.numpy.kind in "iu" for port in self.inputs):
            return InvalidRequest(f"the inputs: a number is beyond what the model knows: {told}")
        return BackendFailure(f"the model failed: {told}")

    def _too_late(self, requested: bool) -> str:
        if requested:
            return "the model did not finish before the request's deadline and was ended"
        return (
            f"the model did not finish within {self._seconds:g} s and was ended "
            "(setting runtime.run_seconds)"
        )

    def _binding(self, settings: RuntimeSettings) -> BoundRunner | None:
        ports = (*self.inputs, *self.outputs)
        on_device = self.provider in (CUDA, TENSORRT)
        if not (on_device and settings.cuda.io_binding and BoundRunner.fits(ports)):
            return None
        return bound(self._session, self.inputs, self.outputs, "cuda", settings)


def bound(
    session: onnxruntime.InferenceSession,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    device: str,
    settings: RuntimeSettings,
) -> BoundRunner:
    """Runs of a session through buffers on a device, 'cuda' or 'cpu'."""

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            shape, dtype, device, settings.device
        )

    return BoundRunner(
        session,
        inputs,
        outputs,
        allocate,
        (device, settings.device),
        settings.cuda.bound_shapes,
        settings.cuda.enable_cuda_graph,
    )


def open_session(
    model: bytes,
    settings: RuntimeSettings = UNLIMITED,
    deadline: float | None = None,
    digest: str = "",
) -> Session:
    """Load an ONNX file from memory. Raises `ModelRefused` naming the cause and the fix.

    `deadline` is in seconds of `time.monotonic`, by default `load_seconds` from now. `digest` is
    the bundle's, where engines are kept.
    """
    check_installation()
    if deadline is None and settings.load_seconds:
        deadline = time.monotonic() + settings.load_seconds
    available = onnxruntime.get_available_providers()
    if settings.provider != "cpu" and CUDA in available:
        _preload()
    chain = providers.chain(settings, available, digest, machine(settings))
    session = Session(_load(model, settings, chain, deadline), settings)
    check_placement(session.placement)
    release_memory()  # parsing takes as much again as the weights
    return session


def check_installation() -> None:
    """Raise `ModelRefused` where the CPU and the CUDA wheel lie over each other."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise ModelRefused(
            "both onnxruntime and onnxruntime-gpu are installed, and each overwrites the other's "
            "files. Repair with: pip uninstall -y onnxruntime onnxruntime-gpu, then "
            "pip install 'slipway[serve]' (CPU) or pip install 'slipway[serve-cuda]' (CUDA)"
        )


def check_placement(placement: Placement) -> None:
    """Raise `ModelRefused` unless what was required is what runs, down to the heavy operators."""
    if placement.requested != "require":
        return
    device = providers.told(placement.wanted)
    if placement.provider != placement.wanted:
        raise ModelRefused(
            f"{device} is required (provider = require), and {cuda_advice(placement.wanted)}"
        )
    if placement.heavy_on_cpu:
        stranded = ", ".join(placement.heavy_on_cpu)
        raise ModelRefused(
            f"{device} is required (provider = require), but {stranded} would run on the CPU"
        )


def runtime_version() -> str:
    """ONNX Runtime's own."""
    return str(onnxruntime.__version__)


def cuda_advice(provider: str = CUDA) -> str:
    """Why a provider is not had here, and what brings it."""
    if provider not in onnxruntime.get_available_providers():
        return providers.advice(provider)
    cuda = str(getattr(onnxruntime, "cuda_version", "") or "").partition(".")[0]
    return (
        f"{providers.told(provider)} did not start: this ONNX Runtime wants a driver for CUDA "
        f"{cuda}, its libraries and cuDNN 9 (pip install 'onnxruntime-gpu[cuda,cudnn]')"
    )


def machine(settings: RuntimeSettings) -> Versions:
    """What a TensorRT engine built here is tied to; only looked for where engines are kept."""
    if settings.tensorrt.cache is None:
        return Versions("", "", "", "")
    engines = ("tensorrt-cu13", "tensorrt-cu12", "tensorrt")
    return Versions(
        device=_device_name(settings.device),
        tensorrt=next((version(name) for name in engines if _installed(name)), ""),
        cuda=str(getattr(onnxruntime, "cuda_version", "") or ""),
        onnxruntime=onnxruntime.__version__,
    )


class _NotLoaded(Exception):
    """ONNX Runtime's own refusal."""


class _Loading:
    """A load as something that can be told to stop."""

    def __init__(self, options: onnxruntime.SessionOptions) -> None:
        self._options = options
        self._stopped = False

    @property
    def terminate(self) -> bool:
        return self._stopped

    @terminate.setter
    def terminate(self, value: bool) -> None:
        self._stopped = value
        self._options.set_load_cancellation_flag(value)


def _load(
    model: bytes, settings: RuntimeSettings, chain: Chain, deadline: float | None
) -> onnxruntime.InferenceSession:
    """The session by the first of the providers that starts, where the policy lets others follow."""
    while True:
        try:
            return _loaded(model, settings, chain, deadline)
        except _NotLoaded as error:
            if settings.provider != "prefer" or len(chain) == 1:
                raise ModelRefused(str(error)) from error
            (first, _), *chain = chain
            log("warning", "a provider does not start", provider=first, reason=str(error))


def _loaded(
    model: bytes, settings: RuntimeSettings, chain: Chain, deadline: float | None
) -> onnxruntime.InferenceSession:
    options = _options(settings)
    loading = _Loading(options)
    key = None if deadline is None else watchdog().begin(deadline, 0, loading)
    try:
        # Without a fallback: it would rebuild the session on the CPU, even within a request.
        session = onnxruntime.InferenceSession(
            model,
            options,
            providers=[name for name, _ in chain],
            provider_options=[given for _, given in chain],
            enable_fallback=0,
        )
        # Kept for that fallback alone, and as large as the weights that the session has by now.
        session._model_bytes = None
        return session
    except Exception as error:  # ONNX Runtime has no common base for what it raises
        if loading.terminate:
            raise ModelRefused(
                "ONNX Runtime did not load the graph in time (setting runtime.load_seconds: "
                f"{settings.load_seconds:g})"
            ) from None
        raise _NotLoaded(f"ONNX Runtime cannot load the graph: {_first_line(error)}") from error
    finally:
        if key is not None:
            watchdog().end(key)


def _options(settings: RuntimeSettings) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.intra_threads
    options.inter_op_num_threads = settings.inter_threads
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False  # planned for one shape; batches come in many
    options.log_severity_level = FATAL_ONLY
    entries: dict[str, Any] = {
        "optimization.constant_folding_max_output_size_in_bytes": settings.constant_folding_bytes,
        "session.function_expansion_node_limit": settings.function_nodes,
        "session.intra_op.allow_spinning": int(settings.spin_microseconds > 0),
    }
    if settings.spin_microseconds:
        entries["session.intra_op.spin_duration_us"] = settings.spin_microseconds
    if settings.provider != "cpu":
        entries["session.record_ep_graph_assignment_info"] = 1
    if settings.arena_bytes:
        _share_arena(settings.arena_bytes)
        entries["session.use_env_allocators"] = 1
        # Weights live as long as their model; in an arena that outlives it they would leave holes.
        entries["session.use_device_allocator_for_initializers"] = 1
    for key, value in entries.items():
        options.add_session_config_entry(key, str(value))
    return options


_arena: list[int] = []


def _share_arena(limit: int) -> None:
    """One arena of at most `limit` bytes for every session of this process. Once is for ever."""
    if not _arena:
        info = onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        )
        config = {"max_mem": limit, "arena_extend_strategy": -1}
        config |= {"initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
        onnxruntime.create_and_register_allocator(info, onnxruntime.OrtArenaCfg(config))
        _arena.append(limit)
    if _arena != [limit]:
        raise ModelRefused(
            f"runtime.arena_bytes is one for the whole process: {_arena[0]} already, not {limit}"
        )


def _placement(session: onnxruntime.InferenceSession, settings: RuntimeSettings) -> Placement:
    parts: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info() if settings.provider != "cpu" else ():
        parts.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    return providers.place(
        settings.provider, providers.wanted(settings), session.get_providers()[0], parts
    )


@cache
def _preload() -> None:
    """CUDA and cuDNN from where pip puts them; nothing else would find them there."""
    onnxruntime.preload_dlls()


@cache
def _device_name(number: int) -> str:
    """A CUDA device's name and compute capability, asked of the driver; empty where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    name = ctypes.create_string_buffer(128)
    major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        (driver.cuInit, (0,)),
        (driver.cuDeviceGet, (ctypes.byref(device), number)),
        (driver.cuDeviceGetName, (name, 128, device)),
        (driver.cuDeviceComputeCapability, (ctypes.byref(major), ctypes.byref(minor), device)),
    )
    if any(call(*arguments) for call, arguments in calls):
        return ""
    return f"{name.value.decode(errors='replace')} sm{major.value}{minor.value}"


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


def _without_values(message: str) -> str:
    """ONNX Runtime's words with ... for the numbers and texts that may be a request's."""
    name, found, told = message.partition(STATUS_MESSAGE)
    if not found:
        kind = FAILURE.match(message)
        at = kind.end() if kind else 0
        name, told = message[:at], message[at:]
    return name + found + VALUE.sub("...", told)
