"""How a version becomes a model: out of its folder, or as it was kept for workers that come later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pipeline.bundle.manifest import Bundle, BundleError, read
from serving.config import Settings
from serving.errors import ModelRefused
from serving.inference.model import NO_MEMORY, Model, admitted, load
from serving.inference.runtime import cuda_advice
from serving.models import trial
from serving.models.layout import look
from serving.models.shelf import Shelf, mark_of
from serving.models.slot import Slot, State
from serving.observability.metrics import Metrics
from serving.telemetry import log
from serving.workers.scoreboard import Watch


class Loader:
    """Opens versions for one worker. Everything here blocks: for a thread."""

    def __init__(self, settings: Settings, metrics: Metrics, watch: Watch, shelf: Shelf) -> None:
        self._settings = settings
        self._metrics = metrics
        self._watch = watch
        self._shelf = shelf

    def prove(self, slot: Slot, aloud: bool = True) -> None:
        """Read, check and prove a version. Blocks for as long as that takes; never raises.

        A failure is logged if `aloud`; else somebody else tells it.
        """

        def open_folder() -> Model:
            slot.loaded = slot.tried = look(slot.folder)
            bundle, settings = read(slot.folder), self._settings.of(slot.name)
            slot.digest, slot.mark = bundle.digest, mark_of(bundle)
            slot.key = f"{slot.name}/{slot.version}@{bundle.digest[:12]}"
            self._check_quarantine(slot)
            if settings.runtime.trial:
                trial.run(bundle, settings)
            model = self._loaded(slot, bundle)
            self._keep(slot, bundle)
            return model

        self._open(slot, open_folder)
        if slot.state is State.FAILED and aloud:
            log("error", "model failed", model=slot.name, version=slot.version, reason=slot.reason)

    def restore(self, slot: Slot) -> None:
        """Load the very bundle that all workers serve, as it was kept. Blocks; never raises."""

        def open_kept() -> Model:
            self._check_quarantine(slot)
            return self._loaded(slot, self._kept(slot))

        self._open(slot, open_kept)
        if slot.state is State.FAILED:
            log(
                "error",
                "model missing in this worker",
                model=slot.name,
                version=slot.version,
                reason=slot.reason,
            )

    def _open(self, slot: Slot, opened: Callable[[], Model]) -> None:
        try:
            model = opened()
        except (BundleError, ModelRefused) as error:
            slot.state, slot.reason = State.FAILED, str(error)
        except MemoryError:
            slot.state, slot.reason = State.FAILED, NO_MEMORY
        except Exception as error:  # one model's surprise must not take the others along
            slot.state, slot.reason = State.FAILED, f"{type(error).__name__}: {error}"
        else:
            model.counted(self._metrics.meter(slot.name, str(slot.version)))
            slot.model = model
            slot.state = State.READY
            _report_provider(slot, model)

    def _check_quarantine(self, slot: Slot) -> None:
        if slot.key in self._watch.quarantined:
            raise ModelRefused(self._watch.quarantined[slot.key])

    def _loaded(self, slot: Slot, bundle: Bundle) -> Model:
        def progress(state: str) -> None:
            slot.state = State(state)

        settings = self._settings.of(slot.name)
        return load(bundle, settings, progress, self._watch.cell(slot.key))

    def _keep(self, slot: Slot, bundle: Bundle) -> None:
        """Put a bundle on the shelf, without the variants that do not serve."""
        served = admitted(bundle, self._settings.of(slot.name).variant).file
        others = {variant.file for variant in bundle.manifest.variants.values()} - {served}
        try:
            self._shelf.put(bundle, bundle.contents.keys() - others)
        except OSError as error:
            log(
                "warning",
                "a bundle is not kept: a worker that dies will look for it in its folder",
                model=slot.name,
                version=slot.version,
                reason=str(error),
            )

    def _kept(self, slot: Slot) -> Bundle:
        """The bundle that all workers serve: from the shelf or, as it was, from its folder."""
        try:
            bundle = self._shelf.get(slot.mark)
            why = "it was not kept"
        except (BundleError, OSError) as error:
            bundle, why = None, str(error)
        if bundle is None:
            try:
                bundle = read(slot.folder)
            except BundleError as error:
                raise ModelRefused(
                    f"the bundle that serves cannot be had: {why}; {error}"
                ) from error
            if mark_of(bundle) != slot.mark:
                raise ModelRefused(
                    f"the bundle that serves cannot be had: {why}, and its folder holds another"
                )
        return bundle

    def sweep(self, marks: set[str]) -> None:
        """Keep no bundles but these on the shelf. Blocks; never raises."""
        with suppress(OSError):  # what could not be let go of goes with the next change
            self._shelf.keep_only(marks)


def _report_provider(slot: Slot, model: Model) -> None:
    placement = model.session.placement
    if placement.fell_back:
        log(
            "warning",
            "no CUDA: serving on the CPU",
            model=slot.name,
            version=slot.version,
            wanted=placement.wanted,
            provider=placement.provider,
            nodes=placement.nodes,
            heavy_on_cpu=placement.heavy_on_cpu,
            advice=cuda_advice(placement.wanted),
        )
