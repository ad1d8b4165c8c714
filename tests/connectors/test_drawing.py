"""Drawing: where pixels land, which frames decode, and that no text, box or size can break a picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.drawing import (
    LabeledBoxes,
    Picture,
    class_color,
    decode_image,
    draw_boxes,
    draw_header,
    draw_status,
    panel_row,
    panel_size,
    placeholder,
    resize_into,
)


def black(height: int = 240, width: int = 320) -> Picture:
    return np.zeros((height, width, 3), np.uint8)


def boxes(*rows: tuple[float, float, float, float, float, int]) -> LabeledBoxes:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return LabeledBoxes(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))


def is_class(pixel: Picture, label: int) -> bool:
    return bool((pixel == class_color(label)).all())


# -- decoding

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
BGR = RGB[:, :, ::-1]


@pytest.mark.parametrize(
    ("data", "encoding"),
    [(RGB.tobytes(), "raw_rgb8"), (BGR.tobytes(), "raw_bgr8"), (RGB.astype("<f4").tobytes(), "raw_f32_rgb")],
)
def test_raw_pixels_become_blue_green_red(data: bytes, encoding: str) -> None:
    picture = decode_image(data, encoding, 4, 6)
    assert picture is not None
    np.testing.assert_array_equal(picture, BGR)
    assert picture.flags.writeable


def test_gray_pixels_get_three_channels() -> None:
    picture = decode_image(RGB[:, :, 0].tobytes(), "raw_gray8", 4, 6)
    assert picture is not None
    np.testing.assert_array_equal(picture, np.stack([RGB[:, :, 0]] * 3, 2))


def test_float_pixels_outside_of_the_range_are_cut_and_nan_is_black() -> None:
    picture = decode_image(np.array([-5.0, np.nan, 300.0], "<f4").tobytes(), "raw_f32_rgb", 1, 1)
    assert picture is not None
    assert picture.tolist() == [[[255, 0, 0]]]


def test_compressed_pictures_decode() -> None:
    data = cv2.imencode(".png", np.ascontiguousarray(BGR))[1].tobytes()
    picture = decode_image(data, "png", None, None)
    assert picture is not None
    np.testing.assert_array_equal(picture, BGR)


@pytest.mark.parametrize(
    ("data", "encoding", "height", "width"),
    [
        (None, "jpeg", 4, 6),
        (b"", "jpeg", 4, 6),
        (b"no picture", "jpeg", 4, 6),
        (b"\xff\xd8\xff\xe0", "jpeg", None, None),
        (b"no picture", None, None, None),
        (RGB.tobytes()[:-1], "raw_rgb8", 4, 6),
        (RGB.tobytes(), "raw_rgb8", None, 6),
        (RGB.tobytes(), "raw_rgb8", -4, -6),
        (RGB.tobytes(), "raw_f32_rgb", 4, 6),
        (b"\x00", "raw_gray8", 0, 0),
    ],
)
def test_what_is_no_picture_is_none(data: bytes | None, encoding: str | None, height: int | None, width: int | None) -> None:
    assert decode_image(data, encoding, height, width) is None


# -- sizes


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(0.05, 4), st.integers(32, 2160))
def test_a_panel_has_even_sides_and_keeps_its_height(height: int, width: int, scale: float, max_height: int) -> None:
    panel_h, panel_w = panel_size(height, width, scale=scale, max_height=max_height)
    assert panel_h % 2 == panel_w % 2 == 0
    assert 2 <= panel_h <= max(2, max_height + 1)
    assert panel_w >= 2


@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 200), st.integers(2, 200))
@settings(max_examples=50, deadline=None)
def test_a_picture_fits_into_a_panel_of_any_shape(height: int, width: int, into_h: int, into_w: int) -> None:
    fitted, factor, left, top = resize_into(np.full((height, width, 3), 200, np.uint8), into_h, into_w)
    assert fitted.shape == (into_h, into_w, 3)
    assert left >= 0
    assert top >= 0
    # The last pixel of the picture lies inside of the panel, up to the rounding of the panel to even sides.
    assert left + width * factor <= into_w + 1
    assert top + height * factor <= into_h + 1


def test_a_wide_picture_gets_bars_above_and_below() -> None:
    fitted, factor, left, top = resize_into(np.full((100, 200, 3), 200, np.uint8), 200, 200)
    assert (factor, left, top) == (1.0, 0, 50)
    assert not fitted[:50].any()
    assert (fitted[50:150] == 200).all()
    assert not fitted[150:].any()


def test_panels_stand_side_by_side_in_their_order() -> None:
    panels = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20, 30)]
    row = panel_row(panels)
    assert row.shape[0] == 10
    assert row.shape[1] > 60
    assert (row[:, :20] == 10).all()
    assert (row[:, -20:] == 30).all()
    assert panel_row(panels[:1]) is panels[0]


# -- boxes


def test_a_box_is_drawn_in_the_color_of_its_class_at_its_place() -> None:
    picture = black()
    assert draw_boxes(picture, boxes((100, 100, 200, 180, 0.9, 3)), ["a", "b", "c", "d"]) == 1
    assert is_class(picture[140, 100], 3)
    assert is_class(picture[180, 150], 3)
    assert not picture[140, [98, 102, 150, 198, 202]].any()
    assert not picture[190:].any()


def test_a_box_moves_with_the_panel() -> None:
    picture = black()
    draw_boxes(picture, boxes((10, 20, 40, 60, 0.9, 0)), [], factor=2.0, left=50, top=30)
    assert is_class(picture[120, 70], 0)  # x = 10·2 + 50, y between 20·2 + 30 and 60·2 + 30


def test_boxes_that_cannot_be_drawn_are_left_out() -> None:
    picture = black()
    rows = boxes(
        (10, 10, 50, 50, 0.29, 0),  # below the score
        (float("nan"), 10, 50, 50, 0.9, 0),
        (10, 10, float("inf"), 50, 0.9, 0),
        (50, 10, 10, 50, 0.9, 0),
        (10, 10, 10, 50, 0.9, 0),
        (10, 10, 50, 50, float("nan"), 0),
    )
    assert draw_boxes(picture, rows, [], min_score=0.3) == 0
    assert not picture.any()
    assert draw_boxes(picture, LabeledBoxes(), []) == 0


def test_the_best_box_lies_on_top_in_whatever_order_they_come() -> None:
    low, high = (40, 100, 200, 200, 0.4, 1), (40, 100, 200, 200, 0.8, 2)
    for rows in (boxes(low, high), boxes(high, low)):
        picture = black()
        draw_boxes(picture, rows, [])
        assert is_class(picture[150, 40], 2)


def test_a_label_at_the_edge_stays_in_the_picture() -> None:
    for x, y in ((0, 0), (319, 0), (0, 239), (300, 230)):
        picture = black()
        draw_boxes(picture, boxes((x, y, x + 15, y + 8, 0.5, 0)), ["a name that is rather long"])
        drawn = (picture == class_color(0)).all(2)
        assert drawn.sum() > 500  # the filled label, not only the outline


@pytest.mark.heavy
@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 4, st.floats(0, 1), st.integers(-3, 2**40)), max_size=5),
    st.text(max_size=30),
    st.integers(1, 64),
    st.integers(1, 64),
)
@settings(max_examples=50, deadline=None)
def test_no_box_name_or_size_breaks_a_picture(rows: list[tuple[float, ...]], name: str, height: int, width: int) -> None:
    picture = black(height, width)
    draw_boxes(picture, boxes(*rows), [name])  # type: ignore[arg-type]
    draw_status(picture, name, name)
    assert picture.shape == (height, width, 3)
    assert placeholder(height, width, name).shape == (height, width, 3)
    assert draw_header(width, height, name, name).shape == (height, width, 3)


# -- colors and bars


def test_neighboring_classes_have_colors_far_apart() -> None:
    colors = np.array([class_color(label) for label in range(32)], float)
    apart = np.abs(np.diff(colors, axis=0)).max(1)
    assert apart.min() > 60
    assert len({class_color(label) for label in range(80)}) == 80


def test_a_header_shows_its_title_left_and_its_note_right() -> None:
    empty = draw_header(400, 28, "")
    titled, noted = draw_header(400, 28, "camera"), draw_header(400, 28, "", "12.3 s")
    assert (titled[:, :150] != empty[:, :150]).any()
    assert (titled[:, 200:] == empty[:, 200:]).all()
    assert (noted[:, 250:] != empty[:, 250:]).any()
    assert (noted[:, :200] == empty[:, :200]).all()


def test_a_long_title_is_cut_at_the_edge() -> None:
    bar = draw_header(200, 28, "x" * 500)
    np.testing.assert_array_equal(bar[:, -3:], draw_header(200, 28, "")[:, -3:])


def test_a_status_is_drawn_along_the_lower_edge_only() -> None:
    picture = black()
    draw_status(picture, "bad_image", "it was cut short " * 20)
    assert not picture[:200].any()
    assert picture[-2, 1].any()


def test_a_missing_frame_is_gray_and_says_why() -> None:
    silent, spoken = placeholder(120, 160, ""), placeholder(120, 160, "no frame")
    assert silent.shape == spoken.shape == (120, 160, 3)
    assert int(np.median(silent)) == 96
    assert (silent != spoken).any()
