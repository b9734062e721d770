"""What is true of one deployment only: addresses, limits, threads. Every number has its unit."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config import ConfigError, Section, build


class HttpSettings(Section):
    """The HTTP door: where it listens and how much it puts up with."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    insecure_public: bool = Field(
        False, description="listen beyond this machine although there are neither keys nor TLS"
    )
    backlog: int = Field(1024, ge=1, description="connections the kernel holds until accepted")
    connections: int = Field(1024, ge=1, description="open connections; one more is answered 503")
    pipelined: int = Field(
        16, ge=1, description="requests of one connection that may wait their turn"
    )
    header_bytes: int = Field(32 << 10, ge=1024, description="bytes of request line and headers")
    header_count: int = Field(100, ge=1, description="headers of one request")
    body_bytes: int = Field(64 << 20, ge=1, description="bytes of one request's body")
    json_bytes: int = Field(
        16 << 20, ge=1, description="bytes of JSON in one request, binary tensors not counted"
    )
    held_bytes: int = Field(
        1 << 30,
        ge=1,
        description="bytes of all bodies that are not answered yet and of all answers that are not "
        "read yet; one more body that is begun gets 503, a client that does not read is cut off",
    )
    body_chunks: int = Field(65_536, ge=1, description="chunks of one chunked body")
    header_seconds: float = Field(5.0, gt=0, description="seconds from first byte to last header")
    body_seconds: float = Field(30.0, gt=0, description="seconds from last header to end of body")
    idle_seconds: float = Field(60.0, gt=0, description="seconds an idle connection is kept")
    write_seconds: float = Field(
        30.0, gt=0, description="seconds a client may take without reading anything of its answer"
    )
    access_log: bool = Field(True, description="one JSON line a request, on standard output")


class GrpcSettings(Section):
    """The gRPC door: it listens at `http.host`. A limit of 0 seconds is none."""

    enabled: bool = Field(True, description="whether there is one; without, grpc is never imported")
    port: int = Field(8001, ge=0, le=65535, description="TCP port; 0 takes a free one")
    message_bytes: int = Field(
        64 << 20, ge=1, lt=1 << 31, description="bytes of one message; more is RESOURCE_EXHAUSTED"
    )
    header_bytes: int = Field(
        16 << 10, ge=1024, lt=1 << 31, description="bytes of one call's metadata"
    )
    connections: int = Field(1024, ge=1, lt=1 << 31, description="open connections")
    calls: int = Field(
        1024, ge=1, description="calls at a time; one more is answered RESOURCE_EXHAUSTED"
    )
    open_calls: int = Field(
        256,
        ge=1,
        description="calls at a time to methods that need no key (live, ready, health), which are "
        "counted apart",
    )
    message_seconds: float = Field(
        30.0,
        gt=0,
        description="seconds from a call's headers to the end of its message, 5 at most without a "
        "key; a stream with a key may wait",
    )
    streams: int = Field(
        256, ge=1, lt=1 << 31, description="calls at a time on one connection; more wait"
    )
    pipelined: int = Field(
        16, ge=1, description="requests of one ModelStreamInfer that may wait their turn"
    )
    handshake_seconds: float = Field(5.0, gt=0, description="seconds a client has to begin HTTP/2")
    idle_seconds: float = Field(0.0, ge=0, description="seconds a connection may be without calls")
    age_seconds: float = Field(
        0.0, ge=0, description="seconds after which a connection is asked to come anew"
    )
    keepalive_seconds: float = Field(
        60.0, gt=0, description="seconds of silence until a client is asked whether it is there"
    )
    keepalive_patience: float = Field(20.0, gt=0, description="seconds a client has to answer that")
    ping_seconds: float = Field(
        10.0, ge=0, description="seconds between a client's own pings; one that hurries is cut off"
    )


class AccessSettings(Section):
    """Who may ask. Live and ready are open to everyone."""

    keys_file: Path | None = Field(
        None, description="file of API keys' hashes, made by `slipway key`; none asks for no key"
    )


class TlsSettings(Section):
    """TLS for every door. The files are read again when they change."""

    certificate: Path | None = Field(
        None, description="PEM file: the server's certificate, then its intermediate ones"
    )
    key: Path | None = Field(None, description="PEM file: the certificate's private key, in clear")
    client_ca: Path | None = Field(
        None,
        description="PEM file: who may sign clients' certificates; every client then needs one",
    )
    handshake_seconds: float = Field(
        5.0, gt=0, description="seconds from connecting to the end of the handshake"
    )
    handshakes: int = Field(
        1024, ge=1, description="handshakes under way at a time over HTTP; one more is cut off"
    )


