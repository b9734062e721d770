"""A row becomes a model and a request becomes an answer, and they agree.

The serving side runs as on a host: in a process where torch, DVC, MLflow and the rest of the training
half cannot be imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.project import QUICK, ROOT, Project
from tests.serving.live import Live

pytestmark = pytest.mark.slow

TRAINING_ONLY = (
    "torch",
    "dvc",
    "mlflow",
    "sklearn",
    "safetensors",
    "matplotlib",
    "pandas",
    "ruamel",
    "stages",
)


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> dict[str, str]:
    """An environment in which importing anything of the training half fails."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {TRAINING_ONLY!r}:\n"
        "            raise ModuleNotFoundError(f'not on a host: {name}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def server(finished: Project, host: dict[str, str], tmp_path_factory) -> Iterator[Live]:
    """The finished project's bundle, served by a host."""
    bundle, logs = finished.folder / "bundles" / QUICK, tmp_path_factory.mktemp("logs")
    live = Live(bundle, logs, python_path=host["PYTHONPATH"])
    yield live
    live.process.terminate()
    assert live.process.wait(15) == 0


@pytest.fixture(scope="module")
def torch_said(finished: Project) -> dict[str, np.ndarray]:
    """Torch's answers over the test split, as `evaluate` kept them."""
    return load_file(finished.folder / "build" / QUICK / "answers.safetensors")


@pytest.fixture(scope="module")
def rows(finished: Project) -> dict[str, np.ndarray]:
    """The prepared test split."""
    return load_file(finished.folder / "build" / QUICK / "data" / "test.safetensors")


def test_every_test_row_is_answered_as_torch_answered(server, rows, torch_said) -> None:
    images = rows["image"]
    body = {
        "inputs": [
            {
                "name": "image",
                "shape": list(images.shape),
                "datatype": "UINT8",
                "data": images.ravel().tolist(),
            }
        ]
    }
    status, answer = server.json("POST", f"/v2/models/{QUICK}/infer", body)
    assert status == 200
    outputs = {
        o["name"]: np.array(o["data"], np.float32).reshape(o["shape"]) for o in answer["outputs"]
    }
    np.testing.assert_allclose(outputs["probabilities"], torch_said["probabilities"], atol=1e-5)
    assert (outputs["logits"].argmax(1) == torch_said["logits"].argmax(1)).all()


def test_the_answer_names_the_bundle_that_was_built(server, finished: Project) -> None:
    expected = hashlib.sha256(
        (finished.folder / "bundles" / QUICK / "manifest.json").read_bytes()
    ).hexdigest()
    _, metadata = server.json("GET", f"/v2/models/{QUICK}")
    assert metadata["properties"]["bundle"] == expected


def test_sample_files_are_answered_alike_by_bundle_server_and_torch(
    server, finished: Project, host: dict[str, str], rows, torch_said
) -> None:
    samples = finished.folder / "reports" / QUICK / "samples"
    files = [samples / f"{digit}.png" for digit in range(10)]
    bundle, address = finished.folder / "bundles" / QUICK, f"http://127.0.0.1:{server.port}"
    told = [_predict(host, where, *files) for where in (bundle, address)]
    assert told[0] == told[1]
    for digit, answer in enumerate(told[0]):
        row = int(np.flatnonzero(rows["target"] == digit)[0])
        assert answer["label"] == str(torch_said["logits"][row].argmax())
        found = [answer["probabilities"][label] for label in "0123456789"]
        np.testing.assert_allclose(found, torch_said["probabilities"][row], atol=1e-5)


def test_a_large_picture_with_dark_strokes_is_read_as_the_small_bright_one(
    finished: Project, host: dict[str, str], rows, tmp_path: Path
) -> None:
    from PIL import Image, ImageOps

    image = rows["image"][0, :, :, 0]
    large = Image.fromarray(image).resize((320, 320), Image.Resampling.NEAREST)
    sheet = Image.new("L", (500, 700))
    sheet.paste(large, (90, 200))
    picture = tmp_path / "photo.jpg"
    ImageOps.invert(sheet).convert("RGB").save(picture, quality=95)
    bundle = finished.folder / "bundles" / QUICK
    small = tmp_path / "small.png"
    Image.fromarray(image).save(small)
    (large_one,) = _predict(host, bundle, picture, options=("--invert",))
    (small_one,) = _predict(host, bundle, small)
    assert large_one["label"] == small_one["label"]


ASK = """
import sys
from pipeline.cli import main

where, options, files = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
for file in files:
    main(["predict", where, file, "--json", *options], standalone_mode=False)
"""


def _predict(
    host: dict[str, str], where: object, *files: Path, options: tuple[str, ...] = ()
) -> list[dict]:
    """What `slipway predict` answers to each file; on a host, in one process for all."""
    command = [sys.executable, "-c", ASK, str(where), " ".join(options), *map(str, files)]
    done = subprocess.run(command, env=host, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
