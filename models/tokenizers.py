"""Text to token ids and back: the tokenizer of a checkpoint folder, and one of whole words for small models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from connectors.extras import optional

transformers = optional("transformers")

__all__ = ["FolderTokenizer", "Tokenizer", "WordTokenizer"]

_END, _UNKNOWN = "<end>", "<unknown>"
_WORD = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")
_WORD_OR_DIGIT = re.compile(r"[a-z]+|\d|[^\sa-z\d]")


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Return token ids; ``start``: with the token that opens a sequence, where the family has one."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of an answer, without special tokens."""

    def unknown(self, text: str) -> list[str]:
        """Return the words that it cannot tell apart from others; none where tokens are parts of words."""


class FolderTokenizer:
    """The tokenizer of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        make = transformers.AutoTokenizer.from_pretrained
        self._tokenizer: Any = make(folder, local_files_only=True, trust_remote_code=False)

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Return token ids. Only the prefix begins with a start token, and only in families that have one (Llama)."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        first = self._tokenizer.bos_token_id
        adds_start = start and first is not None and self._tokenizer.encode("")[:1] == [first]
        return [first, *ids] if adds_start else ids

    def decode(self, tokens: list[int]) -> str:
        """Return the text without special tokens and outer white space."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def unknown(self, text: str) -> list[str]:
        """Return the words that become the unknown token; tokenizers over bytes have none."""
        unknown = self._tokenizer.unk_token_id
        if unknown is None:
            return []
        return [word for word in text.split() if unknown in self._tokenizer.encode(word, add_special_tokens=False)]


class WordTokenizer:
    """Words and punctuation marks in lower case; a word that is not listed becomes one unknown token."""

    def __init__(self, words: Sequence[str], *, digits: bool = False) -> None:
        """``words``: id 0 ends an answer, id 1 is unknown, the rest as given by :meth:`of`. ``digits``: each is a word."""
        self.words = tuple(words)
        self._word = _WORD_OR_DIGIT if digits else _WORD
        self._ids = {word: i for i, word in enumerate(self.words)}

    @staticmethod
    def of(texts: Sequence[str], *, digits: bool = False) -> WordTokenizer:
        """List the words of some texts."""
        pattern = _WORD_OR_DIGIT if digits else _WORD
        words = {word for text in texts for word in pattern.findall(text.lower())}
        return WordTokenizer([_END, _UNKNOWN, *sorted(words)], digits=digits)

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self._ids[_END]

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Return token ids; there is no start token."""
        return [self._ids.get(word, self._ids[_UNKNOWN]) for word in self._word.findall(text.lower())]

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text that are not listed."""
        return [word for word in self._word.findall(text.lower()) if word not in self._ids]

    def decode(self, tokens: list[int]) -> str:
        """Return the words with spaces between them."""
        return " ".join(self.words[token] for token in tokens if token != self.end)
