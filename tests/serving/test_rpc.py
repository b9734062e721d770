"""The gRPC door as clients meet it: methods, streams, deadlines, health, limits, leaving."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from serving.codecs.codec_proto import decode_change, encode, encode_streamed, parse
from serving.config import GrpcSettings, Settings
from serving.dataplane import DataPlane
from serving.doors.grpc.rpc import ELSEWHERE, RpcServer
from serving.doors.grpc.status import MAX_DETAILS, STATUS, told
from serving.models.repository import Repository
from serving.observability.access_log import AccessLog
from serving.observability.accounting import Books
from serving.proto.inference import (
    FILES,
    HEALTH,
    INFERENCE,
    OLDER_REFLECTION,
    REFLECTION,
    message,
)
from serving.protocol import InferResponse, Tensor
from tests.serving.bundles import TYPES, digits_rows, make_bundle
from tests.serving.live import ROOT, Live, tensor
from tests.serving.rpc_client import Client, InferRequest, infer_request, outputs

Start = Callable[..., Live]
Stream = message("inference.ModelStreamInferResponse")
STREAM = f"/{INFERENCE}/ModelStreamInfer"
DIGITS = infer_request("digits-test", {"image": digits_rows(1)})


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Client]:
    with Client(server.grpc_port) as client:
        yield client


def named(kind: str, name: str, version: str = "") -> Any:
    return message(f"inference.{kind}Request")(name=name, version=version)


def health(client: Client, service: str = "") -> int:
    asked = message("grpc.health.v1.HealthCheckRequest")(service=service)
    answer = client.raw(f"/{HEALTH}/Check", asked.SerializeToString())
    return int(message("grpc.health.v1.HealthCheckResponse").FromString(answer).status)


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


# Methods


def test_what_the_server_is(client: Client, server: Live) -> None:
    assert client.call("ServerLive").live and client.call("ServerReady").ready
    told = server.json("GET", "/v2")[1]
    answer = client.call("ServerMetadata")
    assert (answer.name, answer.version) == (told["name"], told["version"])
    assert list(answer.extensions) == told["extensions"]


@pytest.mark.parametrize(("model", "version"), [("digits-test", ""), ("types", "1")])
def test_what_a_model_is_is_what_http_says(
    client: Client, server: Live, model: str, version: str
) -> None:
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
    told = server.json("GET", path)[1]
    answer = client.call("ModelMetadata", named("ModelMetadata", model, version))
    assert list(answer.versions) == told["versions"] and answer.platform == told["platform"]
    assert dict(answer.properties) == told["properties"]
    for ours, theirs in ((answer.inputs, told["inputs"]), (answer.outputs, told["outputs"])):
        found = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in ours]
        assert found == theirs


def test_whether_a_model_is_ready(client: Client) -> None:
    assert client.call("ModelReady", named("ModelReady", "digits-test", "10")).ready
    assert not client.call("ModelReady", named("ModelReady", "broken")).ready
    code, details = refused(lambda: client.call("ModelReady", named("ModelReady", "digit-test")))
    assert code == "NOT_FOUND" and "did you mean 'digits-test'" in details
    code, details = refused(
        lambda: client.call("ModelReady", named("ModelReady", "digits-test", "3"))
    )
    assert code == "NOT_FOUND" and "1, 10" in details


def test_the_index_is_what_http_says(client: Client, server: Live) -> None:
    answer = client.call("RepositoryIndex")
    found = [
        {"name": m.name, "version": m.version, "state": m.state, "reason": m.reason}
        for m in answer.models
    ]
    assert found == server.json("POST", "/v2/repository/index")[1]
    ready = client.call("RepositoryIndex", message("inference.RepositoryIndexRequest")(ready=True))
    assert {m.name for m in ready.models} == {"digits-test", "types", "series"}


def test_a_configuration_for_load_tools_is_http_s(client: Client, server: Live) -> None:
    from google.protobuf import json_format

    config = client.call("ModelConfig", named("ModelConfig", "digits-test")).config
    found = json_format.MessageToDict(config, preserving_proto_field_name=True)
    told = server.json("GET", "/v2/models/digits-test/config")[1]
    for key, value in found.items():
        assert plain(value) == plain(told[key]), key
    assert {"max_batch_size", "input", "output", "instance_group"} <= found.keys()
    kinds = message("inference.ModelConfig").DESCRIPTOR.file.enum_types_by_name["DataType"]
    types = client.call("ModelConfig", named("ModelConfig", "types")).config
    found = [kinds.values_by_number[i.data_type].name for i in types.input]
    assert found == [f"TYPE_{protocol}" for _, protocol in TYPES.values()]


@pytest.mark.parametrize("method", [*ELSEWHERE, "ModelTrain"])
def test_methods_that_are_not_offered_say_so(client: Client, method: str) -> None:
    code, details = refused(lambda: client.raw(f"/{INFERENCE}/{method}", b""))
    assert code == "UNIMPLEMENTED" and details
    if method in ELSEWHERE:
        assert ELSEWHERE[method] in details


def test_an_answer_is_http_s_answer(client: Client, server: Live) -> None:
    rows = digits_rows(3)
    request = infer_request("digits-test", {"image": rows})
    request.id = "één"
    answer = client.call("ModelInfer", request)
    told = server.json(
        "POST", "/v2/models/digits-test/infer", {"inputs": [tensor("image", rows, "UINT8")]}
    )[1]
    assert answer.id == "één" and answer.model_name == "digits-test"
    assert answer.model_version == told["model_version"] == "10"
    assert answer.parameters["bundle"].string_param == told["parameters"]["bundle"]
    found = outputs(answer)
    assert list(found) == ["logits", "probabilities"]
    for output in told["outputs"]:
        wanted = np.array(output["data"], np.float32).reshape(output["shape"])
        assert np.array_equal(found[output["name"]], wanted)


def test_outputs_in_the_order_asked_for_and_another_version(client: Client) -> None:
    request = infer_request("digits-test", {"image": digits_rows(2)})
    both = client.infer(request)
    for name in ("probabilities", "logits"):
        request.outputs.add(name=name)
    swapped = client.infer(request)
    assert list(swapped) == ["probabilities", "logits"]
    assert np.array_equal(swapped["logits"], both["logits"])
    request.model_version = "1"
    answer = client.call("ModelInfer", request)
    assert answer.model_version == "1"
    assert not np.array_equal(outputs(answer)["logits"], both["logits"])


def test_an_empty_axis(client: Client) -> None:
    for typed in (False, True):
        empty = infer_request("series", {"values": np.zeros((2, 0), np.float32)}, typed)
        found = client.infer(empty)
        assert found["sum"].tolist() == [[0], [0]] and found["log"].shape == (2, 0)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_and_answers(client: Client, compression: Any) -> None:
    rows = digits_rows(64)
    request = infer_request("digits-test", {"image": rows})
    plain = client.infer(request)
    again = client.infer(request, compression=compression)
    assert all(np.array_equal(plain[name], again[name]) for name in plain)


def plain(value: Any) -> Any:
    """A JSON value without what is false, empty or 0, and with numbers for protobuf's texts."""
    if isinstance(value, dict):
        found = {k: plain(v) for k, v in value.items()}
        return {k: v for k, v in found.items() if v not in ("", 0, False, [], {}, "FORMAT_NONE")}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return int(value) if isinstance(value, str) and value.isdecimal() else value


