"""Each file of the server imports only files that stand below it."""

from __future__ import annotations

import ast

from tests.serving.live import ROOT

ORDER = [
    *("app", "http", "http_reader", "rest", "codec_json", "tensor_data", "dataplane"),
    *("repository", "model", "contract", "batching", "graph", "runtime", "telemetry", "config"),
    *("protocol", "errors", "proto"),
]


def test_imports_point_downwards() -> None:
    folder = ROOT / "serving"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(ORDER) - {"proto"}
    for place, name in enumerate(ORDER[:-1]):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            package, _, module = node.module.partition(".")
            if package == "serving":
                for used in [module] if module else [alias.name for alias in node.names]:
                    assert used in ORDER[place + 1 :], f"{name}.py imports {used}"
            assert package != "stages"
            assert package != "pipeline" or node.module in (
                "pipeline.bundle",
                "pipeline.config",
                *(f"pipeline.bundle.{m}" for m in ("manifest", "tensors", "decode", "golden")),
            )


def test_only_one_file_knows_onnx_runtime() -> None:
    for path in (ROOT / "serving").rglob("*.py"):
        if path.name != "runtime.py":
            assert "import onnxruntime" not in path.read_text(), path
