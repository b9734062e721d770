"""Pictures to rows: every mode and size, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pydantic import ValidationError

from pipeline.bundle.decode import DecodeError, decode, encode, hint
from pipeline.bundle.decode.image import MAX_PIXELS, ImageDecoder, looks_inverted

SIDE = 6


def picture_bytes(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def ramp(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Grey levels that all differ by place, uint8 `[height, width]`."""
    return np.linspace(0, 255, height * width).round().astype(np.uint8).reshape(height, width)


def grey(side: int = SIDE, **settings) -> ImageDecoder:
    return ImageDecoder(height=side, width=side, **settings)


@given(
    row=st.sampled_from([1, 3]).flatmap(
        lambda channels: arrays.arrays(
            np.uint8,
            st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(channels)),
        )
    )
)
def test_an_encoded_row_decodes_unchanged(row):
    height, width, channels = row.shape
    decoder = ImageDecoder(height=height, width=width, channels=channels, trim=True, filter="box")
    suffix, payload = encode(decoder, row)
    assert suffix == ".png"
    np.testing.assert_array_equal(decode(decoder, payload), row)


def palette_with_hole() -> Image.Image:
    """Colour 0 is white and transparent, colour 1 grey 100, in columns of three."""
    picture = Image.new("P", (SIDE, SIDE), 1)
    picture.putpalette([255, 255, 255, 100, 100, 100])
    picture.paste(0, (0, 0, 3, SIDE))
    return picture


HALF = np.repeat([[0, 100]], 3, axis=1).repeat(SIDE, axis=0).reshape(SIDE, 2, 3).reshape(SIDE, SIDE)
"""Left half 0, right half 100: `palette_with_hole` on black."""

MODES = {
    "1": (Image.fromarray(ramp() > 127), {}, np.where(ramp() > 127, 255, 0)),
    "L": (Image.fromarray(ramp()), {}, ramp()),
    "LA": (
        Image.merge(
            "LA", [Image.fromarray(ramp()), Image.fromarray(np.where(HALF, 255, 0).astype("u1"))]
        ),
        {},
        np.where(HALF, ramp(), 0),
    ),
    "P with transparency": (palette_with_hole(), {"transparency": 0}, HALF),
    "L with transparency": (
        Image.fromarray(HALF.astype("u1") + 5),
        {"transparency": 105},
        np.where(HALF, 0, 5),
    ),
    "RGB": (Image.fromarray(np.dstack([ramp()] * 3)), {}, ramp()),
    "RGBA": (
        Image.fromarray(np.dstack([ramp()] * 3 + [np.where(HALF, 255, 0).astype("u1")])),
        {},
        np.where(HALF, ramp(), 0),
    ),
    "I;16": (Image.fromarray(ramp().astype(np.uint16) * 257), {}, ramp()),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_colour(name, channels):
    picture, options, expected = MODES[name]
    row = decode(grey(channels=channels), picture_bytes(picture, **options))
    assert row.dtype == np.uint8 and row.shape == (SIDE, SIDE, channels)
    for channel in range(channels):
        np.testing.assert_array_equal(row[..., channel], expected)


def test_a_cmyk_jpeg_is_read():
    picture = Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 155))
    payload = picture_bytes(picture, "JPEG", quality=100)
    assert np.abs(decode(grey(), payload).astype(int) - 100).max() <= 3
    assert np.abs(decode(grey(channels=3), payload).astype(int) - 100).max() <= 3


def test_colour_is_kept_or_weighed():
    red = picture_bytes(Image.new("RGB", (SIDE, SIDE), (200, 0, 0)))
    assert decode(grey(channels=3), red)[0, 0].tolist() == [200, 0, 0]
    assert decode(grey(), red)[0, 0, 0] == round(200 * 0.299)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "PPM", "WEBP"])
def test_lossless_formats_agree(format):
    options = {"lossless": True} if format == "WEBP" else {}
    payload = picture_bytes(Image.fromarray(ramp()), format, **options)
    assert np.abs(decode(grey(), payload)[..., 0].astype(int) - ramp()).max() <= 1


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_a_camera_picture_is_turned_upright(orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = ramp(SIDE, SIDE + 2)
    payload = picture_bytes(Image.fromarray(stored), exif=exif)
    expected = turned(stored)
    decoder = ImageDecoder(height=expected.shape[0], width=expected.shape[1])
    np.testing.assert_array_equal(decode(decoder, payload)[..., 0], expected)


@pytest.mark.parametrize("filter", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (40, 40), (200, 7)])
def test_any_size_is_brought_to_the_models(filter, size):
    row = decode(grey(filter=filter), picture_bytes(Image.new("L", size, 90)))
    assert row.shape == (SIDE, SIDE, 1) and row.max() <= 100


