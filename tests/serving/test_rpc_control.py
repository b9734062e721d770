"""Models loaded and unloaded over gRPC, on the control plane's own port."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from pipeline.config import ConfigError
from serving.config import Settings, check_control
from serving.doors.access import Scope, generated
from serving.proto.inference import message
from tests.serving.bundles import digits_graph, digits_rows, make_bundle
from tests.serving.live import Live, tensor
from tests.serving.rpc_client import Client, infer_request

Start = Callable[..., Live]
ROW = digits_rows(1)
DIGITS = infer_request("digits-test", {"image": ROW})
ASKED = {"inputs": [tensor("image", ROW, "UINT8")]}


def operator(server: Live) -> int:
    """The gRPC port of the control plane."""
    found = re.search(r"^control: .* on grpc://127\.0\.0\.1:(\d+)$", server.told(), re.M)
    assert found, server.told()
    return int(found[1])


def change(verb: str, name: str = "digits-test", **parameters: Any) -> Any:
    """A request as tritonclient makes it."""
    request = message(f"inference.RepositoryModel{verb}Request")(model_name=name)
    for key, value in parameters.items():
        kind = {bool: "bool_param", str: "string_param", bytes: "bytes_param"}[type(value)]
        setattr(request.parameters[key], kind, value)
    return request


def refused(ask: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    return caught.value.code().name, caught.value.details()


def test_load_and_unload_in_every_worker(start: Start, tmp_path: Path) -> None:
    """Without the public gRPC door, with keys: what HTTP's control plane does, by the same rules."""
    folder = tmp_path / "r"
    make_bundle(folder / "digits-test" / "1")
    keys = {scope: generated(scope.value, [scope]) for scope in Scope}
    (tmp_path / "keys").write_text("".join(f"{key.line()}\n" for _, key in keys.values()))
    (tmp_path / "keys").chmod(0o600)
    options = ("--workers", "2", "--keys", str(tmp_path / "keys"), "--control-grpc-port", "0")
    server = start(folder, *options)
    admin, infer = ([("x-api-key", keys[s][0])] for s in (Scope.ADMIN, Scope.INFER))

    def version() -> str:
        """What a worker's HTTP door answers with; each connection may be another worker's."""
        bearer = {"x-api-key": keys[Scope.INFER][0], "content-type": "application/json"}
        body = json.dumps(ASKED).encode()
        status, _, answer = server.ask("POST", "/v2/models/digits-test/infer", body, bearer)
        return str(json.loads(answer).get("model_version", status))

    with Client(operator(server)) as client:

        def ask(verb: str, *names: Any, key: Any = admin, **parameters: Any) -> Any:
            request = change(verb, *names, **parameters)
            return client.call(f"RepositoryModel{verb}", request, metadata=key)

        make_bundle(folder / "digits-test" / "2", digits_graph(seed=2))
        for verb in ("Load", "Unload"):
            assert refused(lambda: ask(verb, key=()))[0] == "UNAUTHENTICATED"  # noqa: B023
            assert refused(lambda: ask(verb, key=infer))[0] == "PERMISSION_DENIED"  # noqa: B023
        assert {version() for _ in range(6)} == {"1"}
        answer = ask("Load")
        assert (answer.model_name, answer.isLoaded) == ("digits-test", True)
        assert {version() for _ in range(6)} == {"2"}
        ask("Unload", version="2")
        assert {version() for _ in range(6)} == {"1"}
        assert ask("Unload", unload_dependents=False).isUnloaded
        assert {version() for _ in range(6)} == {"404"}
        named_first = message("inference.RepositoryModelLoadRequest")(repository_name="digits-test")
        client.call("RepositoryModelLoad", named_first, metadata=admin)
        assert {version() for _ in range(6)} == {"2"}

        code, details = refused(lambda: ask("Load", "digits-tast"))
        assert code == "NOT_FOUND" and "no model named 'digits-tast'" in details
        assert refused(lambda: ask("Load", ""))[0] == "INVALID_ARGUMENT"
        for parameter in ({"config": "{}"}, {"file:1/model.onnx": b"abc"}):
            code, details = refused(lambda: ask("Load", **parameter))  # noqa: B023
            assert code == "UNIMPLEMENTED" and "repository's folder alone" in details
        code, details = refused(lambda: ask("Load", version=True))
        assert code == "INVALID_ARGUMENT" and "parameter 'version'" in details
        make_bundle(folder / "digits-test" / "3", digits_graph(seed=3))
        (folder / "digits-test" / "3" / "model.onnx").write_bytes(b"no graph")
        code, details = refused(lambda: ask("Load"))
        assert code == "FAILED_PRECONDITION" and "model.onnx" in details
        assert {version() for _ in range(6)} == {"2"}  # what fails touches nothing
        assert client.infer(DIGITS, metadata=infer)
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.out.read_text().splitlines()]
    codes = [line["status"] for line in lines if line["path"].endswith("RepositoryModelLoad")]
    assert codes.count("OK") == 2 and "FAILED_PRECONDITION" in codes


def test_beyond_this_machine_it_needs_a_guard() -> None:
    with pytest.raises(ConfigError, match=r"control\.host '0\.0\.0\.0' can be reached"):
        check_control(Settings.model_validate({"control": {"host": "0.0.0.0", "grpc_port": 1}}))
    assert Settings.model_validate({"control": {"grpc_port": 1}}).managed
    assert not Settings().managed
