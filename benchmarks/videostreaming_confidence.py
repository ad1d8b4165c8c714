"""Claim: of the answers that the small model of VideoStreaming gives to nonsense most are called unsure, and of right ones few.

The table says for each threshold which share of each is ``unsure``; unknown words make an answer unsure at every threshold
above 0, as in the operator. The default was chosen on the films from number ``CHOSEN_ON`` on, and is judged on others.

    python -m benchmarks.videostreaming_confidence [--films 20]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.film_confidence import films_of, judge, measure
from models.films import Film
from models.tokenizers import WordTokenizer
from models.videostreaming.evaluate import ask_film
from models.videostreaming.header import SMALL_UNSURE_BELOW, SMALL_WEIGHTS
from models.videostreaming.loaders import load_model

CHOSEN_ON, FIRST_FILM = 14000, 15000


def main() -> int:
    """Measure, print the table, write the result; return 1 if the claim does not hold."""
    films = films_of(__doc__)
    torch.set_num_threads(1)
    ready = load_model(SMALL_WEIGHTS)
    tokenizer = ready.tokenizer
    assert isinstance(tokenizer, WordTokenizer)

    def ask(film: Film, texts: Sequence[str]) -> list[tuple[str, float]]:
        answers = ask_film(ready, film, texts)
        return [
            (said, 0.0 if tokenizer.unknown(text) else confidence)
            for text, (said, confidence) in zip(texts, answers, strict=True)
        ]

    words = [word for word in tokenizer.words[2:] if word.isalpha()]
    return judge("videostreaming_confidence", measure(ask, words, films, FIRST_FILM), films, SMALL_UNSURE_BELOW)


if __name__ == "__main__":
    sys.exit(main())
