"""The published training step of MAMBA and its evaluator, written out slowly; see :mod:`mamba_reference`.

Samplers keep everything, as in the recorded step: nothing is random.
"""

# N candidates, G ground truth boxes, P anchors

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mamba_reference import (
    Arrays,
    Network,
    backbone,
    encode,
    head_with_references,
    neck,
    overlaps,
    propose,
    roi_features,
    rpn,
)
from torch import Tensor

FROZEN = ("detector.backbone.conv1.", "detector.backbone.bn1.", "detector.backbone.layer1.")
RANGES = {"all": (0.0, 1.0), "fast": (0.0, 0.7), "medium": (0.7, 0.9), "slow": (0.9, 1.0)}


def assigned(net: Network, boxes: Tensor, truth: Tensor, positive: float, negative: float, rescue: float | None) -> list[int]:
    """Return the ground truth of each box; -1 is background, -2 takes no part."""
    iou = overlaps(boxes, truth)
    match = []
    for row in iou:
        best = int(row.argmax())
        net.decided(torch.stack([row[best] - positive, row[best] - negative]), "overlap with the truth")
        match.append(best if row[best] >= positive else -1 if row[best] < negative else -2)
    if rescue is not None:
        for g in range(len(truth)):
            top = iou[:, g].max()
            if top >= rescue:
                for i in range(len(boxes)):
                    if iou[i, g] == top:
                        match[i] = g
                    else:
                        net.decided(iou[i, g] - top, "best anchor")
    return match


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    size = difference.abs()
    return torch.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta).sum()


def training_step(net: Network, image: Tensor, refs: Tensor, truth: Tensor, labels: Tensor, big: int) -> Arrays:
    """Return the entries of ``tiny_train_step*.npz`` but its inputs. Gradients above ``big`` numbers are told by their norm."""
    learned = {}
    for name, tensor in net.weights.items():
        fixed = "running_" in name or "num_batches" in name or name.startswith(FROZEN)  # as released: statistics, first stage
        learned[name] = tensor if fixed else tensor.clone().requires_grad_()
    net.weights = learned
    settings, (height, width) = net.settings, net.size
    truth, out = truth.double(), {}

    feature = neck(net, backbone(net, image[0]))
    logits, deltas, anchors = rpn(net, feature)
    inside = [p for p, (x1, y1, x2, y2) in enumerate(anchors.tolist()) if x1 >= 0 and y1 >= 0 and x2 < width and y2 < height]
    match = assigned(net, anchors[inside], truth, 0.7, 0.3, 0.3)
    sampled = [(p, g) for p, g in zip(inside, match, strict=True) if g != -2]
    positives = [(p, g) for p, g in sampled if g >= 0]
    wanted = torch.tensor([float(g >= 0) for _, g in sampled]).double()
    score = logits[[p for p, _ in sampled]].sigmoid()
    cross = -(wanted * score.log() + (1 - wanted) * (1 - score).log()).sum()
    chosen = [p for p, _ in positives]
    target = encode(anchors[chosen], truth[[g for _, g in positives]])
    out["out_loss_rpn_cls"] = cross / len(sampled)
    out["out_loss_rpn_bbox"] = smooth_l1(deltas[chosen] - target, 1 / 9) / len(sampled)

    out["proposals"] = proposals = propose(net, feature, settings["n_prop_train"])
    rows = []
    for i, ref in enumerate(refs):
        ref_feature = neck(net, backbone(net, ref))
        out[f"ref_proposals_{i}"] = top = propose(net, ref_feature, settings["n_prop"])[: settings["topk"]]
        rows.append(roi_features(ref_feature, top).flatten(1))
    candidates = torch.cat([truth, proposals[:, :4]])
    match = assigned(net, candidates, truth, 0.5, 0.5, None)
    positive, negative = ([i for i, g in enumerate(match) if (g >= 0) == kind] for kind in (True, False))
    rois = candidates[positive + negative]
    out["rois_sampled"] = rois
    out["num_pos"] = torch.tensor(len(positive))
    out["pos_is_gt"] = torch.tensor([i < len(truth) for i in positive]).to(torch.uint8)
    out["pos_gt_labels"] = labels[[match[i] for i in positive]]

    cls, reg, _ = head_with_references(net, roi_features(feature, rois).flatten(1), torch.cat(rows))
    label = torch.full((len(rois),), settings["ncls"])
    label[: len(positive)] = out["pos_gt_labels"]
    out["out_loss_cls"] = -cls.log_softmax(dim=1)[range(len(rois)), label].mean()
    own = torch.stack([reg[i, 4 * k : 4 * k + 4] for i, k in enumerate(label[: len(positive)].tolist())])
    target = encode(rois[: len(positive)], truth[[match[i] for i in positive]]) / 0.2
    out["out_loss_bbox"] = smooth_l1(own - target, 1.0) / len(rois)
    out["out_total"] = sum(out[f"out_loss_{n}"] for n in ("rpn_cls", "rpn_bbox", "cls", "bbox"))
    out["out_total"].backward()
    for name, tensor in learned.items():
        if tensor.grad is not None:
            out[f"gradnorm_{name}" if tensor.numel() > big else f"grad_{name}"] = (
                tensor.grad.norm() if tensor.numel() > big else tensor.grad
            )
    return {name: tensor.detach() for name, tensor in out.items()}


