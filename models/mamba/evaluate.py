"""Mean average precision of video detections, with the published ImageNet VID protocol's arithmetic and motion split.

NumPy only; knows nothing about models. The published evaluator has quirks (boxes grown by two pixels, fractional weights of
false positives in the motion split); they are kept, because published figures depend on them. All arithmetic on boxes is in
float32 for the same reason.
"""

# N objects, D detections, I images, K classes, S groups of one image and one class, G objects of a group

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOTION_RANGES", "Found", "Objects", "Precision", "evaluate_motion", "mean_average_precision", "motion_iou"]

MOTION_RANGES: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1.0),
    "fast": (0.0, 0.7),
    "medium": (0.7, 0.9),
    "slow": (0.9, 1.0),
}
"""Range of motion IoU of each part of the split, closed at both ends."""

_Floats = NDArray[np.floating]
_Ints = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Objects:
    """Ground truth of a whole data set, in any order."""

    image_N: _Ints
    """0-based image number."""
    boxes_N4: _Floats
    """x1, y1, x2, y2 in px."""
    labels_N: _Ints
    """0-based class."""
    motion_N: _Floats | None = None
    """Motion IoU in 0..1 (:func:`motion_iou`); needed by the motion split only."""


@dataclass(frozen=True, slots=True)
class Found:
    """Detections of a whole data set, in any order."""

    image_D: _Ints
    boxes_D4: _Floats
    labels_D: _Ints
    scores_D: _Floats


