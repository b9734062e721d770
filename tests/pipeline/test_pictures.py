"""Folders of pictures: what is read, what is passed over, and what is refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import prepared
from pipeline.bundle.decode import decode
from pipeline.config import ConfigError, build
from pipeline.data import pictures
from pipeline.dataset import DataError, Encoded, RawData, Split, Stream
from pipeline.folders.source import MAX_BYTES
from pipeline.prepared import Rows
from pipeline.split import SPLITS

SIDE = 12


def picture(
    path: Path, seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB", **options: Any
) -> Path:
    """A picture of noise, no two seeds alike; its format follows from the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    Image.fromarray(noise.squeeze(), mode).save(path, **options)
    return path


def classes(folder: Path, labels: str = "ab", count: int = 10, seed: int = 0) -> Path:
    for place, label in enumerate(labels):
        for number in range(count):
            picture(folder / label / f"{number}.png", seed + 100_000 * place + number)
    return folder


def config(**settings: Any) -> pictures.Config:
    given = {"name": "pictures", "path": "set", "height": SIDE, "width": SIDE, **settings}
    return build(pictures.Config, given, "data")


def prepare(root: Path, **settings: Any) -> dict[str, Rows]:
    chosen = config(**settings)
    raw = pictures.load(chosen, root)
    prepared.prepare("pictures", raw, chosen.split, root / "out")
    return {part: prepared.read(root / "out", part) for part in SPLITS}


def refusal(root: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare(root, **settings)
    return str(caught.value)


def test_rows_are_what_the_server_decodes(tmp_path):
    classes(tmp_path / "set")
    parts = prepare(tmp_path, fit={"fit": "crop", "filter": "lanczos"})
    assert sum(len(rows) for rows in parts.values()) == 20
    (declared,) = prepared.read_manifest(tmp_path / "out").inputs
    assert declared.decoder.fit == "crop" and declared.decoder.filter == "lanczos"
    for part, rows in parts.items():
        files = prepared.read_files(tmp_path / "out", part)
        for file, row, target in zip(files, rows.arrays["image"], rows.target, strict=True):
            payload = (tmp_path / "set" / file).read_bytes()
            np.testing.assert_array_equal(row, decode(declared.decoder, payload))
            assert file.startswith("ab"[target])


@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_and_format_comes_to_one_size(tmp_path, channels):
    folder = classes(tmp_path / "set", count=10)
    for number, (suffix, mode) in enumerate(
        [
            ("png", "L"),
            ("png", "RGBA"),
            ("png", "LA"),
            ("png", "RGB"),
            ("jpg", "L"),
            ("JPEG", "CMYK"),
            ("webp", "RGBA"),
            ("bmp", "RGB"),
            ("gif", "L"),
            ("pgm", "L"),
            ("ppm", "RGB"),
        ]
    ):
        picture(folder / "c" / f"{number}.{suffix}", 500 + number, (5 + 9 * number, 30), mode)
    deep = np.random.default_rng(3).integers(0, 65536, (9, 9)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "c" / "deep.png")
    rows = prepare(tmp_path, channels=channels)["train"].arrays["image"]
    assert rows.shape[1:] == (SIDE, SIDE, channels) and rows.dtype == np.uint8


def test_a_telephones_picture_stands_upright(tmp_path):
    folder = classes(tmp_path / "set")
    levels = np.zeros((SIDE, SIDE, 3), np.uint8)
    levels[:, :3] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see: left is up
    Image.fromarray(levels).save(folder / "a" / "turned.png", exif=exif)
    parts = prepare(tmp_path)
    files = {f: r for p in parts for r, f in enumerate(prepared.read_files(tmp_path / "out", p))}
    (part,) = (p for p in parts if "a/turned.png" in prepared.read_files(tmp_path / "out", p))
    row = parts[part].arrays["image"][files["a/turned.png"]]
    assert row[:3].min() == 255 and row[3:].max() == 0


def test_classes_are_in_the_order_people_count(tmp_path):
    for number, label in enumerate(["s10", "s2", "S1", "x"]):
        picture(tmp_path / "set" / label / "deep" / "er.png", number)
    assert pictures.scan(tmp_path / "set").classes == ("S1", "s2", "s10", "x")


@pytest.mark.parametrize(
    ("names", "shares"),
    [
        (("train", "val", "test"), (20, 10, 6)),
        (("Training", "dev", "testing"), (20, 10, 6)),
        (("train", "test"), (16, 4, 6)),
        (("train", "valid"), (14, 10, 6)),
        (("train",), (14, 2, 4)),
    ],
)
def test_a_given_split_is_kept_and_completed(tmp_path, names, shares):
    counts = {"tr": 10, "va": 5, "de": 5, "te": 3}
    for number, name in enumerate(names):
        classes(tmp_path / "set" / name, count=counts[name[:2].lower()], seed=1000 * number)
    parts = prepare(tmp_path, split={"validation": 0.1 if len(names) < 2 else 0.2, "test": 0.2})
    given = {"train": "train", "Training": "train", "test": "test", "testing": "test"}
    found = {part: len(rows) for part, rows in parts.items()}
    if names == ("train", "valid"):
        shares = (16, 10, 4)
    assert tuple(found.values()) == shares
    for name in names:
        part = given.get(name, "validation")
        files = prepared.read_files(tmp_path / "out", part)
        if part != "train":
            assert all(file.startswith(f"{name}/") for file in files)


def test_a_class_may_be_called_train(tmp_path):
    classes(tmp_path / "set", labels="b")
    for number in range(10):
        picture(tmp_path / "set" / "train" / f"{number}.png", 900 + number)
    assert pictures.scan(tmp_path / "set").classes == ("b", "train")


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("train", "test"), "test/: pictures outside any class\n  train/: pictures"),
        (("train/a", "train/b", "val/a", "val/b", "rest"), "rest/: beside train/ and val/"),
    ],
)
def test_a_split_is_never_taught_as_classes(tmp_path, folders, told):
    for place, folder in enumerate(folders):
        for number in range(5):
            picture(tmp_path / "set" / folder / f"{number}.png", 10 * place + number)
    with pytest.raises(DataError, match=f"called as a split is(.|\n)*{told}"):
        pictures.scan(tmp_path / "set")


