"""tritonclient, every method: HTTP and gRPC, blocking, asynchronous, streaming.

python triton.py HTTP_ADDRESS GRPC_ADDRESS CONTROL_HTTP_ADDRESS CONTROL_GRPC_ADDRESS
"""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from checks import NUMPY, Waiting, check, check_same, empty, model, refusal, values
from tritonclient.utils import InferenceServerException

SECONDS = 10.0

Infer = Callable[[str, np.ndarray], Any]
"""(model, values of `x`) -> the values of `y`."""


def http_input(datatype: str, array: np.ndarray, binary: bool) -> Any:
    given = over_http.InferInput("x", list(array.shape), datatype)
    return given.set_data_from_numpy(array, binary_data=binary)


def http_infer(client: Any, binary_in: bool, binary_out: bool, **more: Any) -> Callable[..., Any]:
    """An infer over HTTP; tensors as binary or JSON."""

    def infer(datatype: str, array: np.ndarray) -> Any:
        wanted = over_http.InferRequestedOutput("y", binary_data=binary_out)
        given = [http_input(datatype, array, binary_in)]
        return client.infer(model(datatype), given, outputs=[wanted], **more).as_numpy("y")

    return infer


def grpc_input(datatype: str, array: np.ndarray) -> Any:
    return over_grpc.InferInput("x", list(array.shape), datatype).set_data_from_numpy(array)


def grpc_infer(client: Any, **more: Any) -> Callable[..., Any]:
    def infer(datatype: str, array: np.ndarray) -> Any:
        given = [grpc_input(datatype, array)]
        return client.infer(model(datatype), given, client_timeout=SECONDS, **more).as_numpy("y")

    return infer


def http_async(client: Any) -> Callable[..., Any]:
    def infer(datatype: str, array: np.ndarray) -> Any:
        given = [http_input(datatype, array, True)]
        return client.async_infer(model(datatype), given).get_result().as_numpy("y")

    return infer


def grpc_async(client: Any) -> Callable[..., Any]:
    def infer(datatype: str, array: np.ndarray) -> Any:
        answers: queue.Queue[Any] = queue.Queue()
        given = [grpc_input(datatype, array)]
        client.async_infer(
            model(datatype), given, lambda result, error: answers.put(error or result)
        )
        return _told(answers.get(timeout=SECONDS)).as_numpy("y")

    return infer


def grpc_stream(client: Any) -> Callable[..., Any]:
    def infer(datatype: str, array: np.ndarray) -> Any:
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error or result))
        try:
            given = [grpc_input(datatype, array)]
            for number in range(3):
                client.async_stream_infer(model(datatype), given, request_id=str(number))
            for number in range(3):
                answer = _told(answers.get(timeout=SECONDS))
                told = answer.get_response()
                assert told.id == str(number), f"answer {number} is {told.id!r}"
                assert told.parameters["triton_final_response"].bool_param
            return answer.as_numpy("y")
        finally:
            client.stop_stream()

    return infer


def grpc_aio_stream(runner: asyncio.Runner, client: Any) -> Callable[..., Any]:
    def infer(datatype: str, array: np.ndarray) -> Any:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model(datatype), "inputs": [grpc_input(datatype, array)]}

        async def asked() -> Any:
            async for result, error in client.stream_infer(requests(), stream_timeout=SECONDS):
                return _told(error or result).as_numpy("y")

        return runner.run(asked())

    return infer


