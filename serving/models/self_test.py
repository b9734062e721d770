"""The golden rows again and again while a model is idle, so that ready means: answers right.

Memory goes bad, a device falls off its bus, a library is replaced below a running process. Whoever
serves wrong answers then serves them to everyone, in perfect health.
"""

from __future__ import annotations

import asyncio

from serving.errors import ModelRefused
from serving.models.repository import Repository
from serving.models.slot import Slot, State
from serving.telemetry import log


async def keep_testing(repository: Repository, seconds: float) -> None:
    """Test every model that serves, every so often, for ever; 0 seconds: never."""
    while seconds:
        await asyncio.sleep(seconds)
        if not repository.leaving:
            for slot in list(repository.slots()):
                await examine(slot)


async def examine(slot: Slot) -> None:
    """Test one version: one that fails takes no more requests, until a later test passes.

    One that is busy is left alone; what it answers is looked at by those who ask.
    """
    model = slot.doubted or slot.model
    if model is None or (slot.doubted is None and (slot.state is not State.READY or model.busy)):
        return
    reason = ""
    try:
        await asyncio.to_thread(model.self_test)
    except ModelRefused as error:
        reason = str(error)
    if slot.state is State.READY and slot.model is model and reason:
        slot.model, slot.doubted = None, model
        slot.state, slot.reason = State.FAILED, f"self-test: {reason}"
        _tell("error", "self-test failed: takes no more requests", slot)
    elif slot.state is State.FAILED and slot.doubted is model and not reason:
        slot.model, slot.doubted = model, None
        slot.state, slot.reason = State.READY, ""
        _tell("warning", "self-test passed again: takes requests", slot)


def _tell(level: str, event: str, slot: Slot) -> None:
    log(level, event, model=slot.name, version=slot.version, reason=slot.reason)
