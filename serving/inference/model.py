"""One loaded model: what it accepts, proof that it answers as trained, and its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pipeline.bundle import golden
from pipeline.bundle.decode import DecodeError
from pipeline.bundle.manifest import Bundle, BundleError, Manifest, Output, Variant
from serving.config import Settings
from serving.errors import (
    BackendFailure,
    DeadlineExceeded,
    InvalidRequest,
    ModelRefused,
    Overloaded,
    ServingError,
)
from serving.inference import graph, prediction
from serving.inference.batching import Arrays, Batcher, Entry
from serving.inference.contract import Contract, fits
from serving.inference.runtime import Session, open_session
from serving.observability.call import Call
from serving.observability.metrics import Meter
from serving.protocol import InferRequest, Reading
from serving.protocol import Tensor as WireTensor
from serving.workers.scoreboard import Cell, Watch

MAX_DECODING = 64
"""Files that may wait to be decoded, each held in memory whole."""

NO_MEMORY = "there is not enough memory to load it"


@dataclass(frozen=True)
class Replay:
    """What replaying the golden rows showed: differences by output, and seconds for all rows."""

    rows: int
    differences: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class GoldenRows:
    """Real inputs and the answers expected of them, by name."""

    inputs: Arrays
    expected: Arrays


class Model:
    """A proven model behind its queue."""

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        rows: GoldenRows,
        replay: Replay,
        settings: Settings,
        cell: Cell,
    ) -> None:
        # Without its files: the session has the weights, and nobody needs them twice.
        self.bundle = replace(bundle, contents={})
        self._files = prediction.needed(bundle.manifest, bundle.contents)
        self.golden = rows
        self.manifest = bundle.manifest
        self.replay = replay
        self.session = session
        self.variant = settings.variant
        self.contract = Contract(self.manifest.inputs, self.manifest.outputs, settings)
        self._cell = cell
        self._runner = ThreadPoolExecutor(1, "model")
        self._batcher = Batcher(
            cell.around(session.run), settings.batching, self._runner, replay.seconds / replay.rows
        )
        self.check_room: Callable[[], None] = self._batcher.check_room
        """Raises `Overloaded` where the queue is full: known before anything of a request is read."""
        self._decoder = ThreadPoolExecutor(1, "decode")
        self._decoding = 0
        self.meter: Meter | None = None

    def counted(self, meter: Meter) -> None:
        """Have what this model does be counted there."""
        self.meter = self._batcher.meter = meter

    def infer(
        self,
        request: InferRequest,
        done: Callable[[tuple[WireTensor, ...] | ServingError], None],
        call: Call | None = None,
    ) -> Entry:
        """Queue a request; `done` is told the wanted outputs, in the order they were asked for.

        Raises `InvalidRequest` or `Overloaded`; what the model does wrong, `done` is told.
        """
        contract = self.contract
        wanted = contract.wanted(request)
        arrays, rows = contract.arrays(request)

        def answered(answers: Arrays | ServingError) -> None:
            if isinstance(answers, ServingError):
                done(answers)
            else:
                done(
                    tuple(
                        [
                            WireTensor(name, contract.protocol[name], answers[name])
                            for name in wanted
                        ]
                    )
                )

        signature = _signature(arrays)
        return self._batcher.enqueue(
            arrays, rows, signature, answered, request.timeout, request.priority, call
        )

    async def predict(self, payload: bytes, invert: bool, call: Call | None = None) -> Reading:
        """What the model says of one file's bytes.

        Raises `Unsupported` for a model that reads no files or says nothing that a person reads.
        """
        output = prediction.answering(self.manifest)
        if self._decoding >= MAX_DECODING:
            raise Overloaded(f"{self._decoding} files wait to be decoded already")
        self._decoding += 1
        try:
            # In a thread: a large picture takes a second, and every other client would wait for it.
            arrays, hint = await asyncio.get_running_loop().run_in_executor(
                self._decoder, self._read, payload, invert
            )
        except DecodeError as error:
            raise InvalidRequest(str(error)) from error
        finally:
            self._decoding -= 1
        answers = await self._batcher.submit(arrays, 1, _signature(arrays), call)
        return replace(prediction.reading(output, answers), hint=hint)

    def _read(self, payload: bytes, invert: bool) -> tuple[Arrays, str | None]:
        """A file as a row, and what a person should be told of it. Raises `DecodeError`."""
        row = prediction.row(self.manifest, self._files, payload, invert=invert)
        return row, prediction.hint(self.manifest, self._files, payload, invert=invert)

    @property
    def waiting(self) -> tuple[int, int]:
        """(requests, rows) in the queue."""
        return self._batcher.waiting, self._batcher.waiting_rows

    @property
    def fell_back(self) -> bool:
        """Whether a device was asked for and is not had, in whole or in what counts."""
        return self.session.placement.fell_back

    @property
    def busy(self) -> bool:
        """Whether a request is in its hands."""
        return self._decoding > 0 or self._batcher.busy

    def self_test(self) -> None:
        """Run the golden rows again. Raises `ModelRefused` where they no longer come out.

        Blocks: for a thread. It also hands back the memory that a burst of requests left behind.
        """
        compare(self.manifest, self.golden, _answers(self.golden, self.session.tidy))

    def close(self) -> None:
        """Let the threads end."""
        self._cell.release()
        self._decoder.shutdown(wait=False, cancel_futures=True)
        self._runner.shutdown(wait=False, cancel_futures=True)


def load(
    bundle: Bundle,
    settings: Settings,
    progress: Callable[[str], None] | None = None,
    cell: Cell | None = None,
) -> Model:
    """A model that was checked, opened and proven. Raises `ModelRefused` with the cause.

    `progress` is told the state that begins: 'verifying', 'warming'. In `cell` it is noted while
    the model is opened or run.
    """
    cell = cell or Watch().cell(bundle.manifest.name)
    tell = progress or (lambda state: None)
    tell("verifying")
    limits = settings.runtime
    deadline = time.monotonic() + limits.load_seconds if limits.load_seconds else None
    variant = admitted(bundle, settings.variant)
    payload = bundle.contents[variant.file]
    prediction.check(bundle.manifest, bundle.contents)
    try:
        graph.check(payload, bundle.manifest, variant, settings.graph)
        with cell.opening():
            session = open_session(payload, limits, deadline, bundle.digest)
            check_ports(bundle, session)
            tell("warming")
            rows = golden_rows(bundle)
            replay = replay_golden(bundle.manifest, rows, partial(session.run, deadline=deadline))
            _warm(session, rows, deadline)
    except (ModelRefused, MemoryError) as error:
        cell.release()
        told = NO_MEMORY if isinstance(error, MemoryError) else error
        raise ModelRefused(f"{variant.file}: {told}") from error
    return Model(bundle, session, rows, replay, settings, cell)


def admitted(bundle: Bundle, name: str) -> Variant:
    """The variant of that name. Raises `ModelRefused` unless it passed its gates."""
    variants = bundle.manifest.variants
    served = [n for n, v in variants.items() if v.admitted]
    if name not in variants:
        raise ModelRefused(f"no variant {name!r}; admitted: {', '.join(served) or 'none'}")
    if not variants[name].admitted:
        failed = [g.name for g in variants[name].gates if not g.passed]
        raise ModelRefused(
            f"variant {name!r} was not admitted ({', '.join(failed) or 'no gate passed'}); "
            f"admitted: {', '.join(served) or 'none'}"
        )
    return variants[name]


def check_ports(bundle: Bundle, session: Session) -> None:
    """Raise `ModelRefused` unless the session's tensors are those of the manifest."""
    for kind, declared, ports in (
        ("input", bundle.manifest.inputs, session.inputs),
        ("output", bundle.manifest.outputs, session.outputs),
    ):
        wanted = [
            (t.name, t.dtype, tuple(None if isinstance(a, str) else a for a in t.shape))
            for t in declared
        ]
        got = [(p.name, p.type.numpy.name, p.shape) for p in ports]
        if wanted != got:
            raise ModelRefused(f"{kind}s: the manifest says {wanted}, the session has {got}")