class CompressionSettings(Section):
    """gzip and deflate of HTTP bodies. What is read is bounded by http.body_bytes once inflated."""

    requests: bool = Field(True, description="read compressed bodies; without it they get 415")
    answers: bool = Field(True, description="compress answers for clients that accept it")
    answer_bytes: int = Field(
        64 << 10, ge=0, description="bytes from which on an answer is compressed"
    )
    level: int = Field(1, ge=1, le=9, description="1 is fast, 9 is small")


class BatchSettings(Section):
    """How requests share one run of the model."""

    rows: int = Field(
        256,
        ge=1,
        description="most rows joined into one run; more than 64 only of small ones that crowd",
    )
    request_rows: int = Field(1024, ge=1, description="most rows one request may bring")
    request_texts: int = Field(
        1 << 18, ge=1, description="most texts in one BYTES input of a request, all rows together"
    )
    queue_requests: int = Field(1024, ge=1, description="requests that may wait; one more gets 503")
    queue_rows: int = Field(8192, ge=1, description="rows that may wait; more get 503")
    default_priority: int = Field(
        2,
        ge=1,
        le=10,
        description="what a request counts as that names no priority; 1 goes first, 10 last, and "
        "a level waits for as long as those before it keep the model busy",
    )
    slow_ms: float = Field(
        6.0,
        ge=0,
        description="milliseconds that a batch may hold up the event loop, a twelfth of them where "
        "another good one waits; one that will take longer runs in a thread, and what comes in "
        "meanwhile gathers",
    )


class GraphSettings(Section):
    """What a graph may be before ONNX Runtime sees a byte of it."""

    model_bytes: int = Field((2 << 30) - 1, ge=1, description="bytes of the file")
    min_opset: int = Field(11, ge=1, description="oldest operator set")
    max_opset: int = Field(26, ge=1, description="newest operator set")
    min_ir: int = Field(4, ge=3, description="oldest ONNX file format")
    max_ir: int = Field(13, ge=3, description="newest ONNX file format")
    nodes: int = Field(20_000, ge=1, description="nodes, subgraphs included")
    expanded_nodes: int = Field(200_000, ge=1, description="nodes once local functions are inlined")
    nesting: int = Field(8, ge=0, description="subgraphs within one another")
    domains: tuple[str, ...] = Field(
        ("", "ai.onnx", "ai.onnx.ml", "com.microsoft"), description="operator domains"
    )
    forbidden_operators: tuple[str, ...] = Field(
        ("Loop", "Scan"), description="operators that can run without end"
    )


class CudaSettings(Section):
    """What the CUDA provider is told; the names are ONNX Runtime's."""

    gpu_mem_limit: int | None = Field(
        None, ge=1 << 20, description="bytes of the device's memory that sessions may take"
    )
    arena_extend_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"] = Field(
        "kNextPowerOfTwo", description="take more memory by doubling, or as much as is asked for"
    )
    cudnn_conv_algo_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"] = Field(
        "EXHAUSTIVE",
        description="how a convolution's algorithm is found: by trying each at every new shape, "
        "by estimate, or always the same",
    )
    cudnn_conv_use_max_workspace: bool = Field(
        True, description="let that search use as much memory as it wants"
    )
    use_tf32: bool = Field(
        False, description="multiply with 10 bits of mantissa: faster, beyond the proven tolerance"
    )
    do_copy_in_default_stream: bool = Field(
        True, description="copy and compute in one stream; false is a race"
    )
    prefer_nhwc: bool = Field(False, description="convolve with the channels last")
    io_binding: bool = Field(True, description="keep inputs and outputs in buffers on the device")
    bound_shapes: int = Field(
        32, ge=1, le=4096, description="shapes whose buffers are kept; the least used one goes"
    )
    enable_cuda_graph: bool = Field(
        False, description="record each warmed shape as a CUDA graph and replay it; wants buckets"
    )


