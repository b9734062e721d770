"""The client against a real server: every call, every type, threads and tasks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    ServerError,
    Unreachable,
)
from tests.serving.bundles import TYPES, answers, digits_graph, digits_rows
from tests.serving.live import ROOT, Live
from tests.serving.test_commands import picture


class Awaited:
    """An `AsyncClient` with a loop of its own, used as if it were a `Client`."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(url, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            return self._loop.run_until_complete(getattr(self._client, name)(*arguments, **named))

        return call

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


@pytest.fixture(params=[Client, Awaited], ids=["blocking", "asynchronous"])
def client(request: pytest.FixtureRequest, server: Live) -> Iterator[Any]:
    client = request.param(f"http://127.0.0.1:{server.port}")
    yield client
    client.close()


@pytest.mark.parametrize("kind", [Client, Awaited])
def test_https_to_a_server_without_tls_is_told(kind: Any, server: Live) -> None:
    client = kind(f"https://127.0.0.1:{server.port}")
    with pytest.raises(Unreachable, match="does not speak TLS: use http://") as failure:
        client.infer("digits-test", {"image": digits_rows(1)})
    client.close()
    assert failure.value.tries == 1


def test_infer(client: Any) -> None:
    rows = digits_rows(3)
    answer = client.infer("digits-test", {"image": rows}, version=1, request_id="mine")
    expected = answers(digits_graph().SerializeToString(), {"image": rows})
    assert list(answer) == ["logits", "probabilities"] and len(answer) == 2
    for name, values in expected.items():
        np.testing.assert_allclose(answer[name], values, atol=1e-5)
        assert answer[name].flags.writeable and answer[name].flags.aligned
    assert (answer.model_name, answer.model_version, answer.id) == ("digits-test", "1", "mine")
    assert answer.bundle == client.metadata("digits-test", version=1).properties["bundle"]
    with pytest.raises(KeyError, match="the outputs are logits, probabilities"):
        answer["other"]


def test_the_highest_version_answers_where_none_is_named(client: Any) -> None:
    assert client.infer("digits-test", {"image": digits_rows(1)}).model_version == "10"


def test_only_the_outputs_asked_for(client: Any) -> None:
    answer = client.infer("digits-test", {"image": digits_rows(1)}, ["probabilities"])
    assert list(answer) == ["probabilities"]
    with pytest.raises(InvalidRequest, match="list of names"):
        client.infer("digits-test", {"image": digits_rows(1)}, "probabilities")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kind", [Client, Awaited])
def test_every_type_comes_back_as_it_went(kind: Any, server: Live, binary: bool) -> None:
    client = kind(f"http://127.0.0.1:{server.port}", binary=binary)
    inputs = {f"in_{t}": np.arange(12).reshape(3, 2, 2).astype(t) for t in TYPES}
    answer = client.infer("types", inputs)
    for name, array in inputs.items():
        back = answer[name.replace("in_", "out_")]
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
    client.close()


def test_odd_arrays(client: Any) -> None:
    """Strided, big-endian, read-only, without rows, larger than is copied into one piece."""
    rows = digits_rows(4)
    straight = client.infer("digits-test", {"image": rows})["logits"]
    strided = np.asfortranarray(rows)
    np.testing.assert_array_equal(
        client.infer("digits-test", {"image": strided})["logits"], straight
    )
    series = np.arange(1, 7, dtype=">f4").reshape(2, 3)
    series.flags.writeable = False
    np.testing.assert_array_equal(client.infer("series", {"values": series})["sum"], [[6], [15]])
    long = np.ones((2, 40_000), np.float32)
    np.testing.assert_array_equal(client.infer("series", {"values": long})["sum"], [[4e4], [4e4]])


def test_predict(client: Any, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture())
    by_path = client.predict("digits-test", file, version="1")
    by_bytes = client.predict("digits-test", picture(), version="1")
    assert by_path == by_bytes
    assert by_path.label == next(iter(by_path.probabilities)) and len(by_path.probabilities) == 10
    inverted = client.predict("digits-test", file, version=1, invert=True)
    assert inverted.probabilities != by_path.probabilities
    with pytest.raises(FileNotFoundError):
        client.predict("digits-test", tmp_path / "nofile.png")
    with pytest.raises(InvalidRequest, match="empty"):
        client.predict("digits-test", b"")


def test_what_the_server_is(client: Any) -> None:
    told = client.metadata("digits-test")
    assert told.versions == ("1", "10")
    assert [(i.name, i.datatype, i.shape) for i in told.inputs] == [
        ("image", "UINT8", (-1, 8, 8, 1))
    ]
    assert {"digits-test", "types", "series"} <= set(client.models())
    states = {(e.name, e.version): e.state for e in client.index()}
    assert states[("digits-test", "10")] == "READY" and states[("broken", "2")] == "UNAVAILABLE"
    assert ("broken", "2") not in {(e.name, e.version) for e in client.index(ready_only=True)}
    assert client.server()["name"] == "slipway"
    assert client.live() is True
    assert client.ready("digits-test", 1) is True
    assert client.ready("broken") is False
    with pytest.raises(NotFound):
        client.ready("no-such-model")