def test_box_is_the_mean_of_whole_blocks():
    large = np.random.default_rng(0).integers(0, 256, (SIDE * 4, SIDE * 4), np.uint8)
    row = decode(grey(filter="box"), picture_bytes(Image.fromarray(large)))
    blocks = large.reshape(SIDE, 4, SIDE, 4).mean((1, 3))
    assert np.abs(row[..., 0] - blocks).max() < 1  # each direction is rounded on its own


def test_pad_stretch_and_crop_meet_another_shape():
    wide = picture_bytes(Image.new("L", (12, 6), 200))
    pad, stretch, crop = (decode(grey(fit=fit), wide)[..., 0] for fit in ("pad", "stretch", "crop"))
    assert pad[0].max() == 0 and pad[-1].max() == 0 and pad[3].min() == 200
    assert stretch.min() == crop.min() == 200

    half = np.zeros((6, 12), np.uint8)
    half[:, 3:9] = 200  # what a crop to a square keeps
    half_bytes = picture_bytes(Image.fromarray(half))
    assert decode(grey(fit="crop"), half_bytes).min() == 200
    assert decode(grey(fit="stretch", filter="box"), half_bytes)[0, 0, 0] == 0


def test_trim_cuts_the_empty_border_away():
    large = np.full((50, 80), 20, np.uint8)  # a grey that is still background
    large[10:22, 30:42] = 255
    payload = picture_bytes(Image.fromarray(large))
    assert decode(grey(trim=True, filter="box"), payload).min() == 255
    assert decode(grey(filter="box"), payload).max() < 255


def test_trim_leaves_an_empty_picture_alone():
    payload = picture_bytes(Image.new("L", (30, 30), 7))
    assert decode(grey(trim=True), payload).tolist() == np.full((SIDE, SIDE, 1), 7).tolist()


def test_margin_frames_the_picture():
    row = decode(grey(margin=2), picture_bytes(Image.new("L", (30, 30), 200)))[..., 0]
    expected = np.pad(np.full((2, 2), 200), 2)
    np.testing.assert_array_equal(row, expected)


def test_a_margin_without_room_is_refused():
    with pytest.raises(ValidationError, match="3 pixels on each side leave nothing of 6x6"):
        grey(margin=3)


@pytest.mark.parametrize("size", [SIDE, 3 * SIDE])
def test_invert_reads_dark_on_light_as_light_on_dark(size):
    light = np.zeros((size, size), np.uint8)
    light[size // 3 : size // 2] = 230
    plain = decode(grey(trim=True), picture_bytes(Image.fromarray(light)))
    dark = picture_bytes(Image.fromarray(255 - light))
    np.testing.assert_array_equal(decode(grey(trim=True), dark, invert=True), plain)
    assert looks_inverted(grey(), dark)
    assert not looks_inverted(grey(), picture_bytes(Image.fromarray(light)))


def test_a_hint_needs_to_know_what_was_learned_and_goes_both_ways():
    light = np.zeros((40, 40), np.uint8)
    light[10:30, 15:25] = 255
    on_black, on_white = (picture_bytes(Image.fromarray(a)) for a in (light, 255 - light))
    strokes = grey(trim=True)
    assert "try --invert" in hint(strokes, on_white)
    assert hint(strokes, on_white, invert=True) is hint(strokes, on_black) is None
    assert "leave out --invert" in hint(strokes, on_black, invert=True)
    assert not any(hint(grey(), p, invert=i) for p in (on_black, on_white) for i in (False, True))
    see_through = io.BytesIO()  # its strokes: what shows depends on what is behind them
    Image.fromarray(light == 0).save(see_through, "PNG", transparency=0)
    assert hint(strokes, see_through.getvalue()) is None
    assert "leave out --invert" in hint(strokes, see_through.getvalue(), invert=True)


def test_invert_takes_transparent_for_light():
    clear = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    assert decode(grey(), picture_bytes(clear), invert=True).max() == 0
    assert decode(grey(), picture_bytes(clear)).max() == 0


def test_a_test_row_blown_up_on_paper_comes_back(digits: Path):
    from pipeline import prepared

    decoder = prepared.read_manifest(digits).inputs[0].decoder
    rows = prepared.read(digits, "test").arrays["image"]
    compared = 0
    for row in rows:
        drawn = np.argwhere(row[..., 0] > 25)
        low, high = drawn.min(0), drawn.max(0)
        if (high - low).max() < 7 or (low + high != 7).any():
            continue  # trimmed, it would be enlarged or moved to the middle
        compared += 1
        blown = np.kron(row[..., 0], np.ones((20, 20), np.uint8))
        paper = np.zeros((200, 300), np.uint8)
        paper[25:185, 60:220] = blown
        back = decode(decoder, picture_bytes(Image.fromarray(255 - paper)), invert=True)
        nearly = np.where(row > 25, row, back)  # what is fainter may be trimmed away
        assert np.abs(back.astype(int) - nearly).max() <= 1
    assert compared >= 20, compared


def test_a_moving_picture_is_refused():
    frames = [Image.new("L", (SIDE, SIDE), level) for level in (0, 200)]
    payload = picture_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DecodeError, match="2 frames; expected one still picture"):
        decode(grey(), payload)


