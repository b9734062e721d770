"""KServe's clients: REST with binary tensors and JSON, gRPC raw and typed.

python kserve_clients.py HTTP_ADDRESS GRPC_ADDRESS
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from checks import NUMPY, Waiting, check, check_same, empty, model, refusal, values
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(datatype: str, array: np.ndarray, binary: bool, binary_out: bool = False) -> Any:
    given = InferInput("x", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    more = {"parameters": {"binary_data_output": True}} if binary_out else {}
    return InferRequest(model_name=model(datatype), infer_inputs=[given], **more)


def tensors(name: str, infer: Callable[[str, np.ndarray], Any]) -> None:
    for datatype in NUMPY:
        for what, array in (("", values(datatype)), (", empty", empty(datatype))):

            def ask(datatype: str = datatype, array: np.ndarray = array) -> None:
                answer = infer(datatype, array)
                assert answer.model_name == model(datatype), answer.model_name
                check_same(answer.outputs[0].as_numpy(), array)

            check(name, f"infer{what}", datatype, ask)


def holds(value: Any) -> None:
    assert value, value


def rest(address: str, runner: asyncio.Runner) -> None:
    inner = runner.run(_made(lambda: InferenceRESTClient(RESTConfig(protocol="v2"))))
    client = Waiting(runner, inner)
    base = f"http://{address}"

    def asking(binary: bool, binary_out: bool) -> Callable[..., Any]:
        def infer(datatype: str, array: np.ndarray) -> Any:
            asked = request(datatype, array, binary, binary_out)
            return client.infer(base, asked, model_name=model(datatype))

        return infer

    tensors("kserve rest, binary to binary", asking(True, True))
    tensors("kserve rest, binary to JSON", asking(True, False))
    tensors("kserve rest, JSON to JSON", asking(False, False))
    name = "kserve rest"
    check(name, "is_server_live", "", lambda: holds(client.is_server_live(base)))
    check(name, "is_server_ready", "", lambda: holds(client.is_server_ready(base)))
    check(name, "is_model_ready", "", lambda: holds(client.is_model_ready(base, model("FP32"))))

    def plain() -> None:
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}]}
        answer = client.infer(base, body, model_name=model("FP32"))
        check_same(answer.outputs[0].as_numpy(), np.array([[1, 2]], np.float32))

    check(name, "infer, dict", "", plain)
    unknown = request("FP32", values("FP32"), True)
    check(
        name,
        "infer, unknown model",
        "",
        refusal(lambda: client.infer(base, unknown, model_name="echo-fp31"), "404"),
    )
    client.close()


def grpc(address: str, runner: asyncio.Runner) -> None:
    inner = runner.run(_made(lambda: InferenceGRPCClient(address, timeout=10)))
    client = Waiting(runner, inner)
    tensors("kserve grpc, raw", lambda d, array: client.infer(request(d, array, True)))
    tensors("kserve grpc, typed", lambda d, array: client.infer(request(d, array, False)))
    name = "kserve grpc"
    check(name, "is_server_live", "", lambda: holds(client.is_server_live()))
    check(name, "is_server_ready", "", lambda: holds(client.is_server_ready()))
    check(name, "is_model_ready", "", lambda: holds(client.is_model_ready(model("FP32"))))
    check(
        name,
        "is_model_ready, unknown",
        "",
        refusal(lambda: client.is_model_ready("echo-fp31"), "no model named 'echo-fp31'"),
    )
    client.close()


async def _made(make: Callable[[], Any]) -> Any:
    return make()


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    with asyncio.Runner() as loop:
        rest(sys.argv[1], loop)
    with asyncio.Runner() as loop:
        grpc(sys.argv[2], loop)
