"""Texts: UTF-8 to the ids of their tokens, by the tokenizer that the bundle carries."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipeline.bundle.decode._settings import DecodeError, DecoderMissing, DecoderSettings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MEDIA = ("text/plain",)
EXAMPLE = "text.txt"

TOKENIZER = "tokenizer.json"
PADDING, UNKNOWN = 0, 1
"""Ids: what fills up shorter rows of a batch, and whatever is not in the vocabulary."""

UNREAD = "[unknown]"
"""What stands for a word that is not in the vocabulary where a person reads."""

MAX_BYTES = 1 << 20
"""Longest text that is read: far more than any model here looks at."""

MAX_TOKENIZER = 16 << 20
"""Bytes of `tokenizer.json`; a vocabulary of 100,000 takes 3 MB."""

KEPT = 64
"""Tokenizers that a process holds ready."""

PIECE = 4096
"""Characters, and those up to the next blank, that are cut into tokens at once."""

BLANK = re.compile(r"[ \t\n\r]")
"""Where a text may be parted: no token of a tokenizer that we make reaches over it."""

HARMLESS = {
    "model": ("WordLevel", "BPE", "WordPiece"),
    "normalizer": ("Sequence", "Lowercase", "NFC", "NFKC", "Strip", "StripAccents"),
    "pre_tokenizer": ("Sequence", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits"),
    "post_processor": (),
    "decoder": (),
}
"""What a tokenizer may be made of: nothing that runs a pattern out of the file, which could run
for ever."""

MOST_PARTS = 16
"""Steps in one place of a tokenizer; a file of half a million would take a second for each word."""

LONGEST_WORD = 1000
"""Characters of a word that WordPiece may look at: its time grows with their third power."""

UNSEEN = "\U0010fffd"
"""A character of nobody's, which no text that was learnt from holds."""

UNLIKE_UTF8 = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
}
UTF8_MARK = b"\xef\xbb\xbf"


