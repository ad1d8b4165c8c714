"""The small model of the package under the operator: real answers about a film of ten minutes, in plain words."""

from __future__ import annotations

import numpy as np
import pytest
from rekv_streams import frames, question, questions

from models.films import make_film
from models.films import questions as film_questions
from operators.base import Context
from operators.rekv import ReKVOperator, ReKVOptions


@pytest.mark.heavy
def test_questions_about_a_film_of_ten_minutes_are_answered_in_plain_words() -> None:
    film = make_film(1_000_007)
    made = ReKVOperator(ReKVOptions(sample_fps=1.0, device_gib=0.05, max_streams=1), Context(name="watch"))
    for start in range(0, 600, 60):
        numbers = range(start, start + 60)
        pictures = [np.asarray(film.frame(n), dtype=np.uint8) for n in numbers]
        times_us = [n * 1_000_000 for n in numbers]
        assert made.process(frames([("film", n) for n in numbers], images=pictures, times_us=times_us)) == []
    asked = film_questions(film, np.random.default_rng(7))
    rows = made.control(questions([question("film", one.text) for one in asked]))[0].to_pylist()
    right = [row["answer"] == one.answer for row, one in zip(rows, asked, strict=True)]
    assert np.mean(right) >= 0.7, [(one.text, row["answer"], one.answer) for row, one in zip(rows, asked, strict=True)]
    found = [
        any(one.event.start <= f["sequence"] < one.event.stop for f in row["retrieved"][-1])
        for row, one in zip(rows, asked, strict=True)
    ]
    assert np.mean(found) >= 0.9
