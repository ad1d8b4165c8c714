"""The small model of the package: it selects the right clip of a film it has not seen, and answers from two memories."""

import pytest

from models.films import make_film
from models.videostreaming.evaluate import film_quality
from models.videostreaming.header import SMALL_WEIGHTS
from models.videostreaming.loaders import load_model


@pytest.fixture(scope="module")
def quality():  # type: ignore[no-untyped-def]
    return film_quality(load_model(SMALL_WEIGHTS), [make_film(seed) for seed in (501, 502)])


@pytest.mark.heavy
@pytest.mark.heavy
@pytest.mark.slow
def test_the_right_clip_of_a_film_of_ten_minutes_is_selected(quality) -> None:  # type: ignore[no-untyped-def]
    assert quality.recall["memory"] >= 0.8 > 0.3 > quality.recall["uniform"]


@pytest.mark.heavy
def test_selected_memories_answer_more_than_as_many_tokens_of_a_uniform_sample(quality) -> None:  # type: ignore[no-untyped-def]
    accuracy = quality.accuracy
    assert accuracy["memory"] >= 1.5 * accuracy["uniform"] and accuracy["memory"] >= 1.5 * accuracy["last"]
    assert accuracy["memory"] > 1.5 * quality.guess


@pytest.mark.heavy
def test_what_came_before_an_event_is_known_where_memories_are_handed_on_only(quality) -> None:  # type: ignore[no-untyped-def]
    right = quality.accuracy_by_kind["before"]
    assert right["memory"] >= right["no_propagation"] + 0.2


def test_the_file_is_small() -> None:
    assert SMALL_WEIGHTS.stat().st_size < 10e6