def golden_rows(bundle: Bundle) -> GoldenRows:
    """The golden rows of a bundle. Raises `ModelRefused` unless the inputs are the manifest's."""
    manifest = bundle.manifest
    try:
        inputs, expected = golden.unpack(bundle.contents[manifest.golden.file])
    except (BundleError, MemoryError) as error:
        raise ModelRefused(str(error)) from error
    if set(inputs) != {i.name for i in manifest.inputs}:
        raise ModelRefused(f"golden rows: inputs {sorted(inputs)}, expected those of the manifest")
    for name, array in inputs.items():
        declared = next(i for i in manifest.inputs if i.name == name)
        if array.dtype.name != declared.dtype or not fits(declared, array.shape):
            raise ModelRefused(f"golden rows: input {name!r} is {array.dtype} {list(array.shape)}")
        if len(array) != manifest.golden.rows:
            raise ModelRefused(
                f"golden rows: the manifest says {manifest.golden.rows}, {name!r} has {len(array)}"
            )
    return GoldenRows(inputs, expected)


def replay_golden(manifest: Manifest, rows: GoldenRows, run: Callable[[Arrays], Arrays]) -> Replay:
    """Run the golden rows: self-test and warm-up in one. Raises `ModelRefused`.

    Every output must be there, of the declared shape and type, finite, and within the tolerance.
    """
    answers = _answers(rows, run)
    start = time.perf_counter()
    _answers(rows, run)
    seconds = time.perf_counter() - start
    return Replay(manifest.golden.rows, compare(manifest, rows, answers), seconds)


