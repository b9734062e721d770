"""Sound files to samples: what comes through, what is cut, and what is refused by name."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bundle import decode as registry
from pipeline.bundle.decode import DecodeError, DecoderMissing, decode, drawn, encode, hint
from pipeline.bundle.decode import sound as sounds
from pipeline.bundle.decode.sound import SoundDecoder
from pipeline.bundle.manifest import Input, Output
from serving.errors import Unsupported
from serving.inference import prediction
from tests.manifests import sound_manifest

RATE = 8000


def decoder(**settings: Any) -> SoundDecoder:
    return SoundDecoder(**{"rate": RATE, "seconds": 1.0, **settings})


def tone(seconds: float = 0.5, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """float64 `[samples]`, fading in and out, a little over half of full scale."""
    time = np.arange(round(seconds * rate)) / rate
    fade = np.minimum(1, np.minimum(time, seconds - time) / 0.02)
    return 0.6 * np.sin(2 * np.pi * hertz * time) * fade


def file(
    sound: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


WAV = file(tone())


def refusal(payload: bytes, **settings: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(decoder(**settings), payload)
    return str(caught.value)


def test_sixteen_bits_at_the_rate_pass_through_untouched():
    row = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    assert decode(decoder(), file(row)).dtype == np.int16
    np.testing.assert_array_equal(decode(decoder(), file(row)), row)
    np.testing.assert_array_equal(decode(decoder(), file(row, kind="FLAC")), row)
    np.testing.assert_array_equal(decode(decoder(), file(np.stack([row, row], 1))), row)
    suffix, payload = encode(decoder(), row)
    assert suffix == ".wav"
    np.testing.assert_array_equal(decode(decoder(), payload), row)


@pytest.mark.parametrize(
    ("kind", "subtype", "rate", "channels", "apart"),
    [
        ("WAV", "PCM_U8", RATE, 1, 0.01),
        ("WAV", "PCM_24", RATE, 1, 1e-4),
        ("WAV", "FLOAT", RATE, 2, 1e-4),
        ("WAVEX", "PCM_16", 44100, 6, 1e-3),
        ("RF64", "PCM_16", 22050, 1, 1e-3),
        ("FLAC", "PCM_16", 48000, 2, 1e-3),
        ("OGG", "VORBIS", 16000, 1, None),
        ("OGG", "OPUS", 48000, 2, None),
        ("MP3", None, 44100, 2, None),
        ("WAV", "PCM_16", 4000, 1, 0.01),
    ],
)
def test_any_format_rate_and_channels_come_to_the_same_samples(
    kind, subtype, rate, channels, apart
):
    copy = np.repeat(tone(rate=rate)[:, None], channels, 1)
    row = decode(decoder(), file(copy, rate, kind, subtype)) / 32768
    assert abs(len(row) - len(tone())) < (2 if apart else 0.2 * RATE)
    if apart:
        row = np.pad(row, (0, 2))[: len(tone())]  # zeros at the end are dropped
        assert np.abs(row - tone()).max() < apart
    else:  # with loss, and a little late: an encoder need not say by how much
        assert abs(np.abs(np.fft.rfft(row, RATE)).argmax() - 440) < 5
        assert abs(row.std() / tone().std() - 1) < 0.2


def test_what_is_longer_is_cut_at_its_start_or_about_its_middle():
    ramp = np.arange(1, 3 * RATE + 1).astype(np.int16)
    np.testing.assert_array_equal(decode(decoder(), file(ramp)), ramp[:RATE])
    np.testing.assert_array_equal(decode(decoder(keep="centre"), file(ramp)), ramp[RATE : 2 * RATE])
    assert len(decode(decoder(seconds=0.25), file(tone(3, 44100), 44100))) <= RATE // 4


def test_silent_ends_are_taken_off_where_asked_for():
    quiet = 0.0005 * np.random.default_rng(1).normal(size=RATE)
    payload = file(np.concatenate([quiet, tone(), quiet]))
    assert len(decode(decoder(seconds=9), payload)) == len(quiet) * 2 + len(tone())
    row = decode(decoder(seconds=9, trim=40), payload)
    assert len(tone()) < len(row) < len(tone()) + 0.1 * RATE
    assert not decode(decoder(trim=40), file(np.zeros(RATE))).any()


def test_zeros_at_the_end_are_dropped_and_a_sample_is_left():
    np.testing.assert_array_equal(
        decode(decoder(), file(np.array([0, 5, 0, 7, 0, 0], np.int16))), [0, 5, 0, 7]
    )
    for shortest in (file(np.zeros(9)), file(np.zeros(1), 48000), file(np.ones(1), 48000)):
        assert len(decode(decoder(), shortest)) == 1


def test_floats_beyond_full_scale_are_clipped():
    row = decode(decoder(), file(np.array([3.0, -3.0, 0.5]), subtype="FLOAT"))
    np.testing.assert_array_equal(row, [32767, -32768, 16384])


def spoilt_flac(length: int = 0) -> bytes:
    payload = bytearray(file(tone(), kind="FLAC"))
    middle = len(payload) // 2
    payload[middle : middle + 400] = bytes(400)
    return bytes(payload)


def with_rate(rate: int) -> bytes:
    return WAV[:24] + struct.pack("<I", rate) + WAV[28:]


NOISE = np.random.default_rng(2).normal(size=20000) * 0.1
OGG = file(NOISE, 22050, "OGG")
FLAC = file(NOISE, 22050, "FLAC")
HOSTILE = {
    "empty": (b"", "0 bytes in none of these formats"),
    "text": (b"no sound at all", "not a readable sound (WAV, FLAC, OGG, MP3): 15 bytes"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "in none of these formats"),
    "another sound": (file(tone(), kind="AIFF"), "in none of these formats"),
    "head only": (WAV[:12], "not a readable sound"),
    "cut wav": (WAV[:-1000], "sound cut short: 1000 bytes of it are missing at the end"),
    "cut ogg": (OGG[:-100], "sound cut short"),
    "cut flac": (FLAC[: len(FLAC) // 2], "sound"),
    "damaged flac": (spoilt_flac(), "sound"),
    "no samples": (file(np.zeros(0)), "sound without a sample"),
    "nan": (file(np.array([0.1, np.nan]), subtype="FLOAT"), "sample 1 is no finite number"),
    "inf": (file(np.array([np.inf, 0]), subtype="FLOAT"), "sample 0 is no finite number"),
    "slow": (with_rate(10), "sound of 10 samples a second; expected 1000 to 384000"),
    "fast": (with_rate(4_000_000), "sound of 4000000 samples a second"),
    "channels": (file(np.zeros((9, 17))), "sound of 17 channels; at most 16 are read"),
    "long": (
        file(np.zeros(301 * 1000, np.int16), 1000),
        "sound of 301 s (301000 samples); at most",
    ),
    "bomb": (
        file(np.zeros(31_000_000, np.int16), 384_000, "FLAC"),
        "and 30000000 samples are read",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_whole_sound_is_refused_by_name(name):
    payload, told = HOSTILE[name]
    assert told in refusal(payload)


def test_a_wav_whose_writer_could_not_go_back_is_read_to_its_end():
    for size in sounds.OPEN_ENDED[1:]:
        endless = WAV[:4] + struct.pack("<I", size) + WAV[8:40] + struct.pack("<I", size) + WAV[44:]
        assert len(decode(decoder(), endless)) == len(decode(decoder(), WAV))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([WAV, FLAC, OGG]), st.integers(0, 1 << 30), st.binary(max_size=40))
def test_damage_is_refused_or_read_and_nothing_else(payload, place, damage):
    place %= len(payload)
    try:
        row = decode(decoder(), payload[:place] + damage + payload[place + len(damage) :])
    except DecodeError as error:
        assert "sound" in str(error)
    else:
        assert row.dtype == np.int16 and 1 <= len(row) <= RATE


def test_a_hint_tells_of_silence_loudness_and_of_what_is_not_heard():
    assert hint(decoder(), WAV) is None
    assert "nothing is heard" in str(hint(decoder(), file(np.full(RATE, 9, np.int16))))
    assert "too loud" in str(hint(decoder(), file(5 * tone(), subtype="FLOAT")))
    assert "only 1 s of 3.0 s are heard" in str(hint(decoder(), file(tone(3))))
    assert hint(decoder(), b"nothing") is None


def test_a_sound_is_drawn_with_its_pitch_at_its_height():
    row = decode(decoder(), file(tone(hertz=1000)))
    for padded in (row, np.pad(row, (0, 4000))):
        picture = drawn(decoder(), padded)
        assert picture.dtype == np.uint8 and picture.shape == (129, 63)
        loudest = len(picture) - 1 - picture[:, 30].argmax()
        assert abs(loudest * RATE / 2 / 128 - 1000) < 50
    assert drawn(decoder(), np.zeros(1, np.int16)).ndim == 2


def test_nothing_is_woken_before_it_is_needed_and_what_lacks_is_named():
    program = (
        "import sys\nfrom pipeline.bundle import decode\n"
        "print('soundfile' in sys.modules, 'soxr' in sys.modules)\n"
        "sys.modules['soundfile'] = None\n"
        "from pipeline.bundle.decode.sound import SoundDecoder\n"
        "try:\n    decode.decode(SoundDecoder(rate=8000), b'RIFF    WAVE')\n"
        "except decode.DecoderMissing as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("False False\nsounds cannot be read here: soundfile:")
    assert "install libsndfile" in done.stdout


def test_a_host_without_the_library_says_so_at_the_door(monkeypatch):
    def lacks(name: str) -> None:
        raise DecoderMissing(f"sounds cannot be read here: {name}")

    declared = Input(
        name="waveform", dtype="int16", shape=("batch", "samples"), decoder=decoder(), units="level"
    )
    output = Output(
        name="probabilities", dtype="float32", shape=("batch", 2), units="", labels=("a", "b")
    )
    manifest = sound_manifest(
        dict.fromkeys(("model.onnx", "golden.npz", "card.md"), b"x"),
        (declared,),
        (output,),
        name="m",
    )
    row = prediction.row(manifest, {}, WAV, invert=False)["waveform"]
    np.testing.assert_array_equal(row, decode(decoder(), WAV)[None])
    assert prediction.example(manifest) == "sound.wav" and prediction.media(manifest) == ["audio/*"]
    assert set(registry.MEDIA) >= {"audio/", "image/"}
    monkeypatch.setattr(sounds, "_library", lacks)
    with pytest.raises(Unsupported, match=r"sounds cannot be read here: soundfile; tensors go to"):
        prediction.row(manifest, {}, WAV, invert=False)
