"""Films and their questions: seeded, unambiguous, right."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from connectors.errors import ConfigError, SinkError
from models.films import COUNTS, SHAPES, SIDE, TIMES, make_film, questions, write_mp4


def test_the_same_seed_gives_the_same_pixels_and_any_frame_by_itself() -> None:
    film = make_film(5)
    again = make_film(5)
    start = film.events[0].start
    np.testing.assert_array_equal(film.frames(start, start + 3), np.stack([again.frame(start + i) for i in range(3)]))
    assert not np.array_equal(film.frame(start), make_film(6).frame(start))


@pytest.mark.parametrize("seed", range(20))
def test_events_differ_in_shape_and_color_lie_apart_and_keep_their_light(seed: int) -> None:
    film = make_film(seed)
    assert len({event.shape for event in film.events}) == len({event.color for event in film.events}) == 5
    for event, following in zip(film.events, film.events[1:], strict=False):
        assert event.stop <= following.start
    for event in film.events:
        assert 0 <= event.start < event.stop <= film.length
        assert {list(TIMES)[t * len(TIMES) // film.length] for t in event.frames} == {event.time}


def test_an_event_shows_its_color_and_an_empty_frame_does_not() -> None:
    film = next(f for f in map(make_film, range(99)) if any(e.color == "magenta" for e in f.events))
    event = next(e for e in film.events if e.color == "magenta")

    def magenta(t: int) -> int:
        red, green, blue = film.frame(t).astype(int).transpose(2, 0, 1)
        return int(((red > 170) & (green < 90) & (blue > 160)).sum())

    assert all(magenta(t) > 30 for t in event.frames)
    outside = [t for t in range(0, film.length, 37) if not any(t in e.frames for e in film.events)]
    assert all(magenta(t) == 0 for t in outside)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", COUNTS)
def test_there_are_as_many_objects_as_are_said_to_be(shape: str, count: str) -> None:
    films = (make_film(seed) for seed in range(999))
    film, event = next(
        (f, e)
        for f in films
        for e in f.events
        if (e.shape, e.count, e.color) == (shape, count, "cyan") and e.time == "at night"
    )
    red, green, _ = film.frame(event.start).astype(int).transpose(2, 0, 1)
    found, _ = cv2.connectedComponents(((green > 130) & (red < 110)).astype(np.uint8))
    assert found - 1 == COUNTS.index(count) + 1


def test_every_event_is_asked_about_in_four_ways() -> None:
    film = make_film(3)
    asked = questions(film, np.random.default_rng(0))
    assert len(asked) == 20
    for one in asked:
        expected = {"color": one.event.color, "shape": one.event.shape, "when": one.event.time, "count": one.event.count}
        assert one.answer == expected[one.kind]
        assert one.answer not in one.text
        names = [name for e in film.events for name in (e.shape, e.color) if name.rstrip("s") in one.text]
        assert names, one.text
        assert all(name in (one.event.shape, one.event.color) for name in names)


def test_a_film_becomes_an_mp4_of_its_length(tmp_path: Path) -> None:
    film = make_film(1, length=20, events=1)
    write_mp4(film, tmp_path / "film.mp4", scale=2)
    video = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == 20
    assert frames[0].shape == (2 * SIDE, 2 * SIDE, 3)
    small = cv2.resize(cv2.cvtColor(frames[3], cv2.COLOR_BGR2RGB), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - film.frame(3)).mean() < 12  # noise that the codec removes
    with pytest.raises(SinkError, match="cannot write"):
        write_mp4(film, tmp_path / "none" / "film.mp4")


def test_films_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 events of 5 to 9 frames in 50 frames"):
        make_film(0, length=50)
