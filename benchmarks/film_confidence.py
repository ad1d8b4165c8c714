"""How sure a small model is of answers about films: of right and wrong ones, and of answers to nonsense.

Films of ten minutes that the model has not seen. Asked are the twenty questions about each film, and texts that no film
answers: words of the vocabulary in no order, and other people's questions with words that the model does not know.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import machine
from models.films import Film, make_film, questions

__all__ = ["films_of", "judge", "measure"]

FRAMES = 600
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

Ask = Callable[[Film, Sequence[str]], list[tuple[str, float]]]
"""A film and questions → what is answered to each, and how sure the model is; 0 where it does not know a word."""


def films_of(description: str | None) -> int:
    """Read the command line; return how many films are asked about."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20)
    films: int = parser.parse_args().films
    return films


def measure(ask: Ask, words: Sequence[str], films: int, first_film: int) -> dict[str, list[float]]:
    """Return, per kind of question, the confidence of its answers. ``words``: of the model's vocabulary."""
    found: dict[str, list[float]] = {"right": [], "wrong": [], "words in no order": [], "other people's questions": []}
    for number in range(films):
        film = make_film(first_film + number, length=FRAMES)
        asked = questions(film, np.random.default_rng([film.seed, 3]))
        draw = np.random.default_rng([film.seed, 4])
        mixed = [" ".join(draw.choice(words, count)) for count in WORDS_IN_NONSENSE]
        answers = ask(film, [*(one.text for one in asked), *mixed, *FOREIGN])
        kinds = ["right" if said == one.answer else "wrong" for one, (said, _) in zip(asked, answers, strict=False)]
        kinds += ["words in no order"] * len(mixed) + ["other people's questions"] * len(FOREIGN)
        for kind, (_, confidence) in zip(kinds, answers, strict=True):
            found[kind].append(confidence)
    return found


def judge(name: str, found: dict[str, list[float]], films: int, default: float) -> int:
    """Print which share is ``unsure`` at each threshold, write the result; return 1 where the default does not hold."""
    rows: list[dict[str, Any]] = []
    print("unsure below " + " ".join(f"{kind:>26}" for kind in found))
    for threshold in sorted({*THRESHOLDS, default}):
        shares = {kind: float(np.mean(np.array(values) < threshold)) if values else None for kind, values in found.items()}
        rows.append({"threshold": threshold, **shares})
        print(f"{threshold:12g} " + " ".join(f"{'-' if share is None else f'{share:.3f}':>26}" for share in shares.values()))
    print("answers      " + " ".join(f"{len(values):26d}" for values in found.values()))
    nonsense = np.array(found["words in no order"] + found["other people's questions"])
    caught = float(np.mean(nonsense < default))
    lost = float(np.mean(np.array(found["right"]) < default))
    holds = caught >= NEEDED_CAUGHT and lost <= ALLOWED_RIGHT
    print(f"at {default}: {caught:.3f} of the nonsense is unsure (needed {NEEDED_CAUGHT}), {lost:.3f} of right answers")
    result = {"films": films, "default": default, "rows": rows, "caught": caught, "lost": lost, "holds": holds}
    print("written:", machine.write(name, result))
    return int(not holds)