# Streams


def test_a_stream_answers_each_request_in_order(client: Client) -> None:
    requests = []
    for number in range(40):
        request = infer_request("digits-test", {"image": digits_rows(1 + number % 3, number)})
        request.id = str(number)
        if number % 7 == 3:
            request.inputs[0].shape[1] = 7
        requests.append(request.SerializeToString())
    requests.insert(20, b"\xff")
    answers = [
        Stream.FromString(payload)
        for payload in client.channel.stream_stream(STREAM)(iter(requests), timeout=20)
    ]
    assert len(answers) == 41
    broken = answers.pop(20)
    assert "no inference.ModelInferRequest" in broken.error_message
    for number, answer in enumerate(answers):
        assert answer.infer_response.id == str(number)
        assert answer.infer_response.parameters["triton_final_response"].bool_param
        if number % 7 == 3:
            assert "expected UINT8 [n,8,8,1]" in answer.error_message
        else:
            assert not answer.error_message
            rows = digits_rows(1 + number % 3, number)
            alone = client.infer(infer_request("digits-test", {"image": rows}))
            joined = outputs(answer.infer_response)["logits"]
            assert np.allclose(joined, alone["logits"], atol=1e-5)


def test_a_stream_answers_before_it_ends(client: Client) -> None:
    more = threading.Event()

    def requests() -> Iterator[bytes]:
        yield DIGITS.SerializeToString()
        more.wait(10)
        yield DIGITS.SerializeToString()

    stream = client.channel.stream_stream(STREAM)(requests(), timeout=20)
    assert not Stream.FromString(next(stream)).error_message
    more.set()
    assert not Stream.FromString(next(stream)).error_message
    assert list(stream) == []


