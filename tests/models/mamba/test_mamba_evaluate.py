"""The evaluator against a slow one written from the published description, and its quirks one by one."""

import time

import numpy as np
import pytest

from models.mamba.evaluate import MOTION_RANGES, Found, Objects, evaluate_motion, mean_average_precision, motion_iou


def scene(seed: int, images: int = 40, classes: int = 3) -> tuple[Objects, Found]:
    """Random objects and detections, many of them near an object, with ties in score and overlap."""
    rng = np.random.default_rng(seed)
    number = images * 2
    low = rng.integers(0, 60, (number, 2)).astype(float)
    boxes = np.concatenate([low, low + rng.integers(5, 40, (number, 2))], axis=1)
    motion = rng.choice([0.3, 0.7, 0.8, 0.9, 0.95, 1.0], number)
    truth = Objects(rng.integers(0, images, number), boxes, rng.integers(0, classes, number), motion)
    chosen = rng.integers(0, number, number * 4)
    found_boxes = boxes[chosen] + rng.integers(-4, 5, (len(chosen), 4))
    away = rng.random(len(chosen)) < 0.2
    return truth, Found(
        np.where(away, rng.integers(0, images, len(chosen)), truth.image_N[chosen]),
        found_boxes,
        np.where(rng.random(len(chosen)) < 0.2, rng.integers(0, classes, len(chosen)), truth.labels_N[chosen]),
        rng.permutation(len(chosen)) / len(chosen),
    )


def literal_overlap(a, b) -> np.float32:
    one = np.float32(1)
    ax2, ay2, bx2, by2 = a[2] + one, a[3] + one, b[2] + one, b[3] + one
    w = max(min(ax2, bx2) - max(a[0], b[0]) + one, np.float32(0))
    h = max(min(ay2, by2) - max(a[1], b[1]) + one, np.float32(0))
    areas = (ax2 - a[0] + one) * (ay2 - a[1] + one) + (bx2 - b[0] + one) * (by2 - b[1] + one)
    return w * h / (areas - w * h)


def literal_average_precision(truth: Objects, found: Found, label: int, span, images: int, iou: float = 0.5) -> float:
    """One class, one motion range, one detection at a time."""
    low, high = span
    ignored = [not low <= m <= high for m in truth.motion_N]
    values = list(truth.motion_N) + [0.0] * (images - len(set(truth.image_N.tolist())))
    share = sum(low <= v <= high for v in values) / len(values)
    share = 0.0 if share == 1 else share
    boxes, found_boxes = truth.boxes_N4.astype(np.float32), found.boxes_D4.astype(np.float32)
    mine = [d for d in range(len(found.scores_D)) if found.labels_D[d] == label]
    mine.sort(key=lambda d: -found.scores_D[d])
    positives = sum(truth.labels_N[n] == label and not ignored[n] for n in range(len(boxes)))
    if not positives:
        return float("nan")
    taken: set[int] = set()
    outcomes = []  # (matched, ignore value)
    for d in mine:
        here = [n for n in range(len(boxes)) if truth.image_N[n] == found.image_D[d] and truth.labels_N[n] == label]
        if not here:
            outcomes.append((False, share))
            continue
        overlaps = {n: literal_overlap(found_boxes[d], boxes[n]) for n in here}
        best, partner = np.float32(iou), None
        for n in here:
            if n in taken or overlaps[n] < best:
                continue
            if overlaps[n] > best or partner is None or ignored[partner]:
                partner = n
            best = overlaps[n]
        if partner is not None:
            taken.add(partner)
            outcomes.append((True, float(ignored[partner])))
            continue
        counted = max([overlaps[n] for n in here if not ignored[n]], default=-1)
        skipped = max([overlaps[n] for n in here if ignored[n]], default=-1)
        if counted == skipped:
            outcomes.append((False, sum(ignored[n] for n in here) / len(here)))
        else:
            outcomes.append((False, float(skipped > counted)))
    recalls, precisions, hits, misses = [0.0], [0.0], 0.0, 0.0
    for matched, ignore in outcomes:
        if ignore != 1:
            hits += matched
            misses += 0 if matched else (ignore if ignore != 0 else 1.0)
        recalls.append(hits / positives)
        precisions.append(hits / (hits + misses + np.spacing(1)))
    area = 0.0
    for i in range(1, len(recalls)):
        area += (recalls[i] - recalls[i - 1]) * max(precisions[i:])
    return area


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_slow_evaluator(seed: int):
    truth, found = scene(seed)
    results = evaluate_motion(truth, found, images=50, classes=4)
    for name, span in MOTION_RANGES.items():
        wanted = [literal_average_precision(truth, found, label, span, 50) for label in range(4)]
        np.testing.assert_allclose(results[name].ap_K, wanted, atol=1e-9, err_msg=name)
        assert np.isnan(results[name].ap_K[3])
        assert results[name].mean == pytest.approx(np.nanmean(wanted))
    plain = mean_average_precision(truth, found, classes=4)
    np.testing.assert_array_equal(plain.ap_K, results["all"].ap_K)


