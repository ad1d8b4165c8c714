"""Claim: of the answers that the small model gives to nonsense most are called unsure, and of right ones few.

The table says for each threshold which share of each is ``unsure``; unknown words make an answer unsure at every threshold
above 0, as in the operator.

    python -m benchmarks.rekv_confidence [--films 20]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.film_confidence import films_of, judge, measure
from models.films import Film
from models.rekv.evaluate import ask_film, film_features
from models.rekv.header import SMALL_UNSURE_BELOW, SMALL_WEIGHTS
from models.rekv.loaders import load_model
from models.rekv.small import load_small

FIRST_FILM = 4000


def main() -> int:
    """Measure, print the table, write the result; return 1 if the claim does not hold."""
    films = films_of(__doc__)
    torch.set_num_threads(1)
    small = load_small(SMALL_WEIGHTS)
    model = load_model(SMALL_WEIGHTS, small.rekv)
    tokenizer = model.tokenizer
    assert tokenizer is not None

    def ask(film: Film, texts: Sequence[str]) -> list[tuple[str, float]]:
        answers = ask_film(model, small.rekv, film_features(model, film), texts)
        return [
            (tokenizer.decode(answer.tokens), 0.0 if tokenizer.unknown(text) else answer.confidence)
            for text, answer in zip(texts, answers, strict=True)
        ]

    words = [word for word in small.tokenizer.words[2:] if word.isalpha()]
    return judge("rekv_confidence", measure(ask, words, films, FIRST_FILM), films, SMALL_UNSURE_BELOW)


if __name__ == "__main__":
    sys.exit(main())
