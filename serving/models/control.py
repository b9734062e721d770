"""The control plane: what operators may have changed while serving, in every worker.

Off unless it is given a port, for HTTP or gRPC, and then on a listener of its own. It loads what lies
in the repository's folder and nothing else: no address to fetch from, no file sent along, no other
contract than the bundle's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pipeline.config import suggestion
from serving.errors import InvalidRequest, NotReady, ServingError, Unsupported

CLOSED = (
    "this door loads and unloads nothing: start the server with --control-port PORT and ask "
    "there, on the machine itself"
)

PARAMETERS = ["unload_dependents", "version"]

Message = dict[str, Any]
Change = Callable[[Message], Awaitable[Message]]
"""Has a change made in all workers or in none: `{"answer": ...}`, or `error` and `failure`, its name."""


class Control:
    """Changes as asked for from outside: checked, made everywhere, answered once."""

    def __init__(self, change: Change) -> None:
        self._change = change

    async def load(self, name: str, body: Any) -> Message:
        """Load a model as `body` asks; the versions that serve then, with their bundles.

        Raises `NotFound`, `InvalidRequest`, `Unsupported`, `NotReady` or `ModelRefused`.
        """
        return await self._ask({"do": "load", "model": name, "version": asked_version(body)})

    async def unload(self, name: str, body: Any) -> Message:
        """Unload a model as `body` asks. Raises as `load` does."""
        return await self._ask({"do": "unload", "model": name, "version": asked_version(body)})

    async def _ask(self, message: Message) -> Message:
        told = await self._change(message)
        if "error" in told:
            raise FAILURES.get(told["failure"], NotReady)(told["error"])
        answer: Message = told["answer"]
        return answer


def failures(base: type[ServingError] = ServingError) -> dict[str, type[ServingError]]:
    """Every kind of failure by its name."""
    kinds = {base.__name__: base}
    for kind in base.__subclasses__():
        kinds |= failures(kind)
    return kinds


FAILURES = failures()


def asked_version(body: Any) -> str | None:
    """The version that a load or unload is about, none for all of the model.

    The body is what Triton's clients send: nothing, `{}`, or `{"parameters": {...}}`, with our
    parameter `version`. Raises `InvalidRequest`, and `Unsupported` for what would bring a model
    from elsewhere than the folder.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequest('the body: expected {"parameters": {...}} or nothing')
    _check_fields(body)
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


def _check_fields(body: Mapping[str, Any]) -> None:
    """Refuse what is not under `parameters`: a version there would be all versions."""
    for key in body.keys() - {"parameters"}:
        told = key[:80]
        if key in PARAMETERS:
            raise InvalidRequest(f"unknown field {told!r}; put it under 'parameters'")
        hint = suggestion(told, ["parameters", *PARAMETERS])
        raise InvalidRequest(
            f'unknown field {told!r}{hint} (the body: {{"parameters": {{"version": "2"}}}})'
        )
