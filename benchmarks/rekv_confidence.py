"""Claim: of the answers that the small model gives to nonsense most are called unsure, and of right ones few.

Films of ten minutes that the model has not seen. Asked are the twenty questions about each film (right and wrong answers are
told apart), and texts that no film answers: words of the vocabulary in no order, and other people's questions with words that
the model does not know. The table says for each threshold which share of each is ``unsure``; unknown words make an answer
unsure at every threshold above 0, as in the operator.

    python -m benchmarks.rekv_confidence [--films 20]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from models.films import make_film, questions
from models.rekv.evaluate import ask_film, film_features
from models.rekv.loaders import load_model
from models.rekv.small import SMALL_UNSURE_BELOW, SMALL_WEIGHTS, load_small

FIRST_FILM, FRAMES = 4000, 600
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
FOREIGN = (
    "who won the match?",
    "is it raining?",
    "tell me a story",
    "how are you",
    "what is the meaning of life?",
    "did anybody ring at the door?",
    "how many people were in the room?",
    "which car is parked outside?",
)
WORDS_IN_NONSENSE = (1, 2, 4, 8)
NEEDED_CAUGHT, ALLOWED_RIGHT = 0.5, 0.1


def measure(films: int) -> dict[str, list[float]]:
    """Return, per kind of question, the confidence of its answers; 0 where a word is not known."""
    rekv = load_small(SMALL_WEIGHTS).rekv
    model = load_model(SMALL_WEIGHTS, rekv)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    words = [word for word in load_small(SMALL_WEIGHTS).tokenizer.words[2:] if word.isalpha()]
    found: dict[str, list[float]] = {"right": [], "wrong": [], "words in no order": [], "other people's questions": []}
    for number in range(films):
        film = make_film(FIRST_FILM + number, length=FRAMES)
        features_FTC = film_features(model, film)
        asked = questions(film, np.random.default_rng([film.seed, 3]))
        draw = np.random.default_rng([film.seed, 4])
        mixed = [" ".join(draw.choice(words, count)) for count in WORDS_IN_NONSENSE]
        texts = [*(one.text for one in asked), *mixed, *FOREIGN]
        answers = ask_film(model, rekv, features_FTC, texts)
        kinds = [
            "right" if tokenizer.decode(a.tokens) == one.answer else "wrong" for one, a in zip(asked, answers, strict=False)
        ]
        kinds += ["words in no order"] * len(mixed) + ["other people's questions"] * len(FOREIGN)
        for kind, text, answer in zip(kinds, texts, answers, strict=True):
            found[kind].append(0.0 if tokenizer.unknown(text) else answer.confidence)
    return found


def main() -> int:
    """Measure, print the table, write the result; return 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.films)
    rows: list[dict[str, Any]] = []
    print("unsure below " + " ".join(f"{name:>26}" for name in found))
    for threshold in THRESHOLDS:
        shares = {name: float(np.mean(np.array(values) < threshold)) if values else None for name, values in found.items()}
        rows.append({"threshold": threshold, **shares})
        print(f"{threshold:12g} " + " ".join(f"{'-' if share is None else f'{share:.3f}':>26}" for share in shares.values()))
    print("answers      " + " ".join(f"{len(values):26d}" for values in found.values()))
    nonsense = np.array(found["words in no order"] + found["other people's questions"])
    caught = float(np.mean(nonsense < SMALL_UNSURE_BELOW))
    lost = float(np.mean(np.array(found["right"]) < SMALL_UNSURE_BELOW))
    holds = caught >= NEEDED_CAUGHT and lost <= ALLOWED_RIGHT
    print(
        f"at {SMALL_UNSURE_BELOW}: {caught:.3f} of the nonsense is unsure (needed {NEEDED_CAUGHT}), {lost:.3f} of right answers"
    )
    result = {
        "films": arguments.films,
        "default": SMALL_UNSURE_BELOW,
        "rows": rows,
        "caught": caught,
        "lost": lost,
        "holds": holds,
    }
    print("written:", machine.write("rekv_confidence", result))
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
