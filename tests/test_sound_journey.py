"""A folder of sounds to an answer: trained, proven and served, whatever the file it comes in."""

from __future__ import annotations

import io
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from pipeline import prepared
from pipeline.bundle import manifest
from serving.commands.predict import command as predict
from tests.pipeline import test_sounds as sounds
from tests.project import through
from tests.serving.live import Live

PARAMS = """\
experiments:
  tones:
    data:
      name: sounds
      path: set
      rate: 8000
      cut: {seconds: 0.3}
      frontend: {mels: 16, segments: 8}
      title: tones
    model: {name: cnn, depth: 2, convolutions: 1, width: 8}
    task: {name: classification}
    train:
      lr: 0.01
      epochs: 6
      batch_size: 8
      seed: 1
      augment: {speed: 0.05, time_shift: 0.1, noise: 20, gain: 6}
    metrics: [accuracy]
    export: {opset: 20}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished experiment over short tones, two classes of twenty."""
    folder = tmp_path_factory.mktemp("tones")
    sounds.classes(folder / "set", count=20)
    (folder / "params.yaml").write_text(PARAMS)
    through(folder, "tones", "prepare", "train", "evaluate", "export", "verify")
    return folder


def copies(payload: bytes) -> dict[str, bytes]:
    """The same sound in other files."""
    sound, rate = soundfile.read(io.BytesIO(payload), dtype="int16")

    def written(kind: str, values: np.ndarray, **options: str) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, values, rate, format=kind, **options)
        return buffer.getvalue()

    import soxr

    faster = io.BytesIO()
    soundfile.write(faster, soxr.resample(sound, rate, 44100), 44100, format="WAV")
    return {
        "flac": written("FLAC", sound),
        "ogg": written("OGG", sound),
        "stereo": written("WAV", np.stack([sound, sound], 1)),
        "44100": faster.getvalue(),
    }


@pytest.mark.slow
def test_a_file_is_answered_as_its_prepared_row_is(project: Path, tmp_path: Path) -> None:
    bundle = project / "bundles" / "tones"
    made = manifest.read(bundle).manifest
    assert made.metrics["accuracy"] == 1.0
    for output, tolerance in made.variants["fp32"].parity.tolerance.items():
        assert tolerance >= 1e-4, output  # as the frontend says
    for picture in ("mistakes.png", "attributions.png"):
        assert (project / "reports" / "tones" / "pictures" / picture).stat().st_size > 5000
    assert {p.suffix for p in (project / "reports" / "tones" / "samples").iterdir()} == {".wav"}

    live = Live(bundle, tmp_path / "logs")
    try:
        address = f"http://127.0.0.1:{live.port}/v2/models/tones"

        def asked(path: str, body: bytes, content: str) -> dict:
            request = urllib.request.Request(address + path, body, {"Content-Type": content})
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)

        rows = prepared.read(project / "build" / "tones" / "data", "test")
        for number, file in enumerate(
            prepared.read_files(project / "build" / "tones" / "data", "test") or []
        ):
            payload = (project / "set" / file).read_bytes()
            answer = asked("/predict", payload, "audio/wav")
            row = rows.take(slice(number, number + 1))["waveform"]
            tensor = {
                "name": "waveform",
                "datatype": "INT16",
                "shape": list(row.shape),
                "data": row.ravel().tolist(),
            }
            outputs = asked("/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json")
            (probabilities,) = (
                o["data"] for o in outputs["outputs"] if o["name"] == "probabilities"
            )
            said = [answer["probabilities"][label] for label in ("high", "low")]
            np.testing.assert_allclose(said, probabilities, atol=1e-6)
            assert answer["label"] == file.partition("/")[0]
            if not number:
                for kind, copy in copies(payload).items():
                    alike = asked("/predict", copy, "audio/x")["probabilities"]
                    assert abs(alike["high"] - said[0]) < 0.1, kind

        page = urllib.request.urlopen(f"http://127.0.0.1:{live.port}/docs").read().decode()
        assert "@sound.wav" in page and "@picture.png" not in page
        document = json.load(urllib.request.urlopen(f"http://127.0.0.1:{live.port}/openapi.json"))
        assert "audio/*" in json.dumps(document)
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked("/predict", payload[:-100], "audio/wav")
        assert refused.value.code == 400
        assert b"sound cut short: 100 bytes" in refused.value.read()
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked("/predict", payload, "video/mp4")
        assert b"audio/*" in refused.value.read()
    finally:
        live.process.terminate()
        assert live.process.wait(15) == 0

    long = sounds.sound(tmp_path / "long.flac", 3, sounds.HERTZ["high"], 2.0, 22050)
    done = CliRunner().invoke(predict, [str(bundle), str(long)])
    assert done.exit_code == 0 and done.stdout.startswith("high\n"), done.output
    assert "only 0.3 s of 2.0 s are heard" in done.stderr
