"""A server of texts: bundles whose tokenizer is hostile, damaged or another model's serve nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from pipeline import tokens
from pipeline.bundle.decode.text import MAX_TOKENIZER, TOKENIZER, TextDecoder
from pipeline.bundle.manifest import Input, Output
from pipeline.tokens import Vocabulary
from tests.manifests import OPSET
from tests.serving.bundles import make_bundle
from tests.serving.live import Live

TRAINED = tokens.trained(["a good film", "a bad film", "bad day"], Vocabulary(least=1))
SETTINGS: dict[str, Any] = json.loads(TRAINED)
PLACES = tokens.places(TRAINED)
ROWS = np.array([[2, 3, 0], [4, 1, 2]], np.int64)
TEXT = {"Content-Type": "text/plain"}
ENDLESS = {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Removed", "invert": False}
DEEP = {"type": "Lowercase"}
for _ in range(200):
    DEEP = {"type": "Sequence", "normalizers": [DEEP]}


def changed(**parts: object) -> bytes:
    return json.dumps(SETTINGS | parts).encode()


def model(**parts: object) -> bytes:
    return changed(model=SETTINGS["model"] | parts)


HOSTILE = {
    "damaged": (TRAINED[:-40], "no tokenizer"),
    "huge": (b" " * (MAX_TOKENIZER + 1), f"{MAX_TOKENIZER + 1} bytes, at most"),
    "brackets": (b"[" * 100_000, "no tokenizer"),
    "nested": (changed(normalizer=DEEP), "normalizer: 201 parts, at most"),
    "parts": (
        changed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9999}),
        "normalizer: 10000 parts, at most",
    ),
    "endless": (changed(pre_tokenizer=ENDLESS), "pre_tokenizer: 'Split' is none of"),
    "decoding": (
        changed(decoder={"type": "Replace", "pattern": {"Regex": "(a{999}){999}"}, "content": ""}),
        "decoder: 'Replace' is none of",
    ),
    "smaller": (
        model(vocab={"[padding]": 0, "[unknown]": 1}),
        f"2 tokens, and the manifest says {PLACES}",
    ),
    "elsewhere": (
        model(vocab={word: 7 * n for word, n in SETTINGS["model"]["vocab"].items()}),
        f"ids that are not 0 to {PLACES - 1}",
    ),
    "unknowing": (model(unk_token="good"), "has another id than 1"),
    "speechless": (model(unk_token="nowhere"), TOKENIZER),
    "cubic": (
        changed(
            model={
                "type": "WordPiece",
                "vocab": SETTINGS["model"]["vocab"],
                "unk_token": "[unknown]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 1 << 40,
            }
        ),
        "words of more than 1000 characters",
    ),
}


def make_texts_bundle(folder: Path, name: str, tokenizer: bytes) -> None:
    """`token_ids` int64 [batch, tokens] to the mean id, of a model whose tokenizer is this file."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["token_ids"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers", "axis"], ["prediction"], keepdims=0),
        ],
        "model",
        [helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    declared = Input(
        name="token_ids",
        dtype="int64",
        shape=("batch", "tokens"),
        decoder=TextDecoder(longest=5, vocabulary=PLACES),
        padding=0,
        units="id of a token",
    )
    make_bundle(
        folder,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10),
        (declared,),
        (Output(name="prediction", dtype="float32", shape=("batch",), units="id"),),
        {"token_ids": ROWS},
        name=name,
        task="means",
        files={TOKENIZER: tokenizer},
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("texts")
    make_texts_bundle(folder / "good" / "1", "good", TRAINED)
    make_texts_bundle(folder / "swapped" / "1", "swapped", TRAINED)
    (folder / "swapped" / "1" / TOKENIZER).write_bytes(
        changed(padding=None, truncation=None) + b" "
    )
    for name, (content, _) in HOSTILE.items():
        make_texts_bundle(folder / name / "1", name, content)
    live = Live(folder, tmp_path_factory.mktemp("logs"))
    yield live
    assert live.stop() == 0


def test_what_is_wrong_with_a_tokenizer_is_told_when_it_is_loaded_and_others_serve(
    server: Live,
) -> None:
    status, index = server.json("POST", "/v2/repository/index")
    assert status == 200
    told = {model["name"]: model for model in index}
    assert told.pop("good")["state"] == "READY"
    swapped = told.pop("swapped")
    assert swapped["state"] == "UNAVAILABLE" and f"{TOKENIZER}: " in swapped["reason"]
    assert told.keys() == HOSTILE.keys()
    for name, (_, reason) in HOSTILE.items():
        assert told[name]["state"] == "UNAVAILABLE", name
        assert TOKENIZER in told[name]["reason"] and reason in told[name]["reason"], told[name]
        assert server.ask("POST", f"/v2/models/{name}/predict", b"good", TEXT)[0] == 503
    words = SETTINGS["model"]["vocab"]
    text = b"good zebra bad"
    status, _, answer = server.ask("POST", "/v2/models/good/predict", text, TEXT)
    expected = (words["good"] + 1 + words["bad"]) / 3
    assert status == 200 and np.isclose(json.loads(answer)["prediction"], expected)
    assert "Traceback" not in server.told()


def test_a_long_text_keeps_nobody_waiting(server: Live) -> None:
    """One word of a second's work is cut beside the event loop, which answers meanwhile."""
    text, answered = "\ufdfa".encode() * 60_000, 0
    slow = Thread(target=server.ask, args=("POST", "/v2/models/good/predict", text, TEXT))
    slow.start()
    while slow.is_alive():
        answered += server.ask("GET", "/v2/health/live")[0] == 200
    slow.join()
    assert answered > 5
