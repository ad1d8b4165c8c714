"""The benchmark of standing questions in its short form: it judges alarms as it says, and one film gives what it promises."""

import numpy as np
import pytest

from benchmarks import standing_questions as benchmark
from models.films import Event, Film
from models.standing.recipe import About


def test_an_alarm_counts_once_per_event_and_only_while_it_is_in_view() -> None:
    film = Film(0, 100, (Event("ring", "red", "two", "at noon", 10, 18), Event("cross", "blue", "one", "at noon", 30, 38)))
    abouts = [About(shape="ring"), About(color="blue"), About(color="green")]
    alarms = ((0, 11, "red"), (0, 14, "red"), (1, 31, "cross"), (1, 38, "cross"), (2, 50, "ring"))
    found = [{"question_id": str(n), "sequence": at, "answer": said} for n, at, said in alarms]
    assert benchmark.judge(film, abouts, found) == (2, 2, 3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", benchmark.METHODS)
def test_a_film_is_watched(method: str) -> None:
    made = benchmark.quality(benchmark.METHODS[method], 1)
    assert made["single"]["recall"] >= 0.9 and made["single"]["false_alarms"] <= 1
    assert np.isfinite(made["mixed"]["recall"])
