"""The small pictures for people: where lines, bands, ticks and words stand, and numbers of axes that can be read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from connectors.canvas import color_of
from connectors.charts import Lane, _round_numbers, heat, line_chart, sheet, strip_chart, write_picture


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.499, 49.5, [10, 20, 30, 40]),
        (-6.53, -4.69, [-6.4, -6.2, -6, -5.8, -5.6, -5.4, -5.2, -5, -4.8]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.483, 0.727, [0.5, 0.55, 0.6, 0.65, 0.7]),
        (0, 1e-9, [0, 2e-10, 4e-10, 6e-10, 8e-10, 1e-9]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, wanted: list[float]) -> None:
    assert _round_numbers(low, high) == pytest.approx(wanted)


def test_a_line_goes_from_corner_to_corner_and_a_mark_stands_at_its_place(tmp_path: Path) -> None:
    drawn = line_chart("a title", {"gray": ([0, 10], [0, 1]), "red": ([0, 10], [1, 1])}, x="seconds", marks={5: "half"})
    assert drawn.shape == (340, 900, 3)
    assert (np.abs(drawn[39:42, 100:800].astype(int) - (200, 60, 40)).sum(2) < 60).any(0).all(), "the red line lies on top"
    assert (np.abs(drawn[60:300, 470].astype(int) - (180, 180, 200)).sum(1) < 40).mean() > 0.8, "the mark is in the middle"
    write_picture(tmp_path / "a.png", drawn)
    assert (cv2.imread(str(tmp_path / "a.png"))[..., ::-1] == drawn).all()


def test_lanes_show_states_as_bands_of_their_colors_and_ticks_in_red() -> None:
    states = [0] * 50 + [1] * 30 + [-1] * 20
    drawn = strip_chart("two lanes", [Lane(name="x", values_N=np.arange(100.0)), Lane(name="s", states_N=states, ticks=[60])])
    assert drawn.shape == (26 + 44 + 18 + 12, 900, 3)
    row, step = drawn[26 + 44 + 6 + 1], 710 / 100
    assert [tuple(row[int(170 + at * step)]) for at in (25, 75, 95)] == [color_of(0), color_of(1), color_of(-1)]
    assert tuple(row[int(170 + 60 * step) + 1]) == (200, 40, 40)
    rising = [int(np.flatnonzero((drawn[26:70, 170 + x] != 255).any(1))[0]) for x in (10, 300, 700)]
    assert rising == sorted(rising, reverse=True) and rising[0] > rising[-1] + 30


def test_a_sheet_scales_pictures_to_one_height_beside_their_headings() -> None:
    red, blue = np.zeros((10, 20, 3), np.uint8), np.zeros((300, 300, 3), np.uint8)
    red[...], blue[...] = (255, 0, 0), (0, 0, 255)
    drawn = sheet([("one\ntwo", [(red, "a"), (blue, "b")]), ("three", [])], height=60, left=50)
    assert drawn.shape == (2 * 84, 50 + 6 + 120 + 6 + 60 + 6, 3)
    assert tuple(drawn[30, 100]) == (255, 0, 0) and tuple(drawn[30, 210]) == (0, 0, 255)
    assert (drawn[:60, :50] != 255).any() and (drawn[84:144, 56:] == 255).all()


def test_heat_has_its_first_row_at_the_bottom_and_clips() -> None:
    drawn = heat(np.array([[0.0, 2.0], [-1.0, np.nan]]), 0.0, 1.0, scale=3)
    assert drawn.shape == (6, 6, 3)
    assert drawn[5, 5].sum() > 500, "the largest value, at the bottom right"
    assert (drawn[0] == drawn[5, 0]).all(), "low, below the range, and no number"


@pytest.mark.parametrize("y", [[2e9, 2e9], [0.0, 0.0], [np.nan, np.nan]])
def test_a_line_that_is_flat_or_not_there_is_drawn_all_the_same(y: list[float]) -> None:
    assert line_chart("flat", {"one": ([5e9, 5e9], y)}, x="seconds").shape == (340, 900, 3)