# The evaluator (spec of the published one, with its quirks)


def published_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return IoU in float32 as the published evaluator counts it: sides x2 - x1 + 2, overlap min - max + 2."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    two = np.float32(2)
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + two, min(a[3], b[3]) - max(a[1], b[1]) + two
    if w <= 0 or h <= 0:
        return 0.0
    area = [(box[2] - box[0] + two) * (box[3] - box[1] + two) for box in (a, b)]
    return float(w * h / (area[0] + area[1] - w * h))


def average_precision(hit: Sequence[bool], weight: Sequence[float], objects: float) -> float:
    """Return the area under the envelope of precision; ``weight`` is what each detection counts as a false positive."""
    if objects == 0:
        return float("nan")
    right = np.cumsum(np.asarray(hit, dtype=float))
    wrong = np.cumsum(np.asarray(weight, dtype=float))
    recall = np.concatenate([[0.0], right / objects, [1.0]])
    precision = np.concatenate([[0.0], right / np.maximum(right + wrong, np.finfo(float).eps), [0.0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return float(sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1)))


def evaluate(gt: np.ndarray, pred: np.ndarray, images: int, classes: int) -> Mapping[str, float | np.ndarray]:
    """Return ``ap_*`` per class (index 0 is the background) and ``map_*`` of rows as ``vid_eval*.npz`` has them."""
    out: dict[str, float | np.ndarray] = {}
    motions = list(gt[:, 6]) + [0.0] * (images - len(set(gt[:, 0].astype(int))))
    for name, (low, high) in RANGES.items():
        inside = sum(low <= m <= high for m in motions) / len(motions)
        share = 0.0 if inside == 1.0 else inside
        ap = np.full(classes + 1, np.nan)
        for c in range(1, classes + 1):
            truth = [row for row in gt if row[5] == c]
            ignored = {id(row): not low <= row[6] <= high for row in truth}
            taken: set[int] = set()
            hit, weight = [], []
            own = pred[pred[:, 5] == c]
            for row in own[np.argsort(-own[:, 6], kind="stable")]:
                here = [t for t in truth if t[0] == row[0]]
                if not here:
                    g, matched = share, False
                else:
                    best, matched, g = _matched(row, here, taken, ignored)
                    if best is not None:
                        taken.add(best)
                hit.append(matched and g != 1)
                weight.append(0.0 if matched or g == 1 else 1.0 if g == 0 else g)
            ap[c] = average_precision(hit, weight, sum(not flag for flag in ignored.values()))
        out[f"ap_{name}"] = ap
        out[f"map_{name}"] = float(np.nanmean(ap[1:]))
    return out


def _matched(
    row: np.ndarray, here: Sequence[np.ndarray], taken: set[int], ignored: Mapping[int, bool]
) -> tuple[int | None, bool, float]:
    """Return the object that a detection finds, whether it finds one, and its ignore value."""
    iou = [published_overlap(row[1:5], t[1:5]) for t in here]
    free = [(value, i) for i, value in enumerate(iou) if id(here[i]) not in taken]
    best = max(free, key=lambda pair: (pair[0], -pair[1]), default=None)
    if best is not None and best[0] >= 0.5:
        found = id(here[best[1]])
        return found, True, float(ignored[found])
    largest = [
        max((v for v, t in zip(iou, here, strict=True) if ignored[id(t)] == flag), default=0.0) for flag in (False, True)
    ]
    if largest[False] == largest[True]:
        return None, False, sum(ignored[id(t)] for t in here) / len(here)
    return None, False, float(largest[True] > largest[False])
