"""How a tokenizer is made of texts: the words or parts of words that are worth a place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from pipeline.config import Section

PLACES = ("[padding]", "[unknown]")
"""What the first ids stand for. No text can name them: brackets are cut from words."""


class Vocabulary(Section):
    """How texts are cut into tokens, and which have a place."""

    kind: Literal["words", "bpe", "wordpiece"] = Field(
        "words", description="words and marks; or parts of words, merged by how often they meet"
    )
    lowercase: bool = Field(True, description="capitals count for nothing")
    most: int = Field(
        20_000, ge=3, le=1_000_000, description="tokens that have a place, the commonest"
    )
    least: int = Field(2, ge=1, description="times that the training texts must hold a token")


def trained(texts: Iterable[str], config: Vocabulary) -> bytes:
    """`tokenizer.json` for these texts: 0 is padding, 1 what is unknown. The same for the same texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    unknown = PLACES[1]
    steps = [normalizers.NFKC()] + ([normalizers.Lowercase()] if config.lowercase else [])
    normalizer, cut = normalizers.Sequence(steps), pre_tokenizers.Whitespace()
    if config.kind == "words":
        counted = Counter(
            word
            for text in texts
            for word, _ in cut.pre_tokenize_str(normalizer.normalize_str(text))
        )
        common = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        words = [word for word, count in common if count >= config.least]
        places = [*PLACES, *words][: config.most]
        model = models.WordLevel({word: place for place, word in enumerate(places)}, unknown)
        tokenizer = Tokenizer(model)
    else:
        parts = models.BPE if config.kind == "bpe" else models.WordPiece
        tokenizer = Tokenizer(parts(unk_token=unknown))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, cut
    if config.kind != "words":
        learn = trainers.BpeTrainer if config.kind == "bpe" else trainers.WordPieceTrainer
        tokenizer.train_from_iterator(
            texts,
            learn(
                vocab_size=config.most,
                min_frequency=config.least,
                special_tokens=list(PLACES),
                show_progress=False,
            ),
        )
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = []  # else a text could spell padding
    return json.dumps(settings, ensure_ascii=False, sort_keys=True).encode()


def places(tokenizer: bytes) -> int:
    """How many ids a tokenizer gives, 0 and 1 among them."""
    return len(json.loads(tokenizer)["model"]["vocab"])