def test_the_test_set_may_be_told_by_names(tmp_path):
    classes(tmp_path / "set")
    prepare(tmp_path, test_files=["8.*", "9.png"])
    assert prepared.read_files(tmp_path / "out", "test") == [
        "a/8.png",
        "a/9.png",
        "b/8.png",
        "b/9.png",
    ]
    assert "no file is called x*" in refusal(tmp_path, test_files=["9.*", "x*"])


def test_what_is_no_picture_is_ignored_and_counted(tmp_path, capsys):
    folder = classes(tmp_path / "set")
    for name in (
        "a/notes.txt",
        "a/more.txt",
        "b/.hidden.png",
        "b/Thumbs.db",
        "README",
        ".DS_Store",
    ):
        (folder / name).write_bytes(b"x")
    (folder / "__MACOSX" / "a").mkdir(parents=True)
    picture(folder / "__MACOSX" / "a" / "1.png", 77)
    picture(folder / "b" / ".cache" / "1.png", 78)
    found = pictures.scan(folder)
    assert len(found.files) == 20
    assert found.ignored == {
        ".txt": 2,
        "hidden": 2,
        "litter": 1,
        "without a suffix": 1,
        "hidden or litter folders": 1,
    }
    prepare(tmp_path)
    assert "7 files ignored: 2 .txt" in capsys.readouterr().out


def corrupt(folder: Path) -> str:
    (folder / "a" / "0.png").write_bytes(b"no picture")
    return "a/0.png: not a readable picture"


def truncated(folder: Path) -> str:
    path = folder / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:-200])
    return "b/3.png: not a readable picture"


def nothing_in_it(folder: Path) -> str:
    (folder / "a" / "7.png").write_bytes(b"")
    return "a/7.png: not a readable picture"


def bomb(folder: Path) -> str:
    Image.new("1", (30000, 30000)).save(folder / "a" / "bomb.png")
    return "a/bomb.png: not a readable picture"


def too_large(folder: Path) -> str:
    Image.new("1", (8000, 8000)).save(folder / "a" / "large.png")
    return "a/large.png: picture of 8000x8000 pixels; at most 50000000 are decoded"


