"""Every metric that the server tells, with its meaning: the one table behind page and manual."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = ("model", "version")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without `_total`, its kind and what it means."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name that queries use; of a histogram, without `_bucket`, `_sum` and `_count`."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def _counter(name: str, help: str, *labels: str) -> Family:
    return Family(name, "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Family:
    return Family(name, "gauge", help, labels)


def _histogram(name: str, help: str, *labels: str) -> Family:
    return Family(name, "histogram", help, labels)


REQUESTS = _counter(
    "slipway_requests",
    "Requests for an answer of a model, by how they ended: success, invalid (the sender's fault), "
    "overloaded (a queue was full), deadline (too late), failed (our fault), cancelled (the client "
    "left), unready (loading, draining or failed). Empty model: none was found.",
    "door",
    *MODEL,
    "outcome",
)
ROWS = _counter("slipway_rows", "Rows answered.", *MODEL)
TOTAL = _histogram(
    "slipway_request_seconds",
    "Answered requests: seconds from the last byte read to the answer handed to the socket.",
    *MODEL,
)
QUEUE = _histogram(
    "slipway_queue_seconds", "Answered requests: seconds waited for a batch to begin.", *MODEL
)
RUN = _histogram("slipway_run_seconds", "Answered requests: seconds their batch ran.", *MODEL)
CODEC = _histogram(
    "slipway_codec_seconds",
    "Answered requests: seconds of decoding and checking, then of encoding and handing over.",
    *MODEL,
)
BATCH_ROWS = _histogram("slipway_batch_rows", "Rows that shared one run of the model.", *MODEL)
BATCHES = _counter("slipway_batches", "Runs of the model.", *MODEL)
RUNNING = _counter("slipway_batch_seconds", "Seconds the model ran, each batch once.", *MODEL)
RECEIVED = _counter("slipway_received_bytes", "Bytes of request bodies.", *MODEL)
SENT = _counter("slipway_sent_bytes", "Bytes of answers' bodies.", *MODEL)
WAITING = _gauge("slipway_queue_requests", "Requests that wait for a batch now.", *MODEL)
WAITING_ROWS = _gauge("slipway_queue_rows", "Rows that wait for a batch now.", *MODEL)
STATE = _gauge(
    "slipway_model_state", "Workers in which the model version is in this state.", *MODEL, "state"
)
FALLBACK = _gauge(
    "slipway_cuda_fallback",
    "Workers in which CUDA was asked for, not had, and the CPU serves instead.",
    *MODEL,
)
INFO = _gauge(
    "slipway_model_info",
    "1 for each bundle that serves: its digest, variant, and the provider asked for and had.",
    *MODEL,
    "digest",
    "variant",
    "provider_requested",
    "provider",
)
ANSWERS = _counter(
    "slipway_responses",
    "Answers of any kind, health and refusals included, by HTTP status or gRPC code.",
    "door",
    "code",
)
IN_FLIGHT = _gauge(
    "slipway_in_flight_requests", "Requests being answered now; a gRPC stream is one.", "door"
)
CONNECTIONS = _gauge("slipway_open_connections", "HTTP connections open now.")
REFUSED = _counter(
    "slipway_refused_connections", "HTTP connections turned away for being too many."
)
DROPPED = _counter(
    "slipway_access_log_dropped", "Lines of the access log left out since nobody read them."
)
CPU = _counter(
    "process_cpu_seconds", "CPU seconds, of all processes this worker has had.", "worker"
)
MEMORY = _gauge("process_resident_memory_bytes", "Bytes of memory resident.", "worker")
FILES = _gauge("process_open_fds", "File descriptors open.", "worker")
STARTED = _gauge("process_start_time_seconds", "Unix time at which the worker began.", "worker")
RESTARTS = _counter("slipway_worker_restarts", "Times a worker was started again.", "worker")
BUILD = _gauge(
    "slipway_build_info", "1; the versions that run.", "version", "python", "onnxruntime"
)

VALUES: dict[str, dict[str, str]] = {
    "door": {
        "http": "came over HTTP, on the public port or the control plane's",
        "grpc": "came over gRPC, on either port",
    },
    "state": {
        "loading": "waits for its turn, or its files are read and compared with their digests",
        "verifying": "its graph is checked and a session is opened",
        "warming": "its golden rows run, which proves it and warms it up",
        "ready": "answers",
        "draining": "answers still, and leaves with the whole server",
        "unloading": "takes no more requests, and finishes those it has",
        "unloaded": "served once and was unloaded: by request, by policy or with its folder",
        "failed": "does not answer: it could not be loaded, failed its self-test, or is quarantined",
    },
    "outcome": {
        "success": "answered by the model",
        "invalid": "refused: the sender's fault",
        "overloaded": "refused: a queue was full",
        "deadline": "ended, or never begun: too late",
        "failed": "our fault: the model's run failed, or the server did",
        "cancelled": "the client left before the answer",
        "unready": "refused: the model is loading or draining, or has failed",
    },
}
"""What each value of a label from a fixed list means; codes are HTTP's and gRPC's own."""

FAMILIES = (
    *(REQUESTS, ROWS, TOTAL, QUEUE, RUN, CODEC, BATCH_ROWS, BATCHES, RUNNING, RECEIVED, SENT),
    *(WAITING, WAITING_ROWS, STATE, FALLBACK, INFO),
    *(ANSWERS, IN_FLIGHT, CONNECTIONS, REFUSED, DROPPED),
    *(CPU, MEMORY, FILES, STARTED, RESTARTS, BUILD),
)
"""Every family, in the order it is told."""
