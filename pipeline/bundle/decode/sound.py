"""Sounds: a file of any rate and length, mono or stereo, to the model's samples."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.bundle.decode._settings import DecodeError, DecoderMissing, DecoderSettings

MEDIA = ("audio/",)
EXAMPLE = "sound.wav"

MAX_SECONDS = 300
MAX_SAMPLES = 30_000_000
"""Of one channel. A small file can unfold to gigabytes: an hour of silence is a few kilobytes of FLAC."""

MAX_CHANNELS = 16
RATES = (1_000, 384_000)
"""Lowest and highest rate of a file, in samples a second."""

SOUND_FORMATS = ("WAV", "FLAC", "OGG", "MP3")
CONTAINERS = {
    "WAV": "WAV",
    "WAVEX": "WAV",
    "RF64": "WAV",
    "FLAC": "FLAC",
    "OGG": "OGG",
    "MP3": "MP3",
}
BLOCK = 1 << 16
UNKNOWN = 1 << 62
"""What libsndfile says of a length that the file does not tell."""

OPEN_ENDED = (0, 0x7FFFFFFF, 0xFFFFFFFF)
"""Sizes that a WAV has whose writer could not go back to fill them in."""

FULL_SCALE = 32768
SILENT = 33
"""Levels, a thousandth of full scale: a sound that never leaves them says nothing."""

CLIPPED = 0.05
"""Share of samples at the largest level, above which a sound was made too loud."""

WINDOW = 0.032
"""Seconds of a spectrogram's window, as it is drawn; a quarter of it is a step."""

RANGE = 70.0
"""Decibels between white and black in it."""


class Cut(BaseModel):
    """What of a sound is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(
        10.0, gt=0, le=MAX_SECONDS, description="longest sound; what is longer is cut"
    )
    keep: Literal["start", "centre"] = Field(
        "start", description="which part of a longer sound is kept"
    )
    trim: float = Field(
        0.0,
        ge=0,
        le=100,
        description="decibels below the loudest moment at which both ends are silence, taken off "
        "before cutting; 0: nothing is",
    )
    resampling: Literal["low", "medium", "high", "very_high"] = Field(
        "high", description="quality of bringing another rate to the model's"
    )


class SoundDecoder(Cut, DecoderSettings):
    """How a sound file becomes `int16 [samples]` at `rate`, -32768 to 32767.

    Channels are averaged. A mono file of 16 bits that has the rate passes through untouched, save for
    what is cut off; samples beyond full scale are clipped. Zeros at the end are dropped: they are what
    shorter sounds of a batch are filled up with.
    """

    kind: Literal["sound"] = "sound"
    rate: int = Field(ge=RATES[0], le=RATES[1], description="samples a second")

    @property
    def row(self) -> tuple[str]:
        """Samples, of any number."""
        return ("samples",)

    @property
    def longest(self) -> int:
        """Samples that a row has at most."""
        return max(1, round(self.seconds * self.rate))


Settings = SoundDecoder


def decode(
    decoder: SoundDecoder, payload: bytes, _files: Mapping[str, bytes], _invert: bool
) -> np.ndarray:
    """int16 `[samples]`, at least one. Raises `DecodeError`, `DecoderMissing`."""
    enough = None if decoder.trim or decoder.keep == "centre" else decoder.seconds
    sound, rate = _read(payload, enough)
    sound = _kept(sound, rate, decoder)
    if rate != decoder.rate:
        sound = _resampled(sound, rate, decoder)
    levels = np.clip(np.rint(sound[: decoder.longest] * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
    heard = np.flatnonzero(levels)
    row: np.ndarray = levels[: heard[-1] + 1 if len(heard) else 1].astype(np.int16)
    return row if len(row) else np.zeros(1, np.int16)


def encode(
    decoder: SoundDecoder, row: np.ndarray, _files: Mapping[str, bytes]
) -> tuple[str, bytes]:
    """A WAV of the row."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(decoder.rate)
        file.writeframes(row.astype("<i2").tobytes())
    return ".wav", buffer.getvalue()


