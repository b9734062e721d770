"""The control plane: what operators may have changed while serving, in every worker.

Off unless it is given a port, for HTTP or gRPC, and then on a listener of its own. It loads what lies
in the repository's folder and nothing else: no address to fetch from, no file sent along, no other
contract than the bundle's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serving.changes import Changes
from serving.errors import InvalidRequest, NotReady, ServingError, Unsupported

CLOSED = (
    "this door loads and unloads nothing: start the server with --control-port PORT and ask "
    "there, on the machine itself"
)

Message = dict[str, Any]
Everywhere = Callable[[Message], Awaitable[list[Message]]]
"""Has every worker, this one included, carry out `Control.apply`; an answer from each."""


class Control:
    """Changes as asked for from outside: checked, carried out everywhere, answered once."""

    def __init__(self, changes: Changes, everywhere: Everywhere | None = None) -> None:
        self._changes = changes
        self._everywhere = everywhere or self._here

    async def load(self, name: str, body: Any) -> Message:
        """Load a model as `body` asks; the versions that serve then, with their bundles.

        Raises `NotFound`, `InvalidRequest`, `Unsupported`, `NotReady` or `ModelRefused`.
        """
        return await self._ask({"do": "load", "model": name, "version": asked_version(body)})

    async def unload(self, name: str, body: Any) -> Message:
        """Unload a model as `body` asks. Raises as `load` does."""
        return await self._ask({"do": "unload", "model": name, "version": asked_version(body)})

    async def refresh(self) -> None:
        """Follow the repository's folder."""
        await self._changes.refresh()

    async def apply(self, message: Message) -> Message:
        """Carry out a change in this worker. A failure is an answer too: it has to travel."""
        name, version = message["model"], message["version"]
        try:
            change = self._changes.load if message["do"] == "load" else self._changes.unload
            slots = await change(name, version)
        except ServingError as error:
            return {"error": str(error), "kind": type(error).__name__}
        return {
            "name": name,
            "versions": [
                {"version": str(s.version), "bundle": s.model.bundle.digest}
                for s in slots
                if s.model
            ],
        }

    async def _ask(self, message: Message) -> Message:
        answers = await self._everywhere(message)
        for answer in answers:
            if "error" in answer:
                raise FAILURES.get(answer["kind"], NotReady)(answer["error"])
        if any(answer != answers[0] for answer in answers):
            raise NotReady(
                "the folder changed meanwhile, the workers serve different bundles: again"
            )
        return answers[0]

    async def _here(self, message: Message) -> list[Message]:
        return [await self.apply(message)]


def failures(base: type[ServingError] = ServingError) -> dict[str, type[ServingError]]:
    """Every kind of failure by its name."""
    kinds = {base.__name__: base}
    for kind in base.__subclasses__():
        kinds |= failures(kind)
    return kinds


FAILURES = failures()


async def watch(control: Control, seconds: float) -> None:
    """Follow the repository's folder for ever, with that pause between two looks."""
    while True:
        await asyncio.sleep(seconds)
        await control.refresh()


def asked_version(body: Any) -> str | None:
    """The version that a load or unload is about, none for all of the model.

    The body is what Triton's clients send: nothing, `{}`, or `{"parameters": {...}}`, with our
    parameter `version`. Raises `InvalidRequest`, and `Unsupported` for what would bring a model
    from elsewhere than the folder.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequest('the body: expected {"parameters": {...}} or nothing')
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InvalidRequest("parameters: expected an object")
    version = None
    for key, value in parameters.items():
        if key == "config" or key.startswith("file:"):
            raise Unsupported(
                f"parameter {key[:80]!r}: models come from the repository's folder alone, and "
                "their contract from their bundle: put a bundle there with slipway pull"
            )
        if key == "version":
            if not isinstance(value, str):
                raise InvalidRequest("parameter 'version': expected a text such as \"2\"")
            version = value
        elif key != "unload_dependents" or not isinstance(value, bool):
            raise InvalidRequest(
                f"parameter {key[:80]!r}: expected 'version' or, true or false, 'unload_dependents'"
            )
    return version