def compare(manifest: Manifest, rows: GoldenRows, answers: Arrays) -> dict[str, float]:
    """The largest absolute difference of each output. Raises `ModelRefused` beyond the tolerance."""
    tolerance = manifest.golden.tolerance
    return {
        o.name: _difference(o, answers, rows.expected, tolerance.get(o.name, 0.0))
        for o in manifest.outputs
    }


def _answers(rows: GoldenRows, run: Callable[[Arrays], Arrays]) -> Arrays:
    try:
        return run(rows.inputs)
    except DeadlineExceeded as error:
        raise ModelRefused(
            "golden rows: the model did not answer them in time (settings runtime.run_seconds and "
            "runtime.load_seconds)"
        ) from error
    except (BackendFailure, InvalidRequest) as error:
        raise ModelRefused(f"golden rows: {error}") from error


def _warm(session: Session, rows: GoldenRows, deadline: float | None) -> None:
    """Run every bucket, before a request waits for the first run of its shape."""
    try:
        session.warm(rows.inputs, deadline)
    except (BackendFailure, InvalidRequest, DeadlineExceeded) as error:
        raise ModelRefused(f"runtime.buckets {list(session.buckets)}: {error}") from error


def _signature(arrays: Arrays) -> tuple[tuple[int, ...], ...]:
    """Requests can be joined whose inputs differ in nothing but their rows."""
    return tuple([array.shape[1:] for array in arrays.values()])


def _difference(output: Output, answers: Arrays, expected: Arrays, tolerance: float) -> float:
    """The largest absolute difference of one output. Raises `ModelRefused` beyond the tolerance."""
    name = output.name
    if name not in expected:
        raise ModelRefused(f"golden rows: no expected answers for output {name!r}")
    got, wanted = answers[name], expected[name]
    if got.dtype.name != output.dtype or got.shape != wanted.shape or not fits(output, got.shape):
        raise ModelRefused(
            f"golden rows: output {name!r}: expected {wanted.dtype} {list(wanted.shape)}, "
            f"the model gave {got.dtype} {list(got.shape)}"
        )
    if got.dtype.kind not in "fiub":
        return float((got != wanted).any())
    if not np.isfinite(got).all():
        raise ModelRefused(f"golden rows: output {name!r} holds NaN or infinity")
    difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    largest = float(difference.max())
    if not largest <= tolerance:  # written so that NaN is refused too
        raise ModelRefused(
            f"golden rows: output {name!r} differs by up to {largest:.3g} from what was proven, "
            f"at most {tolerance:.3g} is tolerated: here, the model does not answer as trained"
        )
    return largest
