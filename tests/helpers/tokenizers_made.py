"""A checkpoint's tokenizer, small enough to be written by a test."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ("a", "cat", "on", "the", "moon", "paint", "it", "red", "first", "think")


def write_tokenizer(folder: Path, first: int = 10) -> dict[str, int]:
    """Writes ``tokenizer.json``; returns the id of each word, which count from ``first``."""
    ids = {word: first + place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel({**ids, "?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return ids