class TextDecoder(DecoderSettings):
    """How a text becomes `int64 [tokens]`: as `tokenizer.json` cuts it, no more than `longest`.

    What is not in the vocabulary is 1, and a text without a token is one place of padding, 0.
    """

    kind: Literal["text"] = "text"
    longest: int = Field(ge=1, le=65536, description="tokens; the rest of a text is not read")
    vocabulary: int = Field(ge=2, description="ids that there are, 0 and 1 among them")

    @property
    def row(self) -> tuple[str]:
        """The shape of what it gives: any number of tokens."""
        return ("tokens",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The tokenizer."""
        return (TOKENIZER,)


Settings = TextDecoder


def decode(
    decoder: TextDecoder, payload: bytes, files: Mapping[str, bytes], _invert: bool
) -> np.ndarray:
    """int64 `[tokens]`. Raises `DecodeError`."""
    ids = list(islice(_ids(decoder, text_of(payload), files), decoder.longest))
    return np.array(ids or [PADDING], np.int64)


def check(decoder: TextDecoder, files: Mapping[str, bytes]) -> None:
    """Raise `DecodeError` for a tokenizer that is not the model's, `DecoderMissing` without library."""
    tokenizer = opened(files[TOKENIZER])
    numbers = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    if len(numbers) != decoder.vocabulary:
        raise DecodeError(
            f"{TOKENIZER}: {len(numbers)} tokens, and the manifest says {decoder.vocabulary}; export "
            "the model again"
        )
    if numbers != list(range(len(numbers))):
        raise DecodeError(f"{TOKENIZER}: ids that are not 0 to {len(numbers) - 1}, each once")
    try:
        unseen = list(_ids(decoder, UNSEEN, files))
    except Exception as error:  # the library's, of no kind of its own
        raise DecodeError(f"{TOKENIZER}: cuts no text: {error}") from None
    if unseen != [UNKNOWN]:
        raise DecodeError(f"{TOKENIZER}: what it does not know has another id than {UNKNOWN}")


def encode(decoder: TextDecoder, row: np.ndarray, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """A text of the same ids, where the tokens are words."""
    tokenizer = opened(files[TOKENIZER])
    words = [
        "\ufffd" if number == UNKNOWN else tokenizer.id_to_token(number)
        for number in row.tolist()
        if number != PADDING
    ]
    return ".txt", " ".join(word or "" for word in words).encode()


def drawn(decoder: TextDecoder, row: np.ndarray, files: Mapping[str, bytes]) -> str:
    """The text as it was read."""
    return encode(decoder, row, files)[1].decode()


def named(
    decoder: TextDecoder, row: np.ndarray, files: Mapping[str, bytes]
) -> list[tuple[str, int]]:
    """The words as they were read, each with how many tokens it takes."""
    tokenizer = opened(files[TOKENIZER])
    mark = getattr(tokenizer.model, "continuing_subword_prefix", None)
    words: list[tuple[str, int]] = []
    used = np.flatnonzero(row != PADDING)
    for number in row[: used[-1] + 1 if len(used) else 1].tolist():
        token = UNREAD if number <= UNKNOWN else tokenizer.id_to_token(number) or ""
        if mark and words and number > UNKNOWN and token.startswith(mark):
            begun, count = words.pop()
            words.append((begun + token.removeprefix(mark), count + 1))
        else:
            words.append((token, 1))
    return words


def hint(
    decoder: TextDecoder, payload: bytes, files: Mapping[str, bytes], _invert: bool
) -> str | None:
    """Whether there is nothing to read, nothing known, or more than is read."""
    ids = list(_ids(decoder, text_of(payload), files))
    if not ids:
        return "there is no word in the text"
    if all(number == UNKNOWN for number in ids):
        return "no word of the text is known to the model; is it in the language that it learned?"
    if len(ids) > decoder.longest:
        return f"only the first {decoder.longest} of the text's {len(ids)} tokens were read"
    return None


def text_of(payload: bytes) -> str:
    """The text that bytes are. Raises `DecodeError` for what is no UTF-8, holds NUL, or is too long."""
    if len(payload) > MAX_BYTES:
        raise DecodeError(f"text of {len(payload)} bytes; at most {MAX_BYTES} are read")
    for mark, name in UNLIKE_UTF8.items():
        if payload.startswith(mark):
            raise DecodeError(f"text in {name}, by its first bytes; expected UTF-8")
    try:
        text = payload.removeprefix(UTF8_MARK).decode()
    except UnicodeDecodeError as error:
        raise DecodeError(
            f"not UTF-8 text: byte 0x{payload[error.start]:02x} at place {error.start}"
        ) from None
    if "\0" in text:
        raise DecodeError(f"not a text: NUL at character {text.index(chr(0))}")
    return text


@lru_cache(KEPT)
def opened(content: bytes) -> Tokenizer:
    """The tokenizer of a file's bytes; opened once.

    Raises `DecodeError` for one that is not ours, `DecoderMissing` where the library is not there.
    """
    # Before it is used: one text at a time needs no threads of its own, which a fork would upset.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DecoderMissing(f"texts cannot be read here: tokenizers: {error}") from error
    if len(content) > MAX_TOKENIZER:
        raise DecodeError(f"{TOKENIZER}: {len(content)} bytes, at most {MAX_TOKENIZER}")
    try:
        _check(json.loads(content))
        return Tokenizer.from_str(content.decode())
    except (KeyboardInterrupt, SystemExit, DecodeError):
        raise
    except BaseException as error:  # a panic of the library's is no Exception
        raise DecodeError(
            f"{TOKENIZER}: no tokenizer: {str(error)[:200]}; export the model again"
        ) from None


def _ids(decoder: TextDecoder, text: str, files: Mapping[str, bytes]) -> Iterator[int]:
    """Token by token, as far as somebody asks: a text of a million words is not cut for its start."""
    tokenizer = opened(files[TOKENIZER])
    for piece in _pieces(text):
        # As a batch of one: it lets other threads run meanwhile, and `encode` does not.
        (found,) = tokenizer.encode_batch_fast([piece], add_special_tokens=False)
        for number in found.ids:
            # A vocabulary that does not fit the network must not ask for what it has no place for.
            yield number if number < decoder.vocabulary else UNKNOWN


def _pieces(text: str) -> Iterator[str]:
    """The text in parts that end before a blank."""
    start = 0
    while start < len(text):
        blank = BLANK.search(text, start + PIECE)
        stop = blank.start() if blank else len(text)
        yield text[start:stop]
        start = stop


def _check(settings: Any) -> None:
    """Raise `DecodeError` for parts of a tokenizer that we never write."""
    if not isinstance(settings, dict):
        raise DecodeError(f"{TOKENIZER}: expected an object")
    for place in ("added_tokens", "truncation", "padding"):
        if settings.get(place):
            raise DecodeError(f"{TOKENIZER}: {place}: expected none")
    for place, known in HARMLESS.items():
        parts = _parts(settings.get(place))
        if len(parts) > MOST_PARTS:
            raise DecodeError(f"{TOKENIZER}: {place}: {len(parts)} parts, at most {MOST_PARTS}")
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else part
            if kind not in known:
                raise DecodeError(f"{TOKENIZER}: {place}: {str(kind)[:40]!r} is none of {known}")
    model = settings.get("model") or {}
    if model.get("dropout"):
        raise DecodeError(f"{TOKENIZER}: model: dropout would answer otherwise every time")
    if not 0 < model.get("max_input_chars_per_word", 1) <= LONGEST_WORD:
        raise DecodeError(f"{TOKENIZER}: model: words of more than {LONGEST_WORD} characters")


def _parts(settings: Any) -> list[Any]:
    """The parts that a part is made of, itself the first."""
    if settings is None:
        return []
    nested = [
        settings[name]
        for name in ("normalizers", "pretokenizers")
        if isinstance(settings, dict) and name in settings
    ]
    return [settings, *(part for some in nested for one in some for part in _parts(one))]