def _told(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def tensors(name: str, infer: Infer) -> None:
    """Every datatype, with values and empty."""
    for datatype in NUMPY:
        for what, array in (("", values(datatype)), (", empty", empty(datatype))):

            def ask(datatype: str = datatype, array: np.ndarray = array) -> None:
                check_same(infer(datatype, array), array)

            check(name, f"infer{what}", datatype, ask)


def methods(name: str, client: Any, given: Callable[..., Any], wanted: Any, http: bool) -> None:
    """Everything but the datatypes. `given` makes an input, `wanted` is an output's class."""
    x = values("FP32")
    late = {} if http else {"client_timeout": SECONDS}

    def named(answer: Any) -> Any:
        return answer if http else answer.name

    def infer(**more: Any) -> Any:
        return client.infer(model("FP32"), [given("FP32", x)], **{**late, **more})

    def told(answer: Any) -> dict[str, Any]:
        if http:
            return dict(answer.get_response())
        said = answer.get_response()
        return {
            "id": said.id,
            "model_name": said.model_name,
            "model_version": said.model_version,
            "outputs": [{"name": output.name} for output in said.outputs],
        }

    def holds(value: Any) -> None:
        assert value, value

    def equal(got: Any, expected: Any) -> None:
        assert got == expected, f"got {got!r}, expected {expected!r}"

    def metadata() -> None:
        if http:
            got = client.get_model_metadata(model("FP32"))
            equal(got["inputs"], [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}])
            equal(got["versions"], ["1", "3"])
        else:
            got = client.get_model_metadata(model("FP32"))
            equal((got.inputs[0].name, got.inputs[0].datatype), ("x", "FP32"))
            equal((list(got.inputs[0].shape), list(got.versions)), ([-1, -1], ["1", "3"]))

    def config() -> None:
        got = client.get_model_config(model("FP32"), "1")
        limit = got["max_batch_size"] if http else got.config.max_batch_size
        kind = got["input"][0]["data_type"] if http else got.config.input[0].data_type
        assert limit > 0 and kind in ("TYPE_FP32", 11), got

    def index() -> None:
        got = client.get_model_repository_index()
        names = {m["name"] for m in got} if http else {m.name for m in got.models}
        equal(names, {model(datatype) for datatype in NUMPY})

    def statistics() -> None:
        got = client.get_inference_statistics(model("FP32"))
        models = got["model_stats"] if http else got.model_stats
        counts = [m["inference_count"] if http else m.inference_count for m in models]
        equal(len(counts), 2)  # a line for each version
        assert sum(map(int, counts)) >= 1, counts

    def versions() -> None:
        for asked, expected in (("1", "1"), ("3", "3"), ("", "3")):
            equal(told(infer(model_version=asked))["model_version"], expected)

    def outputs() -> None:
        equal(told(infer(outputs=[wanted("y")]))["outputs"][0]["name"], "y")

    missing = "no model named 'echo-fp31'"
    for what, ask in {
        "is_server_live": lambda: holds(client.is_server_live()),
        "is_server_ready": lambda: holds(client.is_server_ready()),
        "is_model_ready": lambda: holds(client.is_model_ready(model("FP32"))),
        "is_model_ready, version": lambda: holds(client.is_model_ready(model("FP32"), "3")),
        "get_server_metadata": lambda: equal(
            client.get_server_metadata()["name"] if http else client.get_server_metadata().name,
            "slipway",
        ),
        "get_model_metadata": metadata,
        "get_model_metadata, unknown": refusal(
            lambda: client.get_model_metadata("echo-fp31"), missing
        ),
        "get_model_config": config,
        "get_model_repository_index": index,
        "get_inference_statistics": statistics,
        "infer, versions": versions,
        "infer, outputs": outputs,
        "infer, request_id": lambda: equal(told(infer(request_id="r-é"))["id"], "r-é"),
        "infer, timeout": lambda: holds(infer(timeout=20_000_000)),
        "infer, priority and parameters": lambda: holds(
            infer(priority=1, parameters={"a": "b", "n": 1, "t": True})
        ),
        "infer, unknown model": refusal(
            lambda: client.infer("echo-fp31", [given("FP32", x)]), missing
        ),
        "infer, unknown version": refusal(lambda: infer(model_version="2"), "no version '2'"),
        "infer, unknown output": refusal(lambda: infer(outputs=[wanted("z")]), "output 'z'"),
        "infer, wrong datatype": refusal(
            lambda: client.infer(model("FP32"), [given("INT8", values("INT8"))]),
            "input 'x'",
            "FP32",
            "got INT8",
        ),
        "infer, wrong shape": refusal(
            lambda: client.infer(model("FP32"), [given("FP32", x[0])]), "input 'x'", "got FP32 [3]"
        ),
        "load_model, closed": refusal(lambda: client.load_model(model("FP32")), "control"),
        "unload_model, closed": refusal(lambda: client.unload_model(model("FP32")), "control"),
        "shared memory, not offered": refusal(
            lambda: client.register_system_shared_memory("r", "/r", 8)
        ),
        "cuda memory, not offered": refusal(lambda: client.get_cuda_shared_memory_status()),
        "trace settings, not offered": refusal(lambda: client.get_trace_settings()),
        "log settings, not offered": refusal(lambda: client.get_log_settings()),
    }.items():
        check(name, what, "", ask)
    if not http:
        large = model("UINT8")
        wide = given("UINT8", np.zeros((1, 32 << 20), np.uint8))
        check(
            name,
            "infer, client_timeout",
            "",
            refusal(lambda: client.infer(large, [wide], client_timeout=0.001), "deadline"),
        )
        check(
            name,
            "infer, timeout of 1 microsecond",
            "",
            refusal(lambda: infer(timeout=1), "timeout of 1 microseconds"),
        )