def test_errors_carry_the_servers_words(client: Any) -> None:
    with pytest.raises(NotFound, match="did you mean 'digits-test'") as missing:
        client.infer("digit-test", {"image": digits_rows(1)})
    assert missing.value.status == 404 and missing.value.tries == 1
    with pytest.raises(InvalidRequest, match=r"expected UINT8 \[n,8,8,1\], got INT64"):
        client.infer("digits-test", {"image": [1, 2]})
    with pytest.raises(InvalidRequest, match="no type for complex128"):
        client.infer("digits-test", {"image": np.array([1j])})
    with pytest.raises(InvalidRequest, match="at least one"):
        client.infer("digits-test", {})
    with pytest.raises(InvalidRequest, match="request_id"):
        client.infer("digits-test", {"image": digits_rows(1)}, request_id="a\r\nb")


def test_an_answer_json_cannot_say(server: Live) -> None:
    zeros = {"values": np.zeros((1, 2), np.float32)}
    with Client(f"http://127.0.0.1:{server.port}") as binary:
        assert np.isneginf(binary.infer("series", zeros)["log"]).all()
    with Client(f"http://127.0.0.1:{server.port}", binary=False) as texts:
        with pytest.raises(ServerError, match="binary"):
            texts.infer("series", zeros)
        with pytest.raises(InvalidRequest, match="NaN or infinity"):
            texts.infer("series", {"values": np.array([[np.nan]], np.float32)})


@pytest.mark.parametrize("kind", [Client, Awaited])
def test_compressed_both_ways(kind: Any, server: Live) -> None:
    client = kind(f"http://127.0.0.1:{server.port}", compress=True)
    values = np.arange(20_000, dtype=np.float32).reshape(2, -1) + 1
    answer = client.infer("series", {"values": values})
    np.testing.assert_allclose(answer["log"], np.log(values), rtol=1e-5)
    client.close()


def test_sixteen_threads_share_a_client(server: Live) -> None:
    """Each thread gets its own rows' answers, over no more connections than allowed."""
    rows = digits_rows(16 * 20, seed=3).reshape(16, 20, 1, 8, 8, 1)
    expected = answers(digits_graph().SerializeToString(), {"image": rows.reshape(-1, 8, 8, 1)})
    logits = expected["logits"].reshape(16, 20, 1, 10)
    with Client(f"http://127.0.0.1:{server.port}", connections=5) as client:

        def ask(thread: int) -> None:
            for turn in range(20):
                answer = client.infer(
                    "digits-test",
                    {"image": rows[thread, turn]},
                    version=1,
                    request_id=f"{thread}-{turn}",
                )
                assert answer.id == f"{thread}-{turn}"
                np.testing.assert_allclose(answer["logits"], logits[thread, turn], atol=1e-4)

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(ask, range(16)))
        assert len(client._pool._idle) <= 5


def test_many_tasks_share_a_client(server: Live) -> None:
    rows = digits_rows(100, seed=4)
    expected = answers(digits_graph().SerializeToString(), {"image": rows})["logits"]

    async def main() -> None:
        async with AsyncClient(f"http://127.0.0.1:{server.port}", connections=7) as client:
            found = await asyncio.gather(
                *(
                    client.infer("digits-test", {"image": rows[n : n + 1]}, version=1)
                    for n in range(100)
                )
            )
            for n, answer in enumerate(found):
                np.testing.assert_allclose(answer["logits"][0], expected[n], atol=1e-4)
            assert len(client._pool._idle) <= 7

    asyncio.run(main())


def test_an_asynchronous_client_outlives_its_loop(server: Live) -> None:
    client = AsyncClient(f"http://127.0.0.1:{server.port}")
    assert asyncio.run(client.models()) == asyncio.run(client.models())


def test_it_runs_on_uvloop(server: Live) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with AsyncClient(f"http://127.0.0.1:{server.port}") as client:
            for _ in range(3):
                await client.infer("digits-test", {"image": digits_rows(2)})
            with pytest.raises(Unreachable):
                await AsyncClient("http://127.0.0.1:9", retries=0).live()

    uvloop.run(main())


def test_a_server_that_is_still_starting_is_waited_for(
    bundle: Path, start: Callable[..., Live]
) -> None:
    """The port is taken by a server that a thread starts a moment later."""
    first = start(bundle)
    port = first.port
    first.stop()
    late: list[Live] = []
    timer = threading.Timer(0.3, lambda: late.append(start(bundle, "--port", str(port))))
    timer.start()
    with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(Unreachable, match="is the server running"):
            client.live(timeout=0.1)
        client.wait_ready("digits-test", timeout=30)
        assert client.ready()
    timer.join()


def test_waiting_ends(client: Any) -> None:
    with pytest.raises(DeadlineExceeded, match="no model named 'nothing'"):
        client.wait_ready("nothing", timeout=0.3)
    with pytest.raises(DeadlineExceeded, match="broken"):
        client.wait_ready("broken", timeout=0.3)


def test_importing_the_client_is_light() -> None:
    code = "import json, sys\nimport serving.client\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heads = {name.partition(".")[0] for name in json.loads(done.stdout)}
    heavy = {"onnxruntime", "onnx", "pydantic", "click", "PIL", "uvloop", "torch", "grpc"}
    assert not heads & heavy
    ours = {n for n in json.loads(done.stdout) if n.startswith(("serving.", "pipeline."))}
    assert {n for n in ours if not n.startswith("serving.client")} == {
        "serving.protocol",
        "pipeline.bundle",
        "pipeline.bundle.tensors",
    }