@dataclass(frozen=True, slots=True)
class Precision:
    """Average precision per class; NaN for classes without ground truth (in the motion range)."""

    ap_K: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean over the classes that have ground truth; NaN where none has."""
        known = self.ap_K[~np.isnan(self.ap_K)]
        return float(known.mean()) if known.size else float("nan")


def mean_average_precision(
    truth: Objects, found: Found, *, classes: int, iou: float = 0.5, published: bool = True
) -> Precision:
    """Return the average precision over all objects, all-point interpolated, at one overlap threshold.

    ``published`` grows boxes as the published evaluator does, which favors small ones; False takes the plain overlap.
    """
    still = np.zeros(len(truth.image_N), dtype=bool)
    return _evaluate(truth, found, still, 0.0, classes, iou, grow=1.0 if published else 0.0)


def evaluate_motion(truth: Objects, found: Found, *, images: int, classes: int, iou: float = 0.5) -> dict[str, Precision]:
    """Return the precision for all objects and for fast, medium and slow ones (keys of ``MOTION_RANGES``).

    ``images`` is the number of images of the data set, those without objects included. Objects outside a range are ignored:
    finding them neither helps nor hurts. A detection of a class that the image does not show at all counts as a false positive
    with the share of motion values inside the range as its weight (1 if they all are).
    """
    if truth.motion_N is None:
        raise ValueError("the motion split needs truth.motion_N; compute it with motion_iou(...)")
    shown = len(np.unique(truth.image_N))
    if images < shown:
        raise ValueError(f"images={images}, but {shown} images have objects; give the number of all images of the data set")
    motion_N = np.asarray(truth.motion_N)
    # An image without objects contributes one motion value of 0 to the share.
    empty = images - shown
    results = {}
    for name, (low, high) in MOTION_RANGES.items():
        inside_N = (motion_N >= low) & (motion_N <= high)
        share = (inside_N.sum() + (empty if low <= 0.0 else 0)) / max(len(motion_N) + empty, 1)
        results[name] = _evaluate(truth, found, ~inside_N, 0.0 if share == 1.0 else float(share), classes, iou)
    return results


def motion_iou(video_N: _Ints, frame_N: _Ints, track_N: _Ints, boxes_N4: _Floats, *, window: int = 10) -> NDArray[np.float64]:
    """Return each object's mean overlap with its own boxes in the frames up to ``window`` before and after.

    ``track_N`` identifies an object within its video; one box per track and frame. An object that no nearby frame shows has
    not been seen to move and gets 1.
    """
    order = np.lexsort((frame_N, track_N, video_N))
    video, track, frame = video_N[order], track_N[order], frame_N[order]
    boxes = np.asarray(boxes_N4, dtype=np.float64)[order]
    total, number = np.zeros(len(order)), np.zeros(len(order))
    # Sorted by track and frame, a neighbor within `window` frames stands at most `window` rows away.
    for step in range(1, min(window, len(order) - 1) + 1):
        near = (video[step:] == video[:-step]) & (track[step:] == track[:-step]) & (frame[step:] - frame[:-step] <= window)
        overlap = _overlap(boxes[step:], boxes[:-step], grow=0.0) * near
        total[step:] += overlap
        total[:-step] += overlap
        number[step:] += near
        number[:-step] += near
    motion = np.ones(len(order))
    motion[order] = np.divide(total, number, out=np.ones_like(total), where=number > 0)
    return motion


def _evaluate(
    truth: Objects,
    found: Found,
    ignored_N: NDArray[np.bool_],
    empty_weight: float,
    classes: int,
    iou: float,
    grow: float = 1.0,
) -> Precision:
    ap_K = np.full(classes, np.nan)
    for label in range(classes):
        of_class, found_of_class = truth.labels_N == label, found.labels_D == label
        ignored = ignored_N[of_class]
        positives = int((~ignored).sum())
        if positives == 0:
            continue
        scores = np.asarray(found.scores_D)[found_of_class]
        best_first = np.argsort(-scores, kind="stable")
        matched, ignore = _match(
            np.asarray(truth.image_N)[of_class],
            np.asarray(truth.boxes_N4, dtype=np.float32)[of_class],
            ignored,
            np.asarray(found.image_D)[found_of_class][best_first],
            np.asarray(found.boxes_D4, dtype=np.float32)[found_of_class][best_first],
            empty_weight,
            iou,
            grow,
        )
        counts = ignore != 1.0
        weight = np.where(ignore == 0.0, 1.0, ignore)
        hits = np.cumsum(matched & counts)
        misses = np.cumsum(np.where(~matched & counts, weight, 0.0))
        ap_K[label] = _average_precision(hits / positives, hits / (hits + misses + np.spacing(1)))
    return Precision(ap_K)


def _match(
    image_N: _Ints,
    boxes_N4: NDArray[np.float32],
    ignored_N: NDArray[np.bool_],
    image_D: _Ints,
    boxes_D4: NDArray[np.float32],
    empty_weight: float,
    threshold: float,
    grow: float,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Match detections of one class (best first) greedily within each image; return ``matched_D`` and ``ignore_D``.

    ``ignore_D`` is 1 for detections that do not count, 0 for ones that count fully, else the weight of a false positive.
    All images advance together: round r handles the r-th best detection of every image.
    """
    matched_D = np.zeros(len(image_D), dtype=bool)
    ignore_D = np.full(len(image_D), empty_weight)
    # Objects of each image in a padded table [S, G].
    by_image = np.argsort(image_N, kind="stable")
    image_S, start_S, count_S = np.unique(image_N[by_image], return_index=True, return_counts=True)
    column_G = np.arange(count_S.max(initial=0))
    present_SG = column_G < count_S[:, None]
    row_SG = by_image[np.where(present_SG, start_S[:, None] + column_G, 0)]
    ignored_SG = ignored_N[row_SG] & present_SG
    share_S = ignored_SG.sum(axis=1) / count_S
    taken_SG = np.zeros_like(present_SG)
    # Detections in images that show the class, grouped by image and still best first within each.
    group_D = np.searchsorted(image_S, image_D)
    known = np.flatnonzero(image_S[np.minimum(group_D, len(image_S) - 1)] == image_D)
    known = known[np.argsort(group_D[known], kind="stable")]
    group = group_D[known]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    by_rank = np.argsort(rank, kind="stable")
    for chunk in np.split(by_rank, np.cumsum(np.bincount(rank))[:-1]) if len(rank) else []:
        d, s = known[chunk], group[chunk]
        iou_SG = np.where(present_SG[s], _overlap(boxes_D4[d][:, None], boxes_N4[row_SG[s]], grow=grow), -1.0)
        free_SG = np.where(present_SG[s] & ~taken_SG[s] & (iou_SG >= threshold), iou_SG, -1.0)
        best_S1 = free_SG.max(axis=1, keepdims=True)
        hit = best_S1[:, 0] >= 0.0
        choice = _choose(free_SG == best_S1, ignored_SG[s])
        taken_SG[s[hit], choice[hit]] = True
        matched_D[d] = hit
        closest_ignored = np.where(ignored_SG[s], iou_SG, -1.0).max(axis=1)
        closest_counted = np.where(ignored_SG[s], -1.0, iou_SG).max(axis=1)
        unmatched = np.where(closest_ignored == closest_counted, share_S[s], closest_ignored > closest_counted)
        ignore_D[d] = np.where(hit, ignored_SG[s, choice], unmatched)
    return matched_D, ignore_D


def _choose(tied_SG: NDArray[np.bool_], ignored_SG: NDArray[np.bool_]) -> _Ints:
    """Of the objects with the same overlap take the first that is not ignored, else the last."""
    counted_SG = tied_SG & ~ignored_SG
    last = tied_SG.shape[1] - 1 - tied_SG[:, ::-1].argmax(axis=1)
    choice_S: _Ints = np.where(counted_SG.any(axis=1), counted_SG.argmax(axis=1), last)
    return choice_S


def _overlap(boxes: _Floats, others: _Floats, *, grow: float) -> _Floats:
    """Return the IoU of boxes ``[..., 4]`` pair by pair.

    ``grow`` = 1 repeats the published evaluator, which adds one pixel for inclusive corners and then one more.
    """
    boxes, others = boxes.copy(), others.copy()
    boxes[..., 2:] += grow
    others[..., 2:] += grow
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.maximum(high - low + boxes.dtype.type(grow), 0).prod(axis=-1)
    area = (boxes[..., 2:] - boxes[..., :2] + boxes.dtype.type(grow)).prod(axis=-1)
    other_area = (others[..., 2:] - others[..., :2] + boxes.dtype.type(grow)).prod(axis=-1)
    union = area + other_area - shared
    ratio: _Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def _average_precision(recall: _Floats, precision: _Floats) -> float:
    """Area under the precision envelope, all-point interpolated."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * envelope[steps + 1]).sum())