def huge(folder: Path) -> str:
    with open(folder / "a" / "huge.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    return "a/huge.jpg: 268435457 bytes; at most 268435456"


def film(folder: Path) -> str:
    frames = [Image.new("L", (8, 8), n) for n in range(0, 250, 50)]
    frames[0].save(folder / "b" / "film.gif", save_all=True, append_images=frames[1:])
    return "b/film.gif: picture with 5 frames"


def empty_class(folder: Path) -> str:
    (folder / "c").mkdir()
    (folder / "c" / "list.csv").write_text("x")
    return "c/: a class without pictures (1 .csv ignored)"


def loose(folder: Path) -> str:
    picture(folder / "stray.png", 1)
    return "stray.png: a picture outside any class"


def no_classes(folder: Path) -> str:
    for path in sorted(folder.rglob("*.png")):
        path.rename(folder / f"{path.parent.name}{path.name}")
    for path in list(folder.iterdir()):
        if path.is_dir():
            path.rmdir()
    return "no folders of classes, but 20 pictures directly in it"


def one_class(folder: Path) -> str:
    for path in (folder / "b").iterdir():
        path.unlink()
    (folder / "b").rmdir()
    return "one class only (a)"


def two_labels(folder: Path) -> str:
    (folder / "b" / "copy.png").write_bytes((folder / "a" / "4.png").read_bytes())
    return "a/4.png (a) and b/copy.png (b)"


def split_up(folder: Path) -> None:
    (folder / "train").mkdir()
    for label in "ab":
        (folder / label).rename(folder / "train" / label)
    classes(folder / "test", seed=5000, count=4)


def leak(folder: Path) -> str:
    split_up(folder)
    (folder / "test" / "a" / "copy.png").write_bytes(
        (folder / "train" / "a" / "4.png").read_bytes()
    )
    return "test/a/copy.png (test) and train/a/4.png (train)"


def one_sided(folder: Path) -> str:
    split_up(folder)
    picture(folder / "test" / "zebra" / "1.png", 9)
    return "zebra: in test only, not in train"


def no_train(folder: Path) -> str:
    split_up(folder)
    (folder / "train").rename(folder / "val")
    return "there is test and validation, but no train folder"


def outside_a_class(folder: Path) -> str:
    split_up(folder)
    picture(folder / "train" / "stray.png", 1)
    return "train/stray.png: a picture outside any class"


DIRT = [
    corrupt,
    truncated,
    nothing_in_it,
    bomb,
    too_large,
    huge,
    film,
    empty_class,
    loose,
    no_classes,
    one_class,
    two_labels,
    leak,
    one_sided,
    no_train,
    outside_a_class,
]


@pytest.mark.parametrize("spoil", DIRT)
def test_dirty_data_is_refused_by_name(tmp_path, spoil):
    classes(tmp_path / "set")
    told = spoil(tmp_path / "set")
    assert told in refusal(tmp_path)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_dark_strokes_on_nothing_are_told_of_before_they_are_refused_as_equal(tmp_path, capsys):
    for number in range(12):
        drawn = Image.new("RGBA", (20, 16))
        drawn.paste((0, 0, 0, 255), (2, 2, 4 + number, 9))
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(path)
    assert "different labels" in refusal(tmp_path)
    told = capsys.readouterr().out
    assert "12 pictures show nothing" in told and "save such pictures on white" in told


def test_every_mistake_is_told_and_the_rest_counted(tmp_path):
    folder = classes(tmp_path / "set", count=30)
    for number in range(25):
        (folder / "a" / f"{number}.png").write_bytes(b"no")
    message = refusal(tmp_path)
    assert "mend or remove them:\n" in message
    assert message.count("not a readable picture") == 20 and "... and 5 more" in message


def test_names_and_contents_at_fault_are_one_error(tmp_path):
    folder = classes(tmp_path / "set", count=3)
    (folder / "a" / "0.png").write_bytes(b"no")
    (folder / "nothing").mkdir()
    message = refusal(tmp_path)
    assert "nothing/: a class without pictures" in message
    assert "a/0.png: not a readable picture" in message


def test_a_folder_that_is_not_there_is_told(tmp_path):
    assert "expected a folder with one folder of pictures for each class" in refusal(tmp_path)


def test_a_margin_needs_room():
    with pytest.raises(ConfigError, match=r"margin: 6 pixels on each side leave nothing"):
        config(fit={"margin": 6})


MEASURE = """
import sys
from pathlib import Path
from pipeline import prepared
from pipeline.data import pictures

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) // 1024

seen = []
real = pictures.decode
def watched(*arguments):
    seen.append(anonymous())
    return real(*arguments)

pictures.decode = watched
real_write = prepared.packed.write
def write(*arguments):
    answer = real_write(*arguments)
    seen.append(anonymous())
    return answer

prepared.packed.write = write
for name in sys.argv[2:]:
    config = pictures.Config(name="pictures", path=name, height=128, width=128)
    raw = pictures.load(config, Path(sys.argv[1]))
    prepared.prepare(name, raw, config.split, Path(sys.argv[1], "out", name))
    print(max(seen))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    classes(tmp_path / "small", count=20)
    classes(tmp_path / "large", count=1000, labels="ab")  # 98 MB of pixels once prepared
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), "small", "large"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    small, large = (int(line) for line in done.stdout.splitlines())
    assert large - small < 60, f"{small} MB with 40 pictures, {large} MB with 2,000"


def test_a_stream_must_keep_its_word(tmp_path):
    classes(tmp_path / "set")
    raw = pictures.load(config(), tmp_path)
    stream = raw.rows.arrays["image"]
    assert isinstance(stream, Stream)
    for rows, why in (
        (lambda: iter(list(stream.rows())[:-1]), "20 rows announced, 19 came"),
        (lambda: (row[:-1] for row in stream.rows()), r"declared uint8 \[12, 12, 3\], row 0 is"),
    ):
        broken = RawData(
            Encoded(raw.rows.inputs, {"image": Stream(20, rows)}), raw.target, raw.labels
        )
        with pytest.raises(DataError, match=why):
            prepared.prepare("x", broken, Split(), tmp_path / "out")