def test_order_of_rows_does_not_matter():
    truth, found = scene(1)
    rng = np.random.default_rng(0)
    shuffle = rng.permutation(len(found.scores_D))
    shuffled = Found(*(getattr(found, part)[shuffle] for part in ("image_D", "boxes_D4", "labels_D", "scores_D")))
    np.testing.assert_array_equal(
        mean_average_precision(truth, shuffled, classes=3).ap_K, mean_average_precision(truth, found, classes=3).ap_K
    )


def one(boxes, found_boxes, scores, motion=None) -> tuple[Objects, Found]:
    """All in image 0, class 0."""
    n, d = len(boxes), len(found_boxes)
    truth = Objects(np.zeros(n, int), np.array(boxes, float), np.zeros(n, int), None if motion is None else np.array(motion))
    return truth, Found(np.zeros(d, int), np.array(found_boxes, float).reshape(d, 4), np.zeros(d, int), np.array(scores))


def test_boxes_count_as_two_pixels_wider():
    plain = (4 * 10) / (2 * 60 - 40)
    grown = (6 * 12) / (2 * 8 * 12 - 6 * 12)
    assert plain < 0.55 < grown
    truth, found = one([[0, 0, 6, 10]], [[2, 0, 8, 10]], [0.9])
    assert mean_average_precision(truth, found, classes=1, iou=0.55).mean == pytest.approx(1.0)


def test_duplicates_are_false_positives_and_perfect_detections_give_one():
    boxes = [[0, 0, 20, 20], [50, 50, 70, 70]]
    assert mean_average_precision(*one(boxes, boxes, [0.9, 0.8]), classes=1).mean == pytest.approx(1.0)
    doubled = one(boxes, [boxes[0], boxes[0], boxes[1]], [0.9, 0.85, 0.8])
    assert mean_average_precision(*doubled, classes=1).mean == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_objects_outside_the_motion_range_neither_help_nor_hurt():
    boxes = [[0, 0, 20, 20], [50, 50, 70, 70]]
    truth, found = one(boxes, [boxes[1], boxes[0]], [0.9, 0.8], motion=[0.5, 0.95])
    results = evaluate_motion(truth, found, images=1, classes=1)
    for name in ("fast", "slow", "all"):
        assert results[name].mean == pytest.approx(1.0)
    assert np.isnan(results["medium"].mean)


def test_no_detections_and_no_objects():
    truth, found = one([[0, 0, 20, 20]], [], [], motion=[0.5])
    assert mean_average_precision(truth, found, classes=1).mean == 0.0
    nothing = Objects(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    results = evaluate_motion(nothing, found, images=3, classes=1)
    assert all(np.isnan(result.mean) for result in results.values())


def test_motion_split_without_motion_values_says_where_to_get_them():
    truth, found = one([[0, 0, 20, 20]], [], [])
    with pytest.raises(ValueError, match="motion_iou"):
        evaluate_motion(truth, found, images=1, classes=1)


def test_fewer_images_than_have_objects_is_refused():
    truth, found = scene(0, images=40)
    with pytest.raises(ValueError, match=r"images=10, but \d+ images have objects"):
        evaluate_motion(truth, found, images=10, classes=3)


def test_motion_is_the_mean_overlap_with_nearby_frames_of_the_same_track():
    rng = np.random.default_rng(0)
    video, frame, track = (a.ravel() for a in np.meshgrid(np.arange(2), np.arange(0, 60, 3), np.arange(2), indexing="ij"))
    keep = rng.random(len(frame)) < 0.8
    video, frame, track = video[keep], frame[keep], track[keep]
    low = rng.random((len(frame), 2)) * 5 + frame[:, None]
    boxes = np.concatenate([low, low + 30], axis=1)
    order = rng.permutation(len(frame))
    video, frame, track, boxes = video[order], frame[order], track[order], boxes[order]
    got = motion_iou(video, frame, track, boxes, window=10)
    for i in range(len(frame)):
        overlaps = []
        for j in range(len(frame)):
            if i != j and (video[i], track[i]) == (video[j], track[j]) and abs(frame[i] - frame[j]) <= 10:
                shared = np.prod(np.maximum(np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2]), 0))
                overlaps.append(shared / (2 * 900 - shared))
        assert got[i] == pytest.approx(np.mean(overlaps))
    assert motion_iou(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), np.zeros((1, 4))).tolist() == [1.0]


@pytest.mark.heavy
def test_many_detections_are_fast():
    rng = np.random.default_rng(0)
    images, number = 20_000, 600_000
    low = rng.random((40_000, 2)) * 500
    truth = Objects(rng.integers(0, images, 40_000), np.concatenate([low, low + 80], axis=1), rng.integers(0, 30, 40_000))
    low = rng.random((number, 2)) * 500
    found = Found(
        rng.integers(0, images, number),
        np.concatenate([low, low + 80], axis=1),
        rng.integers(0, 30, number),
        rng.random(number),
    )
    start = time.process_time()
    mean_average_precision(truth, found, classes=30)
    assert time.process_time() - start < 20  # about 1 s; a loop over detections takes minutes