def test_a_stream_that_is_dropped_leaves_nothing_behind(client: Client) -> None:
    for _ in range(20):
        stream = client.channel.stream_stream(STREAM)(
            iter([DIGITS.SerializeToString()] * 200), timeout=20
        )
        next(stream)
        stream.cancel()
    assert client.infer(DIGITS)


# Deadlines


def test_the_requests_own_timeout(client: Client) -> None:
    request = InferRequest()
    request.CopyFrom(DIGITS)
    request.parameters["timeout"].int64_param = 1
    code, details = client.failure(request)
    assert code == "DEADLINE_EXCEEDED" and "1 microseconds" in details
    request.parameters["timeout"].int64_param = 10_000_000
    request.parameters["priority"].uint64_param = 1
    request.parameters["anything"].double_param = 1.5
    assert client.infer(request)
    request.parameters["timeout"].int64_param = 0
    assert client.infer(request)


class Endless(DataPlane):
    """A plane whose models never answer, and which notes who came and who gave up."""

    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self.came = self.gave_up = 0

    def submit(self, *asked: Any) -> Any:
        self.came += 1
        return self

    def cancel(self) -> None:
        """What came back from `submit` is told that nobody waits any more."""
        self.gave_up += 1


def test_whoever_gives_up_is_given_up(bundle: Path) -> None:
    """By deadline, by cancelling, within a stream: what was awaited for them is cancelled."""

    async def scenario() -> None:
        repository = Repository(bundle, Settings())
        repository.load_all()
        plane = Endless(repository)
        server = RpcServer(plane, GrpcSettings(port=0), Books(repository.metrics, AccessLog(False)))
        port = await server.start("127.0.0.1")
        asked = DIGITS.SerializeToString()

        async def until(came: int, gave_up: int) -> None:
            async with asyncio.timeout(10):
                while (plane.came, plane.gave_up) != (came, gave_up):
                    await asyncio.sleep(0.01)

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(f"/{INFERENCE}/ModelInfer")
            late = call(asked, timeout=0.3)
            cancelled = [call(asked) for _ in range(5)]
            await until(6, 1)
            assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            for one in cancelled:
                one.cancel()
            await until(6, 6)
            stream = channel.stream_stream(STREAM)()
            for _ in range(3):
                await stream.write(asked)
            await until(9, 6)
            stream.cancel()
            await until(9, 9)
            unanswered = call(asked)
            await until(10, 9)
            assert not await server.drain(0.3)  # what does not end is cut off
            await until(10, 10)
            assert await unanswered.code() in (
                grpc.StatusCode.CANCELLED,
                grpc.StatusCode.UNAVAILABLE,
            )
        repository.close()

    asyncio.run(scenario())


# gRPC's own services


def test_health(client: Client) -> None:
    assert [health(client, name) for name in ("", INFERENCE, HEALTH, "liveness")] == [1] * 4
    code, details = refused(lambda: health(client, "something.Else"))
    assert code == "NOT_FOUND" and "liveness" in details


