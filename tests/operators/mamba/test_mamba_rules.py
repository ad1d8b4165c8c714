"""The pixel level's choice of cells against a slow list version; the cut detector."""

# B frames, D boxes

import math

import mamba_streams
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import DEVICE, on_device

from operators.mamba.rules import Boxes, CellRule, Cells, color_histogram, correlation, select_cells

HEIGHT, WIDTH = 5, 7


def choose(boxes: list[list[tuple[float, ...]]], rule: CellRule, step: int = 0) -> tuple[Cells, torch.Tensor]:
    """Return the cells for frames whose boxes are (x1, y1, x2, y2, score)."""
    depth = max(len(frame) for frame in boxes)
    padded = torch.tensor([list(frame) + [(0.0, 0.0, 0.0, 0.0, -1.0)] * (depth - len(frame)) for frame in boxes])
    padded = padded.reshape(len(boxes), depth, 5)
    maps = torch.rand(len(boxes), 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    seed = torch.arange(len(boxes))
    cells = select_cells(
        Boxes(padded[..., :4], padded[..., 4]), maps, rule, seed_B=seed, step_B=torch.full_like(seed, step), purpose=2
    )
    return cells, maps


def inside(box: tuple[float, ...]) -> list[int]:
    """The published rule for one box, with ceil and floor."""
    x1, y1, x2, y2 = box[:4]
    columns = [c for c in range(math.ceil(x1 / 16 - 0.5), math.floor(x2 / 16 - 0.5) + 1) if 0 <= c < WIDTH]
    rows = [r for r in range(math.ceil(y1 / 16 - 0.5), math.floor(y2 / 16 - 0.5) + 1) if 0 <= r < HEIGHT]
    if columns and rows:
        return [r * WIDTH + c for r in rows for c in columns]
    column = min(max(int((x1 + x2) / 2 // 16), 0), WIDTH - 1)
    row = min(max(int((y1 + y2) / 2 // 16), 0), HEIGHT - 1)
    return [row * WIDTH + column]


quarter_px = st.integers(0, 4 * 16 * WIDTH).map(lambda v: v / 4)
box = st.tuples(quarter_px, quarter_px, quarter_px, quarter_px, st.sampled_from([0.2, 0.5, 0.9])).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3], 80.0), max(b[0], b[2]), min(max(b[1], b[3]), 80.0), b[4])
)


@given(st.lists(st.lists(box, max_size=4), min_size=1, max_size=3), st.integers(1, 12), st.integers(3, 20))
@settings(max_examples=60, deadline=None)
@pytest.mark.heavy
def test_cells_equal_the_list_version(frames: list[list[tuple[float, ...]]], per_box: int, per_frame: int):
    rule = CellRule(score=0.4, per_box=per_box, per_frame=per_frame, fallback=3, stride=16.0)
    cells, maps = choose(frames, rule)
    for b, boxes in enumerate(frames):
        written = cells.index_BN[b, : int(cells.count_B[b])].tolist()
        good = [box for box in boxes if box[4] > 0.4]
        if not good:
            norms = maps[b].norm(dim=0).flatten()
            assert written == norms.argsort(descending=True)[:3].tolist()
            continue
        position = 0
        for candidate in good:
            allowed = inside(candidate)
            number = min(len(allowed), per_box, per_frame - position)
            part = written[position : position + number]
            if len(allowed) <= per_box:
                assert part == allowed[:number]
            assert len(set(part)) == number and set(part) <= set(allowed)
            position += number
        assert position == len(written)


def test_a_frame_without_boxes_may_write_more_cells_than_one_with_boxes():
    rule = CellRule(score=0.4, per_box=5, per_frame=2, fallback=HEIGHT * WIDTH + 7, stride=16.0)
    cells, _ = choose([[(0.0, 0.0, 16.0 * WIDTH, 16.0 * HEIGHT, 0.9)], []], rule, 0)
    assert cells.count_B.tolist() == [2, HEIGHT * WIDTH]
    assert sorted(cells.index_BN[1].tolist()) == list(range(HEIGHT * WIDTH))


@pytest.mark.heavy
def test_cells_of_a_big_box_are_drawn_anew_at_every_step_and_all_get_their_turn():
    rule = CellRule(score=0.4, per_box=5, per_frame=20, fallback=3, stride=16.0)
    whole = [[(0.0, 0.0, 16.0 * WIDTH, 16.0 * HEIGHT, 0.9)]]
    counts = np.zeros(HEIGHT * WIDTH)
    for step in range(700):
        counts[choose(whole, rule, step)[0].index_BN[0, :5]] += 1
    expected, cells = 100.0, HEIGHT * WIDTH
    assert counts.sum() == 5 * 700
    assert np.abs(counts - expected).max() < 4.5 * math.sqrt(expected * (1 - 5 / cells))


def test_cut_detector_tells_a_cut_from_motion():
    frames = [color_histogram(mamba_streams.image("cam", n)) for n in range(3)]
    assert correlation(frames[0], frames[0]) > 0.999
    red, blue = (np.full((40, 40, 3), color, np.uint8) for color in ((200, 20, 20), (20, 20, 200)))
    assert correlation(color_histogram(red), color_histogram(blue)) < 0.1
    shifted = np.roll(mamba_streams.image("cam", 0), 5, axis=1)
    assert correlation(frames[0], color_histogram(shifted)) > 0.9


@pytest.mark.heavy
def test_the_small_copy_of_a_frame_that_stays_on_a_device_has_nearly_the_same_colors() -> None:
    pictures = [mamba_streams.image("a", number, height=240, width=320) for number in (0, 9)]
    wanted = [color_histogram(picture) for picture in pictures]
    assert np.array_equal(color_histogram(torch.from_numpy(pictures[0])), wanted[0])
    with on_device() as launches:
        kept = [color_histogram(torch.from_numpy(picture).to(DEVICE)) for picture in pictures]
        assert {event.bytes for event in launches.of("read")} == {48 * 64 * 3}
    for a, b in zip(kept, wanted, strict=True):
        assert correlation(a, b) > 0.999
    assert abs(correlation(*kept) - correlation(*wanted)) < 0.01