def hint(
    decoder: SoundDecoder, payload: bytes, files: Mapping[str, bytes], invert: bool
) -> str | None:
    """Whether nothing is heard, far too much, or only a part of the sound."""
    row = decode(decoder, payload, files, invert)
    peak = np.abs(row.astype(np.int32)).max()
    if peak <= SILENT:
        return (
            f"nothing is heard: the largest level is {peak} of {FULL_SCALE}; the answer means "
            "nothing, check the microphone, or which part of the sound is kept"
        )
    if (
        share := float((peak >= FULL_SCALE - 1) * np.mean(np.abs(row.astype(int)) >= peak))
    ) > CLIPPED:
        return (
            f"{share:.0%} of the samples are at the largest level: the sound was recorded too loud, "
            "or a file of floats goes beyond -1 to 1"
        )
    length = seconds_of(payload)
    if length > decoder.seconds + 0.05 and not decoder.trim:
        return (
            f"only {decoder.seconds:g} s of {length:.1f} s are heard, the sound's {decoder.keep}; cut "
            "the sound to what the model shall hear"
        )
    return None


def drawn(decoder: SoundDecoder, row: np.ndarray, _files: Mapping[str, bytes]) -> np.ndarray:
    """uint8 `[bands, moments]`: a spectrogram, deep at the bottom, loud in white."""
    heard = np.flatnonzero(row)
    sound = row[: heard[-1] + 1 if len(heard) else 1].astype(np.float64)
    size = max(16, round(WINDOW * decoder.rate))
    step = size // 4
    moments = max(1, -(-len(sound) // step))
    padded = np.zeros((moments - 1) * step + size)
    padded[size // 2 : size // 2 + len(sound)] = sound[: len(padded) - size // 2]
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    decibels = 10 * np.log10(np.maximum(power, 1.0)).T[::-1]
    levels = 255 * (1 + (decibels - decibels.max()) / RANGE)
    picture: np.ndarray = np.clip(levels, 0, 255).astype(np.uint8)
    return picture


def seconds_of(payload: bytes) -> float:
    """How long a sound is by what its file says; 0 where it does not. Raises `DecodeError`."""
    with _opened(payload) as file:
        frames, rate = int(file.frames), int(file.samplerate)
    return frames / rate if frames < UNKNOWN else 0.0


def rate_of(payload: bytes) -> int:
    """Samples a second that a file says it has. Raises `DecodeError`."""
    with _opened(payload) as file:
        return int(file.samplerate)


def _library(name: Literal["soundfile", "soxr"]) -> ModuleType:
    """Woken on use: a server without sounds never loads it. Raises `DecoderMissing`."""
    import importlib

    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: no libsndfile beside it, nor in the system
        more = "; install libsndfile (Debian: libsndfile1)" if name == "soundfile" else ""
        raise DecoderMissing(f"sounds cannot be read here: {name}: {error}{more}") from error


def _opened(payload: bytes) -> Any:
    """The file, its header read. Raises `DecodeError` for what is no sound or too much of it."""
    _check_kind(payload)
    library = _library("soundfile")
    try:
        file = library.SoundFile(io.BytesIO(payload))
    except Exception as error:  # libsndfile's message is inside; a damaged file may raise others
        raise DecodeError(f"not a readable sound ({', '.join(SOUND_FORMATS)}): {error}") from error
    if file.format not in CONTAINERS:
        raise DecodeError(f"a sound of format {file.format}; expected {', '.join(SOUND_FORMATS)}")
    if file.channels > MAX_CHANNELS:
        raise DecodeError(f"sound of {file.channels} channels; at most {MAX_CHANNELS} are read")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise DecodeError(
            f"sound of {file.samplerate} samples a second; expected {RATES[0]} to {RATES[1]}"
        )
    if file.frames < UNKNOWN:
        _check_length(file.frames, file.samplerate)
    return file


def _check_kind(payload: bytes) -> None:
    """Only these reach libsndfile, which reads two dozen formats. Raises `DecodeError`."""
    head = payload[:12]
    is_wav = head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE"
    is_mp3 = head[:3] == b"ID3" or (len(head) > 3 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)
    if not (is_wav or is_mp3 or head[:4] in (b"fLaC", b"OggS")):
        raise DecodeError(
            f"not a readable sound ({', '.join(SOUND_FORMATS)}): {len(payload)} bytes in none of "
            "these formats"
        )
    missing = _missing(payload)
    if missing:
        raise DecodeError(f"sound cut short: {missing} bytes of it are missing at the end")


def _missing(payload: bytes) -> int:
    """How many bytes a WAV, or the last page of an OGG, announces and does not have.

    libsndfile takes what is there for the whole.
    """
    if payload[:4] == b"RIFF":
        place = 12
        while place + 8 <= len(payload):
            size = int.from_bytes(payload[place + 4 : place + 8], "little")
            if payload[place : place + 4] == b"data":
                end = place + 8 + size
                return 0 if size in OPEN_ENDED else max(0, end - len(payload))
            place += 8 + size + size % 2
        return 0
    if payload[:4] == b"OggS":
        page = payload.rfind(b"OggS")
        if len(payload) < page + 27:
            return page + 27 - len(payload)
        table = payload[page + 27 : page + 27 + payload[page + 26]]
        end = page + 27 + payload[page + 26] + sum(table)
        return max(0, end - len(payload))
    return 0


def _check_length(frames: int, rate: int) -> None:
    if frames > MAX_SECONDS * rate or frames > MAX_SAMPLES:
        raise DecodeError(
            f"sound of {frames / rate:.0f} s ({frames} samples); at most {MAX_SECONDS} s and "
            f"{MAX_SAMPLES} samples are read"
        )


def _read(payload: bytes, enough: float | None) -> tuple[np.ndarray, int]:
    """float32 `[samples]`, the mean of the channels, and its rate; `enough` seconds of it will do."""
    parts, count = [], 0
    with _opened(payload) as file:
        rate, told = int(file.samplerate), int(file.frames)
        wanted = told if enough is None else min(told, round(enough * rate) + 1)
        while count < wanted:
            try:
                block = file.read(min(BLOCK, wanted - count), dtype="float32", always_2d=True)
            except Exception as error:
                raise DecodeError(f"sound damaged after {count / rate:.2f} s: {error}") from error
            if not len(block):
                break
            count += len(block)
            _check_length(count, rate)
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(1, dtype=np.float64)
            parts.append(mono.astype(np.float32))
    if not count:
        raise DecodeError("sound without a sample")
    if told < UNKNOWN and count < wanted:
        raise DecodeError(f"sound cut short: {told} samples announced, {count} are there")
    sound = np.concatenate(parts)
    if len(bad := np.flatnonzero(~np.isfinite(sound))):
        raise DecodeError(f"sound whose sample {bad[0]} is no finite number")
    return sound, rate


def _kept(sound: np.ndarray, rate: int, decoder: SoundDecoder) -> np.ndarray:
    """Without silent ends where those are taken off, and no longer than wanted."""
    if decoder.trim:
        sound = _trimmed(sound, rate, decoder.trim)
    most = max(1, round(decoder.seconds * rate))
    start = max(0, (len(sound) - most) // 2) if decoder.keep == "centre" else 0
    return sound[start : start + most]


def _trimmed(sound: np.ndarray, rate: int, decibels: float) -> np.ndarray:
    """From the first to the last hundredth of a second that is loud enough; all where none is."""
    step = max(1, rate // 100)
    edges = np.arange(0, len(sound), step)
    power = np.add.reduceat(sound.astype(np.float64) ** 2, edges) / np.diff(
        edges, append=len(sound)
    )
    loud = np.flatnonzero(power > power.max() * 10 ** (-decibels / 10))
    if not len(loud):
        return sound
    # A moment is left on both sides: a consonant may begin below the threshold.
    return sound[max(0, edges[loud[0]] - 2 * step) : edges[loud[-1]] + 3 * step]


def _resampled(sound: np.ndarray, rate: int, decoder: SoundDecoder) -> np.ndarray:
    quality = {"low": "LQ", "medium": "MQ", "high": "HQ", "very_high": "VHQ"}[decoder.resampling]
    resampled: np.ndarray = _library("soxr").resample(sound, rate, decoder.rate, quality)
    return resampled