def changes(name: str, client: Any) -> None:
    """Load and unload, on the control plane's own door."""
    fp64 = model("FP64")

    def unload() -> None:
        client.unload_model(fp64)
        refusal(lambda: client.get_model_metadata(fp64), "unloaded by request")()

    def load() -> None:
        client.load_model(fp64)
        assert client.is_model_ready(fp64)

    folder = "repository's folder alone"
    check(name, "unload_model", "", unload)
    check(name, "load_model", "", load)
    check(name, "load_model, unknown", "", refusal(lambda: client.load_model("none"), "'none'"))
    for what, more in (("config", {"config": "{}"}), ("files", {"files": {"file:1/m": b"m"}})):
        given = {"config": "{}", **more}  # the client sends no files without one
        check(
            name,
            f"load_model, {what}",
            "",
            refusal(lambda given=given: client.load_model(fp64, **given), folder),
        )


def main(http: str, grpc: str, control_http: str, control_grpc: str) -> None:
    client = over_http.InferenceServerClient(http, concurrency=2, network_timeout=SECONDS)
    for binary_in in (True, False):
        for binary_out in (True, False):
            name = f"{'binary' if binary_in else 'JSON'} to {'binary' if binary_out else 'JSON'}"
            tensors(f"tritonclient http, {name}", http_infer(client, binary_in, binary_out))
    tensors("tritonclient http, async_infer", http_async(client))
    for algorithm in ("gzip", "deflate"):
        up = {"request_compression_algorithm": algorithm}
        down = {"response_compression_algorithm": algorithm}
        tensors(f"tritonclient http, {algorithm} up", http_infer(client, True, True, **up))
        tensors(
            f"tritonclient http, {algorithm} both", http_infer(client, True, True, **up, **down)
        )

    def given(datatype: str, array: np.ndarray) -> Any:
        return http_input(datatype, array, True)

    methods("tritonclient http", client, given, over_http.InferRequestedOutput, True)
    client.close()
    operator = over_http.InferenceServerClient(control_http, network_timeout=SECONDS)
    changes("tritonclient http", operator)
    operator.close()

    with asyncio.Runner() as runner:
        waiting = Waiting(runner, runner.run(_made(over_http_aio, http, conn_timeout=SECONDS)))
        tensors("tritonclient http aio", http_infer(waiting, True, True))
        methods("tritonclient http aio", waiting, given, over_http.InferRequestedOutput, True)
        waiting.close()
        waiting = Waiting(runner, runner.run(_made(over_http_aio, control_http)))
        changes("tritonclient http aio", waiting)
        waiting.close()

    rpc = over_grpc.InferenceServerClient(grpc)
    tensors("tritonclient grpc", grpc_infer(rpc))
    tensors("tritonclient grpc, async_infer", grpc_async(rpc))
    tensors("tritonclient grpc, stream", grpc_stream(rpc))
    for algorithm in ("gzip", "deflate"):
        more = {"compression_algorithm": algorithm}
        tensors(f"tritonclient grpc, {algorithm}", grpc_infer(rpc, **more))
    methods("tritonclient grpc", rpc, grpc_input, over_grpc.InferRequestedOutput, False)
    rpc.close()
    rpc = over_grpc.InferenceServerClient(control_grpc)
    changes("tritonclient grpc", rpc)
    rpc.close()

    with asyncio.Runner() as runner:
        inner = runner.run(_made(over_grpc_aio, grpc))
        waiting = Waiting(runner, inner)
        tensors("tritonclient grpc aio", grpc_infer(waiting))
        tensors("tritonclient grpc aio, stream", grpc_aio_stream(runner, inner))
        methods("tritonclient grpc aio", waiting, grpc_input, over_grpc.InferRequestedOutput, False)
        waiting.close()
        waiting = Waiting(runner, runner.run(_made(over_grpc_aio, control_grpc)))
        changes("tritonclient grpc aio", waiting)
        waiting.close()


async def _made(module: Any, address: str, **more: Any) -> Any:
    """A client is made on the loop it will live on."""
    return module.InferenceServerClient(address, **more)


if __name__ == "__main__":
    assert issubclass(InferenceServerException, Exception)
    main(*sys.argv[1:])