def test_a_picture_that_unfolds_to_too_many_pixels_is_refused():
    side = int(MAX_PIXELS**0.5) + 1
    payload = picture_bytes(Image.new("1", (side, side)))
    assert len(payload) < 20_000
    with pytest.raises(DecodeError, match=f"{side}x{side} pixels; at most {MAX_PIXELS}"):
        decode(grey(), payload)


def test_a_picture_beyond_pillows_own_limit_is_refused():
    payload = picture_bytes(Image.new("1", (14_000, 14_000)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DecodeError, match="picture"):
            decode(grey(), payload)


ROOT = Path(__file__).parents[3]
LARGE = """
import io
from PIL import Image
from pipeline.bundle.decode import DecodeError, decode, hint
from pipeline.bundle.decode.image import ImageDecoder
buffer = io.BytesIO()
Image.new("1", (10_000, 9_000)).save(buffer, "PNG")
try:
    decode(ImageDecoder(height=8, width=8, channels=1), buffer.getvalue())
except DecodeError as error:
    print(error)
"""


def test_a_large_picture_is_refused_in_our_words_alone():
    """Pillow would warn of it on standard error, where a server's log is."""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", LARGE], cwd=ROOT, capture_output=True, text=True
    )
    assert f"10000x9000 pixels; at most {MAX_PIXELS}" in done.stdout and done.stderr == ""


LONG = """
import io
from PIL import Image
from pipeline.bundle.decode import decode, hint
from pipeline.bundle.decode.image import ImageDecoder
from tests.memory import peak_bytes
for size in ((20_000_000, 1), (1, 20_000_000)):
    buffer = io.BytesIO()
    Image.new("L", size, 255).save(buffer, "PNG")
    assert decode(ImageDecoder(height=8, width=8), buffer.getvalue()).shape == (8, 8, 1)
    print(len(buffer.getvalue()), peak_bytes() >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory")
def test_a_long_thin_picture_takes_no_gigabytes():
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)){LONG}"
    done = subprocess.run(
        [sys.executable, "-c", limited], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    for line in done.stdout.splitlines():
        file_bytes, megabytes = map(int, line.split())
        assert file_bytes < 100_000 and megabytes < 1000


@given(cut=st.floats(0, 0.95))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM"])
def test_a_truncated_picture_is_refused(format, cut):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    payload = picture_bytes(Image.fromarray(noise), format)
    with pytest.raises(DecodeError, match="not a readable picture"):
        decode(grey(), payload[: int(cut * len(payload))])


@given(payload=st.binary(max_size=200))
def test_anything_else_is_refused(payload):
    with pytest.raises(DecodeError, match=r"not a readable picture \(PNG, JPEG"):
        decode(grey(), payload)


@given(place=st.integers(0), value=st.integers(0, 255))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM"])
def test_a_damaged_picture_is_a_row_or_a_refusal(format, place, value):
    payload = bytearray(picture_bytes(Image.fromarray(ramp(30, 30)), format))
    payload[place % len(payload)] = value
    try:
        row = decode(grey(), bytes(payload))
    except DecodeError:
        return
    assert row.shape == (SIDE, SIDE, 1)


@pytest.mark.parametrize("format", ["TIFF", "ICO", "TGA"])
def test_formats_not_offered_are_refused(format):
    payload = picture_bytes(Image.new("L", (32, 32)), format)
    with pytest.raises(DecodeError, match="not a readable picture"):
        decode(grey(), payload)


def test_samples_that_are_no_16_bit_levels_are_refused():
    for level in (np.nan, -1.0, 70000.0):
        floats = Image.fromarray(np.full((SIDE, SIDE), level, np.float32))
        with pytest.raises(DecodeError, match="outside 16 bits"):
            decode(grey(), picture_bytes(floats, "PPM"))


def test_a_photograph_is_cleared_of_its_paper_and_cut_to_what_is_drawn() -> None:
    """Grey, unevenly lit, grainy paper with one dark stroke far off the middle."""
    random = np.random.default_rng(0)
    light = np.linspace(150, 190, 600)[None, :] + np.linspace(0, 20, 400)[:, None]
    light[100:200, 420:440] = 40  # the stroke: 100 high, 20 wide
    sheet = np.clip(light + random.normal(0, 5, light.shape), 0, 255).astype(np.uint8)
    decoder = ImageDecoder(height=10, width=10, fit="pad", filter="box", trim=True)
    row = decode(decoder, picture_bytes(Image.fromarray(sheet)), invert=True)[:, :, 0]
    assert row[:, 4:6].min() > 150
    assert row[:, :3].max() < 60 and row[:, 7:].max() < 60