def test_reflection_is_enough_to_ask(client: Client) -> None:
    """All that is needed to send a request comes from the server, as a tool would have it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    for service in (REFLECTION, OLDER_REFLECTION):
        prefix = service.rpartition(".")[0]
        Request = message(f"{prefix}.ServerReflectionRequest")
        Answer = message(f"{prefix}.ServerReflectionResponse")
        stream = client.channel.stream_stream(f"/{service}/ServerReflectionInfo")
        asked = [
            Request(list_services="*"),
            Request(file_containing_symbol=INFERENCE),
            Request(file_containing_symbol="inference.Nothing"),
            Request(file_by_filename="health.proto"),
            Request(all_extension_numbers_of_type="inference.ModelInferRequest"),
            Request(file_containing_extension={"containing_type": "a", "extension_number": 1}),
            Request(),
        ]
        listed, found, missing, file, extensions, none, nothing = (
            Answer.FromString(a)
            for a in stream(iter([r.SerializeToString() for r in asked]), timeout=20)
        )
        names = [s.name for s in listed.list_services_response.service]
        assert names == [INFERENCE, HEALTH, REFLECTION, OLDER_REFLECTION]
        for answer in (missing, none, nothing):
            assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        assert file.file_descriptor_response.file_descriptor_proto
        assert not extensions.all_extension_numbers_response.extension_number
        pool = descriptor_pool.DescriptorPool()
        for payload in found.file_descriptor_response.file_descriptor_proto:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(payload))
        kind = pool.FindServiceByName(INFERENCE).methods_by_name["ServerLive"].output_type
        live = message_factory.GetMessageClass(kind)
        assert live.FromString(client.raw(f"/{INFERENCE}/ServerLive", b"")).live


# Limits


def test_limits(start: Start, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(
        "[grpc]\nmessage_bytes = 100000\nheader_bytes = 2048\ncalls = 2\n"
    )
    server = start(bundle, "--grpc-port", "0", "--config", str(tmp_path / "serve.toml"))
    with Client(server.grpc_port) as client:
        large = infer_request("digits-test", {"image": digits_rows(2000)})
        code, details = client.failure(large)
        assert code == "RESOURCE_EXHAUSTED" and "100000" in details
        # What unpacks to more is refused before it is unpacked.
        large.raw_input_contents[0] = bytes(80 << 20)
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            code, _ = client.failure(large, compression=compression)
            assert code == "RESOURCE_EXHAUSTED"
        code, _ = client.failure(DIGITS, metadata=(("x", "y" * 5000),))
        assert code == "RESOURCE_EXHAUSTED"
        held = [client.channel.stream_stream(STREAM)(_endless(), timeout=20) for _ in range(2)]
        for stream in held:
            next(stream)
        code, details = client.failure(DIGITS)
        assert code == "RESOURCE_EXHAUSTED" and "oncurrent" in details
        for stream in held:
            stream.cancel()
        _eventually(lambda: client.infer(DIGITS))
    assert "Traceback" not in server.told()


def _endless() -> Iterator[bytes]:
    yield DIGITS.SerializeToString()
    time.sleep(30)


def _eventually(ask: Callable[[], object]) -> None:
    for _ in range(200):
        try:
            ask()
        except grpc.RpcError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("never answered")


def test_a_flood_of_what_is_no_http2_harms_nobody(client: Client, server: Live) -> None:
    for payload in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 4096,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff",
    ):
        with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=20) as sock:
            sock.sendall(payload)
    assert client.infer(DIGITS)


# Starting and leaving


def test_both_doors_are_announced_and_free_ports_taken(start: Start, bundle: Path) -> None:
    server = start(bundle, "--grpc-port", "0")
    assert re.search(r"on http://127.0.0.1:\d+ and grpc://127.0.0.1:\d+\n", server.told())
    second = start(bundle, "--grpc-port", str(server.grpc_port), wait=False)
    assert second.process.wait(20) == 1
    assert second.told() == (
        f"error: 127.0.0.1:{server.grpc_port} is in use: stop what listens there, "
        "or choose another --grpc-port, or --no-grpc\n"
    )


def test_switched_off_it_costs_nothing(start: Start, bundle: Path) -> None:
    code = (
        "import sys\n"
        "import serving.app, serving.commands.serve\n"
        "assert not {'grpc', 'serving.doors.grpc.rpc', 'serving.codecs.codec_proto'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    off, on = start(bundle), start(bundle, "--grpc-port", "0")
    maps = [Path(f"/proc/{s.workers()[0]}/maps").read_text() for s in (off, on)]
    assert ["cygrpc" in text for text in maps] == [False, True]


def test_leaving_is_not_serving_first_and_finishes_what_was_begun(
    start: Start, bundle: Path
) -> None:
    server = start(bundle, "--grpc-port", "0", "--notice", "1", "--drain", "10")
    asked = message("grpc.health.v1.HealthCheckRequest")().SerializeToString()
    State = message("grpc.health.v1.HealthCheckResponse")
    with Client(server.grpc_port) as client:
        watched = client.channel.unary_stream(f"/{HEALTH}/Watch")(asked, timeout=20)
        assert State.FromString(next(watched)).status == 1
        unknown = message("grpc.health.v1.HealthCheckRequest")(service="x").SerializeToString()
        strange = client.channel.unary_stream(f"/{HEALTH}/Watch")(unknown, timeout=20)
        assert State.FromString(next(strange)).status == 3
        done = threading.Event()

        def requests() -> Iterator[bytes]:
            yield DIGITS.SerializeToString()
            done.wait(10)

        stream = client.channel.stream_stream(STREAM)(requests(), timeout=20)
        assert not Stream.FromString(next(stream)).error_message

        server.process.send_signal(signal.SIGTERM)
        assert State.FromString(next(watched)).status == 2
        assert health(client) == 2 and health(client, "liveness") == 1
        assert not client.call("ServerReady").ready and client.call("ServerLive").live
        assert client.infer(DIGITS)
        with pytest.raises(grpc.RpcError) as ended:
            list(stream)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "leaving" in ended.value.details()
        done.set()
        assert list(watched) == []
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.told() and "Exception" not in server.told()


def test_leaving_under_load_loses_no_call(start: Start, bundle: Path) -> None:
    """What was taken on is answered; what was not comes back as unavailable, however often."""
    server = start(bundle, "--grpc-port", "0")
    codes: list[str] = []
    answered = [0]

    def client() -> None:
        with Client(server.grpc_port) as own:
            while True:
                try:
                    own.infer(DIGITS)
                except grpc.RpcError as error:
                    codes.append(error.code().name)
                    if "leaving" not in error.details():
                        return
                    continue
                answered[0] += 1

    clients = [threading.Thread(target=client) for _ in range(6)]
    for thread in clients:
        thread.start()
    time.sleep(0.5)
    assert server.stop() == 0
    for thread in clients:
        thread.join(20)
    assert set(codes) == {"UNAVAILABLE"} and len(codes) >= 6 and answered[0] > 20
    assert "cut off" not in server.told() and "Traceback" not in server.told()
    lines = [json.loads(line) for line in server.out.read_text().splitlines()]
    good = [x for x in lines if x["path"].endswith("ModelInfer") and x["status"] == "OK"]
    assert len(good) == answered[0]


def test_the_access_log_has_each_call(start: Start, bundle: Path) -> None:
    server = start(bundle, "--grpc-port", "0")
    with Client(server.grpc_port) as client:
        client.infer(DIGITS)
        client.failure(b"\xff")
    assert server.stop() == 0
    good, bad = (json.loads(line) for line in server.out.read_text().splitlines())
    assert good["method"] == "GRPC" and good["path"] == f"/{INFERENCE}/ModelInfer"
    assert good["status"] == "OK" and good["received"] == DIGITS.ByteSize() and good["sent"] > 80
    assert bad["status"] == "INVALID_ARGUMENT" and bad["sent"] == 0


def test_a_model_that_cannot_be_served_ends_the_process(start: Start, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", admitted=False)
    server = start(tmp_path / "b", "--grpc-port", "0", wait=False)
    assert server.process.wait(20) == 1
    assert "not admitted" in server.told() and "Traceback" not in server.told()


# Without a server


def test_every_failure_has_a_code() -> None:
    from serving import errors

    assert set(errors.ServingError.__subclasses__()) <= set(STATUS)
    for kind, code in STATUS.items():
        assert told(kind("a reason")) == (code, "a reason")
    assert told(errors.InvalidRequest("é" * 5000))[1] == "é" * (MAX_DETAILS // 2)
    assert told(ValueError("secret")) == (
        grpc.StatusCode.INTERNAL,
        "internal error; the server's log has it",
    )


def test_a_load_names_its_model_in_either_field() -> None:
    Load = message("inference.RepositoryModelLoadRequest")
    for asked in (
        Load(model_name="a"),
        Load(repository_name="a"),
        Load(repository_name="r", model_name="a"),
    ):
        assert decode_change(asked) == ("a", {"parameters": {}})
    with pytest.raises(Exception, match="expected the name of a model"):
        decode_change(Load())


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_answers_put_together_are_what_protobuf_reads(size: int) -> None:
    array = np.arange(size, dtype=np.uint8).reshape(1, size)
    response = InferResponse(
        "m", "1", "d", (Tensor("y", "UINT8", array), Tensor("z", "UINT8", array))
    )
    payload = encode("id" * (size % 400), response)
    answer = parse(payload, message("inference.ModelInferResponse"))
    assert answer.id == "id" * (size % 400) and len(answer.outputs) == 2
    assert list(answer.raw_output_contents) == [array.tobytes()] * 2
    streamed = Stream.FromString(encode_streamed(payload)).infer_response
    assert list(streamed.raw_output_contents) == [array.tobytes()] * 2
    assert streamed.parameters["bundle"].string_param == "d"


def test_the_settings_say_what_they_mean() -> None:
    assert all(field.description for field in GrpcSettings.model_fields.values())
    assert len(FILES) == 4