class TensorrtSettings(Section):
    """TensorRT before CUDA: slow to load, as it builds engines; these are kept in a folder."""

    enabled: bool = Field(False, description="let TensorRT run what it can, CUDA the rest")
    cache: str | None = Field(
        None, description="folder for engines and timings; left out, each start builds anew"
    )
    fp16: bool = Field(False, description="compute in half precision")
    max_workspace_bytes: int = Field(1 << 30, ge=1 << 20, description="bytes engines may work in")
    builder_optimization_level: int = Field(
        3, ge=0, le=5, description="how long to search for a better engine"
    )


class RuntimeSettings(Section):
    """The session: where it runs, with how many threads, for how long and with how much memory."""

    provider: Literal["cpu", "prefer", "require"] = Field(
        "cpu",
        description="CUDA policy: never; if it is there, said loudly if not; or refuse to start",
    )
    device: int = Field(0, ge=0, description="CUDA device number")
    intra_threads: int = Field(1, ge=1, description="threads within one operator")
    inter_threads: int = Field(1, ge=1, description="operators run at the same time")
    spin_microseconds: int = Field(
        0,
        ge=0,
        le=100_000,
        description="microseconds an idle thread of several waits busily for more work",
    )
    constant_folding_bytes: int = Field(
        16 << 20, ge=0, description="largest tensor computed while loading, in bytes"
    )
    function_nodes: int = Field(
        200_000, ge=1, description="nodes ONNX Runtime may inline from local functions"
    )
    run_seconds: float = Field(
        30.0, ge=0, description="seconds one run of a model may take, then it is ended; 0: any"
    )
    load_seconds: float = Field(
        120.0, ge=0, description="seconds to load and prove a model, then it is refused; 0: any"
    )
    trial: bool = Field(
        False,
        description="load every bundle in a process that is thrown away first, for graphs that "
        "strangers made",
    )
    trial_bytes: int = Field(
        4 << 30, ge=1 << 28, description="address space of that process, in bytes"
    )
    stuck_seconds: float = Field(
        60.0,
        ge=0,
        description="seconds after which a process exits whose model would not end when told to; "
        "0: never",
    )
    arena_bytes: int = Field(
        0,
        ge=0,
        description="bytes that all models together may work in, weights not counted: one arena "
        "for the process; 0: one for each model, without a limit",
    )
    buckets: tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...] = Field(
        (),
        description="row counts that batches are padded to, so that a device sees few shapes; "
        "none: batches run as they are",
    )
    cuda: CudaSettings = CudaSettings()
    tensorrt: TensorrtSettings = TensorrtSettings()

    @model_validator(mode="after")
    def _fits(self) -> RuntimeSettings:
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"buckets: expected ascending row counts, got {list(self.buckets)}")
        if self.cuda.enable_cuda_graph and not (self.cuda.io_binding and self.buckets):
            raise ValueError(
                "cuda.enable_cuda_graph: wants cuda.io_binding and buckets, as a graph is recorded "
                "for one shape and its buffers"
            )
        return self


ALL = "all"
LATEST = re.compile(r"latest [1-9][0-9]{0,3}")


def _versions(value: Any) -> Any:
    if isinstance(value, list | tuple) and value:
        if all(type(number) is int and number >= 1 for number in value):
            return tuple(value)
    elif value is None or value == ALL or (isinstance(value, str) and LATEST.fullmatch(value)):
        return value
    raise ValueError("expected 'all', 'latest N', or a list of version numbers")


Versions = Annotated[str | tuple[int, ...], BeforeValidator(_versions)]
"""'all', 'latest N', or the numbers."""


class RepositorySettings(Section):
    """Which versions of the models are loaded, and whether the folder is watched."""

    versions: Versions = Field(
        ALL, description="versions that are loaded: 'all', 'latest N', or a list of numbers"
    )
    poll_seconds: float = Field(
        0.0,
        ge=0,
        description="seconds between two looks at the folder for new, changed and deleted "
        "versions; 0 looks only when told to load",
    )
    strict_readiness: bool = Field(
        False,
        description="ready only while every version that is to serve does: all that `versions` "
        "chooses and all loaded by request; without it, as soon as one does",
    )


class ModelSettings(Section):
    """What holds for one model instead of the general settings."""

    batching: BatchSettings = Field(
        BatchSettings(), description="limits of this model; what is left out is as in `batching`"
    )
    versions: Versions | None = Field(None, description="instead of `repository.versions`")
    default_version: int | None = Field(
        None,
        ge=1,
        description="the version that answers where a request names none; "
        "left out: the newest that is ready",
    )
    variant: str | None = Field(None, description="instead of `variant`")


