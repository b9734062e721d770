"""`slipway serve --provider require` on a CUDA device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.serving.bundles import answers, digits_graph, digits_rows, make_bundle
from tests.serving.conftest import start
from tests.serving.live import Live, tensor

__all__ = ["start"]


@pytest.mark.parametrize("graphs", [False, True])
def test_a_server_on_the_device(
    start: Callable[..., Live],
    tmp_path: Path,
    graphs: bool,
) -> None:
    make_bundle(tmp_path / "b")
    (tmp_path / "s.toml").write_text(
        f"[runtime]\nbuckets = [1, 8]\n[runtime.cuda]\nenable_cuda_graph = {json.dumps(graphs)}\n"
    )
    server = start(tmp_path / "b", "--provider", "require", "--config", str(tmp_path / "s.toml"))
    properties = server.json("GET", "/v2/models/digits-test")[1]["properties"]
    assert properties["provider"] == "CUDAExecutionProvider"
    assert properties["fell_back"] == "false" and properties["heavy_on_cpu"] == "[]"
    assert json.loads(properties["nodes"])["CUDAExecutionProvider"]
    for count in (1, 3, 8, 20):
        rows = digits_rows(count, seed=count)
        body = {"inputs": [tensor("image", rows, "UINT8")]}
        status, answer = server.json("POST", "/v2/models/digits-test/infer", body)
        assert status == 200
        wanted = answers(digits_graph().SerializeToString(), {"image": rows})
        for output in answer["outputs"]:
            got = np.array(output["data"], np.float32).reshape(output["shape"])
            np.testing.assert_allclose(got, wanted[output["name"]], rtol=0, atol=1e-5)
