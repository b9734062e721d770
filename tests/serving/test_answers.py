"""What the door for files answers: one label, several that hold, or a number, to whoever asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.bundle.decode.categorical import CategoricalDecoder
from pipeline.bundle.decode.numeric import NumericDecoder
from pipeline.bundle.manifest import Input, Output
from serving.client import AsyncClient, Client, InvalidRequest, Prediction
from tests.manifests import OPSET
from tests.serving.bundles import LABELS, answers, digits_interface, make_bundle
from tests.serving.live import Live
from tests.serving.test_commands import picture, slipway

COLUMNS = ("age", "income")
ROW = b"age,city,income\n3,Bonn,0.5\n"
TOLD = {"age": 3, "city": "Bonn", "income": 0.5}
UNITS = "euros"


def price_graph() -> onnx.ModelProto:
    """numeric [batch, 2] and categorical [batch, 1] to prediction [batch]: their sum."""
    nodes = [
        helper.make_node("Cast", ["categorical"], ["place"], to=TensorProto.FLOAT),
        helper.make_node("IsNaN", ["numeric"], ["gap"]),
        helper.make_node("Where", ["gap", "zero", "numeric"], ["known"]),
        helper.make_node("Concat", ["known", "place"], ["all"], axis=1),
        helper.make_node("ReduceSum", ["all", "axis"], ["prediction"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("categorical", TensorProto.INT64, ["batch", 1]),
        ],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch"])],
        [
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    for key, value in (("slipway.schema_version", "1"), ("slipway.labels", "[]")):
        model.metadata_props.add(key=key, value=value)
    return model


def make_price_bundle(folder: Path) -> None:
    numbers = NumericDecoder(columns=COLUMNS, others=("city", "price"))
    cities = CategoricalDecoder(
        columns=("city",), others=(*COLUMNS, "price"), values=(("Bonn", "Köln"),)
    )
    rows = {
        "numeric": np.float32([[np.nan, 1], [1, 2], [3, 4]]),
        "categorical": np.array([[0], [2], [3]]),
    }
    make_bundle(
        folder,
        price_graph(),
        (
            Input(name="numeric", dtype="float32", shape=("batch", 2), decoder=numbers, units="1"),
            Input(name="categorical", dtype="int64", shape=("batch", 1), decoder=cities, units="1"),
        ),
        (Output(name="prediction", dtype="float32", shape=("batch",), units=UNITS),),
        rows,
        name="price",
        task="regression",
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    make_price_bundle(folder / "price" / "1")
    _, (logits, probabilities) = digits_interface()
    held = probabilities.model_copy(update={"threshold": 0.05})
    make_bundle(folder / "tags" / "1", outputs=(logits, held), name="tags", task="multilabel")
    return folder


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(bundles, tmp_path_factory.mktemp("log"))
    yield live
    assert live.stop() == 0


@pytest.fixture
def client(server: Live) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{server.port}") as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/csv", ROW),
        ("text/csv; charset=utf-8", ROW),
        ("text/tab-separated-values", ROW.replace(b",", b"\t")),
        ("application/json", json.dumps(TOLD).encode()),
        ("application/octet-stream", ROW),
        ("", ROW),
    ],
)
def test_a_row_in_any_content_type_gets_a_number_in_its_units(
    server: Live, kind: str, body: bytes
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    status, _, answer = server.ask("POST", "/v2/models/price/predict", body, headers)
    told = json.loads(answer)
    assert status == 200, told
    bundle = told.pop("parameters")["bundle"]
    assert len(bundle) == 64
    assert told == {"model_name": "price", "model_version": "1", "prediction": 5.5, "units": UNITS}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"age,city,incme\n1,Bonn,2\n", "unknown columns: 'incme' (did you mean 'income'?)"),
        (b"age,city\n1,Bonn\n", "missing columns: 'income'"),
        (b'age,city,income\n1,Bonn,"1,5"\n', "write it with a decimal point"),
        (b'{"age": "old", "city": null, "income": null}', "column 'age': 'old' is no number"),
        (b"\x89PNG", "not UTF-8"),
    ],
)
def test_a_bad_row_is_the_senders_fault_by_column(client: Client, body: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.predict("price", body)
    assert told in str(caught.value)


def test_both_clients_and_the_command_say_what_the_server_says(
    server: Live, client: Client, bundles: Path, tmp_path: Path
) -> None:
    async def ask() -> Prediction:
        async with AsyncClient(f"http://127.0.0.1:{server.port}") as asynchronous:
            return await asynchronous.predict("price", ROW)

    prediction = client.predict("price", ROW)
    assert prediction == asyncio.run(ask())
    assert (prediction.prediction, prediction.units, prediction.label) == (5.5, UNITS, None)
    file = tmp_path / "row.csv"
    file.write_bytes(ROW.replace(b"Bonn", b"Ulm"))
    for where in (bundles / "price" / "1", f"http://127.0.0.1:{server.port}/v2/models/price"):
        drawn = slipway("predict", where, file)
        assert (
            drawn.stdout == f"4.5 {UNITS}\n"
            and "never seen in training: city 'Ulm'" in drawn.stderr
        )
        told = json.loads(slipway("predict", where, file, "--json").stdout)
        hint = told.pop("hint")
        assert told == {"prediction": 4.5, "units": UNITS} and "city 'Ulm'" in hint


def test_labels_hold_from_the_threshold_on(
    server: Live, client: Client, bundles: Path, tmp_path: Path
) -> None:
    prediction = client.predict("tags", picture(size=(8, 8)))
    assert prediction.label is None and prediction.prediction is None
    assert prediction.labels is not None and set(prediction.probabilities) == set(LABELS)
    held = {label for label, value in prediction.probabilities.items() if value >= 0.05}
    assert set(prediction.labels) == held and 0 < len(held) < 10
    assert list(prediction.labels) == [n for n in prediction.probabilities if n in held]
    told = json.loads(
        slipway("predict", bundles / "tags" / "1", "-", "--json", given=picture(size=(8, 8))).stdout
    )
    assert told["labels"] == list(prediction.labels) and "label" not in told
    drawn = slipway("predict", bundles / "tags" / "1", "-", given=picture(size=(8, 8))).stdout
    assert drawn.startswith(", ".join(prediction.labels))


def test_what_the_documents_tell(server: Live) -> None:
    told = server.json("GET", "/openapi.json")[1]
    said = {
        name: told["paths"][f"/v2/models/{name}/predict"]["post"]["responses"]["200"]["content"][
            "application/json"
        ]["schema"]["required"]
        for name in ("price", "tags")
    }
    assert said["price"] == ["model_name", "model_version", "prediction", "units"]
    assert said["tags"] == ["model_name", "model_version", "labels", "probabilities"]
    # The first golden row has a gap, which JSON has no word for: another is shown.
    infer = told["paths"]["/v2/models/price/infer"]["post"]["requestBody"]["content"]
    assert infer["application/json"]["example"]["inputs"][0]["data"] == [1, 2]
    # So the page, as the file that its command sends.
    pages = {name: server.ask("GET", f"/docs/{name}")[2].decode() for name in ("price", "tags")}
    assert "age,income,city\n1.0,2.0,Bonn\n" in pages["price"]


def test_only_pictures_can_be_dark_on_light(server: Live, bundles: Path) -> None:
    told = server.json("GET", "/openapi.json")[1]["paths"]
    for name, pictures in (("price", False), ("tags", True)):
        page = server.ask("GET", f"/docs/{name}")[2].decode()
        asked = told[f"/v2/models/{name}/predict"]["post"]["parameters"]
        queries = {parameter["name"] for parameter in asked if parameter["in"] == "query"}
        assert ('data-part="invert"' in page.split("<script>")[0]) is pictures
        assert queries == ({"invert"} if pictures else set())
    status, _, answer = server.ask("POST", "/v2/models/price/predict?invert=true", ROW)
    refused = slipway("predict", bundles / "price" / "1", "-", "--invert", given=ROW)
    assert status == 400 and refused.exit_code == 1
    for said in (answer.decode(), refused.stderr):
        assert "only a picture can be dark on light" in said and "leave it out" in said


def test_a_gap_may_come_as_a_tensor_but_no_infinity(client: Client) -> None:
    rows = {"numeric": np.float32([[np.nan, 1]]), "categorical": np.array([[2]])}
    expected = answers(price_graph().SerializeToString(), rows)["prediction"]
    np.testing.assert_array_equal(client.infer("price", rows)["prediction"], expected)
    rows["numeric"][0, 0] = np.inf
    with pytest.raises(InvalidRequest, match="or NaN for a gap, got infinity"):
        client.infer("price", rows)
