"""The commands of a host, as people call them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline import cli
from pipeline.bundle.decode import decode
from pipeline.bundle.decode.image import ImageDecoder
from pipeline.bundle.manifest import read
from serving.client import Client
from tests.serving.bundles import answers, digits_graph, make_bundle, make_series_bundle
from tests.serving.live import ROOT, Live
from tests.serving.test_control import with_ballast

DECODER = ImageDecoder(height=8, width=8, channels=1)


def slipway(*arguments: str | Path, given: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], input=given)


def picture(
    mode: str = "L", size: tuple[int, int] = (8, 8), kind: str = "PNG", **more: object
) -> bytes:
    """A bright stroke on black, in any mode and size."""
    levels = np.zeros((size[1], size[0]), np.uint8)
    levels[size[1] // 4 : -size[1] // 4, size[0] // 3 : -size[0] // 3] = 230
    grey = Image.fromarray(levels)
    if mode == "I;16":
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    elif mode == "P":
        image = grey.convert("P", palette=Image.Palette.ADAPTIVE)
    else:
        image = grey.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("RGB", (20, 30), "JPEG", exif=exif.tobytes())


PICTURES = {
    "exact": picture(),
    "large": picture(size=(100, 60)),
    "tall": picture(size=(9, 200)),
    "one pixel": picture(size=(1, 1)),
    "palette": picture("P", (17, 23)),
    "rgba": picture("RGBA", (30, 30)),
    "grey with alpha": picture("LA", (30, 30)),
    "colour": picture("RGB", (31, 17)),
    "one bit": picture("1", (16, 16)),
    "16 bit": picture("I;16", (24, 24)),
    "cmyk jpeg": picture("CMYK", (24, 24), "JPEG"),
    "bmp": picture("RGB", (24, 24), "BMP"),
    "gif": picture("P", (24, 24), "GIF"),
    "webp": picture("RGB", (24, 24), "WEBP"),
    "exif": rotated(),
}


def animation() -> bytes:
    frames = [Image.new("L", (8, 8), level) for level in (0, 99)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


NO_PICTURES: dict[str, bytes | Callable[[], bytes]] = {
    "truncated": picture(size=(100, 60))[:-40],
    "cut in the head": picture()[:20],
    "text": b"three",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zeros": b"\0" * 5000,
    "animated": animation(),
    "400 megapixels": bomb,  # made where it is asked for: it takes as many bytes
}


@pytest.fixture(scope="module")
def one_model(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """A server of just one model."""
    live = Live(bundle, tmp_path_factory.mktemp("one"))
    yield live
    assert live.stop() == 0


@pytest.mark.parametrize("name", PICTURES)
def test_bundle_and_server_say_the_same_of_any_picture(
    one_model: Live, bundle: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "picture"
    file.write_bytes(PICTURES[name])
    here = slipway("predict", bundle, file, "--json")
    there = slipway("predict", f"http://127.0.0.1:{one_model.port}", file, "--json")
    assert here.exit_code == there.exit_code == 0, here.output + there.output
    assert json.loads(here.stdout) == json.loads(there.stdout)
    row = decode(DECODER, PICTURES[name])[None]
    wanted = answers(digits_graph().SerializeToString(), {"image": row})["probabilities"][0]
    told = json.loads(here.stdout)
    assert told["label"] == str(wanted.argmax())
    np.testing.assert_allclose(
        [told["probabilities"][str(n)] for n in range(10)], wanted, atol=1e-6
    )
    assert list(told["probabilities"].values()) == sorted(
        told["probabilities"].values(), reverse=True
    )


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture(one_model: Live, bundle: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "file"
    content = NO_PICTURES[name]
    file.write_bytes(content() if callable(content) else content)
    for where in (bundle, f"http://127.0.0.1:{one_model.port}"):
        result = slipway("predict", where, file)
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith(f"error: {file}: ") and "picture" in result.stderr


def test_people_get_bars(bundle: Path) -> None:
    result = slipway("predict", bundle, "-", given=picture())
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == lines[2].split()[0] and "%" in lines[2] and "#" in lines[2]
    assert len(lines) == 12 and result.stderr == ""


def test_ink_on_paper(one_model: Live, bundle: Path) -> None:
    paper = Image.open(io.BytesIO(picture(size=(40, 40)))).point(lambda level: 255 - level)
    buffer = io.BytesIO()
    paper.save(buffer, "PNG")
    drawn, url = buffer.getvalue(), f"http://127.0.0.1:{one_model.port}/v2/models/digits-test"
    for where in (bundle, url):
        plain = slipway("predict", where, "-", "--json", given=drawn)
        inverted = slipway("predict", where, "-", "--json", "--invert", given=drawn)
        assert plain.stderr == inverted.stderr == "", "nothing says what this model learned"
        assert json.loads(plain.stdout) != json.loads(inverted.stdout)
        original = slipway("predict", where, "-", "--json", given=picture(size=(40, 40)))
        assert json.loads(inverted.stdout) == json.loads(original.stdout)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def strokes_on_nothing(level: int) -> bytes:
    """A transparent picture with strokes of one grey level, as drawing programs save them."""
    image = Image.new("LA", (60, 40), (level, 0))
    image.paste((level, 255), (25, 5, 32, 35))
    return png(image)


WHITE, BLACK = png(Image.new("L", (60, 40), 255)), png(Image.new("L", (8, 8), 0))


@pytest.mark.parametrize(
    ("payload", "options", "told"),
    [
        (strokes_on_nothing(0), (), "black (level 0 of 255) all over; try --invert"),
        (strokes_on_nothing(0), ("--invert",), None),
        (strokes_on_nothing(255), ("--invert",), "all over; leave out --invert"),
        (strokes_on_nothing(255), (), None),
        (WHITE, (), "white (level 255 of 255) all over, with --invert and without"),
        (WHITE, ("--invert",), "black (level 0 of 255) all over, with --invert and without"),
        (BLACK, (), "black (level 0 of 255) all over, with --invert and without"),
        (png(Image.new("RGB", (9, 9), (90, 90, 90))), (), "grey (level 90 of 255)"),
    ],
)
def test_a_picture_with_nothing_drawn(
    one_model: Live, bundle: Path, payload: bytes, options: tuple[str, ...], told: str | None
) -> None:
    for where in (bundle, f"http://127.0.0.1:{one_model.port}"):
        result = slipway("predict", where, "-", "--json", *options, given=payload)
        assert result.exit_code == 0 and json.loads(result.stdout)["label"]
        if told is None:
            assert result.stderr == "" and "hint" not in json.loads(result.stdout)
        else:
            (line,) = result.stderr.splitlines()
            assert line.startswith("hint: nothing is drawn") and told in line
            assert line == f"hint: {json.loads(result.stdout)['hint']}"


def test_the_answer_of_a_server_has_the_hint(one_model: Live) -> None:
    path = "/v2/models/digits-test/predict"
    told = []
    for payload in (strokes_on_nothing(0), strokes_on_nothing(255)):
        status, _, body = one_model.ask("POST", path, payload)
        assert status == 200
        told.append(json.loads(body)["parameters"].get("hint"))
    assert told[0].startswith("nothing is drawn") and "; try ?invert=true (" in told[0]
    assert told[1] is None
    with Client(f"http://127.0.0.1:{one_model.port}") as client:
        assert client.predict("digits-test", strokes_on_nothing(0)).hint == told[0]


def test_a_stroke_too_thin_for_the_model(bundle: Path) -> None:
    page = Image.new("L", (400, 400), 0)
    page.paste(255, (200, 100, 202, 300))
    result = slipway("predict", bundle, "-", given=png(page))
    assert result.exit_code == 0 and "at the model's 8x8 pixels" in result.stderr


def test_curl_works_as_people_type_it(one_model: Live) -> None:
    for type_ in ("", "image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": type_} if type_ else {}
        status, _, body = one_model.ask(
            "POST", "/v2/models/digits-test/versions/1/predict?invert=false", picture(), headers
        )
        answer = json.loads(body)
        assert status == 200
        assert set(answer) == {
            "model_name",
            "model_version",
            "label",
            "probabilities",
            "parameters",
        }
        assert len(answer["parameters"]["bundle"]) == 64
        assert next(iter(answer["probabilities"])) == answer["label"]


def test_servers_of_several_models_ask_which(server: Live) -> None:
    address = f"http://127.0.0.1:{server.port}"
    result = slipway("predict", address, "-", given=picture())
    assert result.exit_code == 1
    assert f"{address}/v2/models/digits-test" in result.stderr
    assert (
        slipway("predict", f"{address}/v2/models/digits-test", "-", given=picture()).exit_code == 0
    )
    wrong = slipway("predict", f"{address}/v2/models/digit-test", "-", given=picture())
    assert wrong.exit_code == 1 and "did you mean 'digits-test'" in wrong.stderr
    tensors = slipway("predict", f"{address}/v2/models/series", "-", given=picture())
    assert tensors.exit_code == 1 and "takes tensors" in tensors.stderr


def test_a_folder_of_data_gives_way_to_the_bundle_of_its_name(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, tmp_path / "bundles" / "pets")
    (tmp_path / "pets" / "cats").mkdir(parents=True)
    (tmp_path / "pets" / "cats" / "1.png").write_bytes(picture())
    assert slipway("predict", "pets", "pets/cats/1.png").exit_code == 0
    assert slipway("inspect", "pets").exit_code == 0
    (tmp_path / "pets" / "other" / "1").mkdir(parents=True)
    (tmp_path / "pets" / "other" / "1" / "manifest.json").touch()  # now a repository
    assert "pets" in slipway("inspect", "pets").stderr


@pytest.mark.parametrize(
    ("where", "file", "code", "told"),
    [
        ("http://127.0.0.1:9", "-", 1, "is the server running?"),
        ("http://127.0.0.1:9/other", "-", 1, "http://HOST:PORT"),
        ("http://127.0.0.1:9/v2/models/m/versions", "-", 1, "http://HOST:PORT"),
        ("nowhere", "-", 2, "no such folder"),
        ("{bundle}", "nofile.png", 2, "nofile.png: cannot be read"),
        ("{bundle}", "{bundle}", 2, "cannot be read"),
        ("{bundle}/card.md", "-", 2, "not a folder"),
    ],
)
def test_friendly_mistakes(bundle: Path, where: str, file: str, code: int, told: str) -> None:
    place = where.replace("{bundle}", str(bundle))
    result = slipway("predict", place, file.replace("{bundle}", str(bundle)), given=picture())
    assert result.exit_code == code and told in result.stderr, result.stderr


def test_nothing_on_standard_input(bundle: Path) -> None:
    result = slipway("predict", bundle, "-", given=b"")
    assert result.exit_code == 1 and "empty" in result.stderr


def test_bare_names(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundle, tmp_path / "bundles" / "digits-test")
    monkeypatch.chdir(tmp_path)
    assert slipway("predict", "digits-test", "-", given=picture()).exit_code == 0
    assert slipway("verify", "digits-test").exit_code == 0
    wrong = slipway("inspect", "digit")
    assert wrong.exit_code == 2 and "bundles here: digits-test" in wrong.stderr


def test_a_bundle_that_reads_no_files(tmp_path: Path) -> None:
    make_series_bundle(tmp_path / "series")
    result = slipway("predict", tmp_path / "series", "-", given=picture())
    assert result.exit_code == 1 and "takes tensors" in result.stderr


def test_inspect(bundle: Path) -> None:
    found = read(bundle)
    result = slipway("inspect", bundle)
    assert result.exit_code == 0
    for part in (
        "digits-test",
        found.digest,
        "classification",
        "uint8 [batch, 8, 8, 1]",
        "0, 1, 2, 3",
        "variant fp32",
        "admitted",
        "accuracy",
        "golden.npz",
        found.manifest.files["model.onnx"].sha256,
    ):
        assert part in result.stdout
    told = json.loads(slipway("inspect", bundle, "--json").stdout)
    assert told["digest"] == found.digest and told["manifest"]["name"] == "digits-test"


def test_verify(bundle: Path, tmp_path: Path) -> None:
    result = slipway("verify", bundle)
    assert result.exit_code == 0, result.output
    for part in ("whole", "graph", "session", "golden", "8 rows", "proven"):
        assert part in result.stdout
    make_bundle(tmp_path / "wrong", admitted=False)
    refused = slipway("verify", tmp_path / "wrong")
    assert refused.exit_code == 1 and "not admitted" in refused.stderr
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "model.onnx").write_bytes(b"x" * (copy / "model.onnx").stat().st_size)
    for command in ("verify", "inspect"):
        damaged = slipway(command, copy)
        assert damaged.exit_code == 1 and "model.onnx" in damaged.stderr
    cuda = slipway("verify", bundle, "--provider", "require")
    assert cuda.exit_code == 1 and "serve-cuda" in cuda.stderr


POOR = """
import resource, sys
from pathlib import Path
import serving.inference.model
from pipeline import cli
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (int(sys.argv[2]) << 20),) * 2)
cli.main(["verify", sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux limits memory")
def test_a_model_too_large_for_the_memory_is_one_line(tmp_path: Path) -> None:
    graph = digits_graph()
    with_ballast(graph, np.random.default_rng(0).normal(size=16 << 20).astype(np.float32))
    make_bundle(tmp_path / "b", graph)
    for spare in (40, 100, 150):  # MiB: not even read; not parsed; not opened, of 64 MiB of weights
        done = subprocess.run(
            [sys.executable, "-c", POOR, tmp_path / "b", str(spare)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "memory" in done.stderr, (spare, done)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


# The table of commands


def test_help_is_instant_and_wakes_nothing() -> None:
    began = time.monotonic()
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(roots & {'numpy', 'pydantic', 'onnxruntime', 'torch', 'serving', 'stages'})"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert told.endswith("set()\n")
    assert time.monotonic() - began < 2
    for name in cli.COMMANDS:
        assert f"  {name} " in told


@pytest.mark.parametrize(("typed", "meant"), [("serv", "serve"), ("predcit", "predict")])
def test_near_misses(typed: str, meant: str) -> None:
    result = slipway(typed)
    assert result.exit_code == 2 and f"Did you mean '{meant}'?" in result.stderr


def test_nothing_near() -> None:
    result = slipway("xyzzy")
    assert result.exit_code == 2 and "serve, predict" in result.stderr


@pytest.mark.parametrize("name", ["serve", "predict", "inspect", "verify"])
def test_every_command_here_has_help(name: str) -> None:
    result = slipway(name, "--help")
    assert result.exit_code == 0 and "Usage" in result.stdout


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Callable[[str], object]:
        def load(module: str) -> object:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return load

    monkeypatch.setattr(cli.importlib, "import_module", missing("mlflow"))
    result = slipway("register")
    assert result.exit_code == 1 and "pip install 'slipway[train]'" in result.stderr
    monkeypatch.setattr(cli.importlib, "import_module", missing("onnx"))
    assert "pip install 'slipway[serve]'" in slipway("serve", "x").stderr
    monkeypatch.setattr(cli.importlib, "import_module", missing("stages.commands"))
    assert "not part of this installation" in slipway("init").stderr


def test_a_missing_package_found_late_names_the_extra(bundle: Path, tmp_path: Path) -> None:
    """`serve` imports what is heavy only when it runs."""
    (tmp_path / "uvloop.py").write_text("raise ModuleNotFoundError('no', name='uvloop')")
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "serve", str(bundle), "--port", "0", "--no-grpc"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        check=False,
    )
    assert result.returncode == 1
    assert "pip install 'slipway[serve]'" in result.stderr and "Traceback" not in result.stderr