class ControlSettings(Section):
    """The control plane: listeners of its own that load and unload models."""

    host: str = Field("127.0.0.1", description="address of the control plane")
    port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="its TCP port for HTTP; 0 takes a free one; left out: there is none",
    )
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="its TCP port for gRPC; 0 takes a free one; left out: there is none",
    )

    @property
    def enabled(self) -> bool:
        """Whether there is one."""
        return self.port is not None or self.grpc_port is not None


class SupervisionSettings(Section):
    """How the workers are watched, and when a model that kills them is given up."""

    stuck_seconds: float = Field(
        45.0,
        gt=0,
        description="seconds a worker may be deaf until it is killed; more than `run_seconds`, "
        "which ends a run in peace",
    )
    quarantine_deaths: int = Field(
        3, ge=0, description="deaths of workers until the model they ran is quarantined; 0: never"
    )
    quarantine_seconds: float = Field(
        60.0, gt=0, description="seconds within which these deaths happen"
    )


class Settings(Section):
    """Everything `slipway serve` can be told."""

    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings()
    access: AccessSettings = AccessSettings()
    tls: TlsSettings = TlsSettings()
    compression: CompressionSettings = CompressionSettings()
    batching: BatchSettings = BatchSettings()
    graph: GraphSettings = GraphSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    repository: RepositorySettings = RepositorySettings()
    control: ControlSettings = ControlSettings()
    models: dict[str, ModelSettings] = Field(
        {}, description="settings of single models, by name: [models.NAME] and its sections"
    )
    supervision: SupervisionSettings = SupervisionSettings()
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        1, description="processes that serve; 'auto' or 0: as many as the cores allow"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="standard error: every line JSON; or the start, and why there was none, in "
        "prose; auto is text on a terminal, JSON elsewhere",
    )
    variant: str = Field("fp32", description="which admitted form of the graph is served")
    finite_inputs: bool = Field(True, description="refuse NaN and infinity in float inputs")
    self_test_seconds: float = Field(
        60.0,
        ge=0,
        description="seconds between two runs of the golden rows while a model is idle; 0: none",
    )
    notice_seconds: float = Field(
        0.0, ge=0, description="seconds between unready and closing the door, for load balancers"
    )
    drain_seconds: float = Field(10.0, ge=0, description="seconds for what is in flight at the end")

    def of(self, name: str) -> Settings:
        """These settings as they hold for one model."""
        own = self.models.get(name)
        if own is None:
            return self
        limits = own.batching.model_dump(exclude_unset=True)
        return self.model_copy(
            update={
                "batching": self.batching.model_copy(update=limits),
                "variant": own.variant or self.variant,
            }
        )

    def versions_of(self, name: str) -> Versions:
        """Which versions of a model are loaded."""
        own = self.models.get(name)
        return own.versions if own and own.versions is not None else self.repository.versions

    @property
    def managed(self) -> bool:
        """Whether models may come and go while serving."""
        return self.control.enabled or self.repository.poll_seconds > 0


def load(path: Path) -> Settings:
    """Settings from a TOML file. Raises `ConfigError` with a line for each mistake."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return build(Settings, values, path.name)


def check_control(settings: Settings) -> None:
    """Raise `ConfigError` for a control plane that strangers can reach."""
    host = settings.control.host
    guarded = settings.access.keys_file or settings.tls.client_ca
    if settings.control.enabled and not is_loopback(host) and not guarded:
        raise ConfigError(
            f"control.host {host!r} can be reached from other machines, and there are neither keys "
            "nor client certificates to guard what loads and unloads models: give --keys or "
            "--tls-client-ca, or stay on 127.0.0.1"
        )


def check_address(settings: Settings) -> None:
    """Raise `ConfigError` for an address that strangers can reach with nothing to guard it."""
    if settings.http.insecure_public or settings.access.keys_file or settings.tls.certificate:
        return
    if not is_loopback(settings.http.host):
        raise ConfigError(
            f"host {settings.http.host!r} can be reached from other machines, and there are "
            "neither keys nor TLS to guard it: give --keys (see `slipway key --help`) or "
            "--tls-cert and --tls-key, stay on 127.0.0.1 behind a gateway, or insist with "
            "--insecure-public"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
