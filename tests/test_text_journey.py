"""A file of texts to an answer: trained, proven and served, by whichever way it is asked."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.bench_files import compare
from pipeline.bundle import manifest
from serving.commands.predict import command as predict
from stages.params import load
from tests.project import through
from tests.serving.live import Live, tensor

SMS = Path(os.environ.get("SLIPWAY_DATA", "")) / "text" / "sms-spam.tsv"
ROWS = 400
WORDS = 'call me NOW, ok "free" £100 prize! Gr8 café ﬁne été день ::-) u r l8 home txt'
PARAMS = """\
experiments:
  messages:
    data:
      name: texts
      path: messages.tsv
      quoting: false
      longest: 24
      embedding: {width: 12}
      title: messages
    model: {name: recurrent, cell: gru, width: 8, pooling: mean}
    task: {name: classification}
    train: {lr: 0.02, epochs: 2, batch_size: 32, seed: 1, augment: {drop_tokens: 0.1}}
    metrics: [accuracy, f1]
    export: {opset: 20, golden_rows: 6}
"""


def lines() -> list[str]:
    """Real messages where there are any, else as odd ones: capitals, quotes, marks, other scripts."""
    if SMS.is_file():
        return SMS.read_text("utf-8").splitlines()[: ROWS + 1]
    draw = random.Random(0)
    words = [*WORDS.split(), "WIN!"]
    texts = (" ".join(draw.choices(words, k=draw.randint(1, 40))) for _ in range(ROWS))
    made = (f"{'spam' if n % 4 == 0 else 'ham'}\t{text} {n}" for n, text in enumerate(texts))
    return ["label\ttext", *made]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment over a few hundred messages."""
    folder = tmp_path_factory.mktemp("messages")
    (folder / "messages.tsv").write_text("\n".join(lines()), "utf-8")
    (folder / "params.yaml").write_text(PARAMS)
    through(folder, "messages", "prepare", "train", "evaluate", "export", "verify")
    return folder


@pytest.mark.slow
def test_a_text_is_answered_as_its_prepared_row_is(project: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    bundle = project / "bundles" / "messages"
    live = Live(bundle, tmp_path / "logs")
    try:
        url = f"http://127.0.0.1:{live.port}"
        found = compare(load(project / "params.yaml")["messages"], project, url)
        assert found.files > 70 and found.equal == found.identical == found.files, found.wrong

        text = 'Your FREE prize: call 08001234, or txt "WIN"! ' * 9
        (tmp_path / "message.txt").write_text(text)
        status, _, answer = live.ask(
            "POST", "/v2/models/messages/predict", text.encode(), {"Content-Type": "text/plain"}
        )
        assert status == 200
        said = json.loads(answer)
        told = [{part: said[part] for part in ("label", "probabilities")}]
        told[0]["hint"] = said["parameters"]["hint"]  # the text is longer than the model looks
        for where in (str(bundle), url):
            done = CliRunner().invoke(predict, [where, str(tmp_path / "message.txt"), "--json"])
            assert done.exit_code == 0, done.output
            told.append(json.loads(done.stdout))
        tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        ids = np.array([tokenizer.encode(text, add_special_tokens=False).ids[:24]], np.int64)
        request = {"inputs": [tensor("token_ids", ids, "INT64")]}
        outputs = live.json("POST", "/v2/models/messages/infer", request)[1]["outputs"]
        (row,) = (output["data"] for output in outputs if output["name"] == "probabilities")
        labels = manifest.read(bundle).manifest.outputs[0].labels
        assert told[0] == told[1] == told[2] and told[0]["label"] == labels[int(np.argmax(row))]
        said = [told[0]["probabilities"][label] for label in labels]
        assert np.array_equal(np.float32(said), np.float32(row))

        for body, kind, code, reason in (
            (b"caf\xe9", "text/plain", 400, "not UTF-8 text: byte 0xe9 at place 3"),
            (b"a\0b", "text/plain", 400, "NUL at character 1"),
            ("a".encode("utf-16"), "text/plain", 400, "UTF-16"),
            (b"a" * ((1 << 20) + 1), "text/plain", 400, "at most 1048576 are read"),
            (b"a", "image/png", 415, "text/plain"),
        ):
            status, _, answer = live.ask(
                "POST", "/v2/models/messages/predict", body, {"Content-Type": kind}
            )
            assert status == code and reason in answer.decode(), answer
        assert "Traceback" not in live.told()
    finally:
        assert live.stop() == 0
