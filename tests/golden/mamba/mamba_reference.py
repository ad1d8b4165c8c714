"""What the published code of MAMBA does, written out slowly: float64, one image at a time, loops instead of tricks.

Written from the description of the vectors (README.md beside this file) and of the method; it shares nothing with ``models`` or
``operators``. Its own test compares it with the published vectors, so that cases of other sizes made with it can judge the
product. Every permutation that the published code draws comes from ``draw(size)``: recorded draws repeat a case, fresh ones
make a new one. With ``margin`` above 0, :class:`TooClose` is raised where a decision (a threshold, an order) hangs by less.
"""

# C channels, N boxes or rows, M keys, G ground truth boxes, P anchors, D detections

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

Draw = Callable[[int], Tensor]
Drawn = Callable[[int], list[Tensor]]
Cells = Callable[[str, Tensor, Tensor], Tensor]
Arrays = dict[str, Tensor]

STRIDE = 16
BACKBONE, NECK, RPN, HEAD = (
    "detector.backbone.",
    "detector.neck.convs.0.conv",
    "detector.rpn_head.",
    "detector.roi_head.bbox_head.",
)
PIXEL = "pixel.aggregator."
LARGEST_LOG = math.log(1000 / 16)


class TooClose(Exception):
    """A decision of this case depends on rounding; make another one."""


@dataclass
class Network:
    """Weights under their official names, and the settings of ``*_config.json``."""

    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    margin: float = 0.0
    size: tuple[float, float] = field(init=False)  # (h, w) of the image without padding

    def __post_init__(self) -> None:
        self.weights = {
            name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in self.weights.items()
        }
        self.size = (float(self.settings["H"]), float(self.settings["W"]))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def conv(self, name: str, x: Tensor, **how: Any) -> Tensor:
        return F.conv2d(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"), **how)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, gain, shift = (self.weights[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * gain[:, None, None] + shift[:, None, None]

    def decided(self, gaps: Tensor, what: str) -> None:
        if self.margin and gaps.numel() and float(gaps.abs().min()) < self.margin:
            raise TooClose(what)


# The network


def backbone(net: Network, image: Tensor) -> Tensor:
    """Return the map [1, C, h, w] of an image [3, H, W]: a bottleneck ResNet whose last stage dilates every 3x3."""
    x = F.relu(net.norm(BACKBONE + "bn1", net.conv(BACKBONE + "conv1", image.double()[None], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (2, 1), (1, 2)), start=1):
        block = 0
        while f"{BACKBONE}layer{stage}.{block}.conv1.weight" in net.weights:
            name = f"{BACKBONE}layer{stage}.{block}."
            step = stride if block == 0 else 1
            y = F.relu(net.norm(name + "bn1", net.conv(name + "conv1", x)))
            y = F.relu(net.norm(name + "bn2", net.conv(name + "conv2", y, stride=step, padding=dilation, dilation=dilation)))
            y = net.norm(name + "bn3", net.conv(name + "conv3", y))
            if name + "downsample.0.weight" in net.weights:
                x = net.norm(name + "downsample.1", net.conv(name + "downsample.0", x, stride=step))
            x = F.relu(x + y)
            block += 1
    return x


def neck(net: Network, map_: Tensor) -> Tensor:
    return F.relu(net.conv(NECK, map_, padding=1))


def rpn(net: Network, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [P], deltas [P, 4] and anchors [P, 4], cell by cell."""
    x = F.relu(net.conv(RPN + "rpn_conv", feature, padding=1))
    logits, deltas = net.conv(RPN + "rpn_cls", x)[0], net.conv(RPN + "rpn_reg", x)[0]
    shapes = [(ratio, scale) for ratio in (0.5, 1.0, 2.0) for scale in net.settings["scales"]]
    anchors, scores, moves = [], [], []
    for row in range(feature.shape[2]):
        for column in range(feature.shape[3]):
            for a, (ratio, scale) in enumerate(shapes):
                h, w = 16 * scale * math.sqrt(ratio), 16 * scale / math.sqrt(ratio)
                x0, y0 = STRIDE * column, STRIDE * row
                anchors.append([x0 - w / 2, y0 - h / 2, x0 + w / 2, y0 + h / 2])
                scores.append(logits[a, row, column])
                moves.append(deltas[4 * a : 4 * a + 4, row, column])
    return torch.stack(scores), torch.stack(moves), torch.tensor(anchors, dtype=torch.float64)


def decode(boxes: Tensor, deltas: Tensor) -> Tensor:
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2 + deltas[:, 0] * w, (boxes[:, 1] + boxes[:, 3]) / 2 + deltas[:, 1] * h
    w, h = w * deltas[:, 2].clamp(-LARGEST_LOG, LARGEST_LOG).exp(), h * deltas[:, 3].clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)


def encode(boxes: Tensor, targets: Tensor) -> Tensor:
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    tw, th = targets[:, 2] - targets[:, 0], targets[:, 3] - targets[:, 1]
    dx = ((targets[:, 0] + targets[:, 2]) - (boxes[:, 0] + boxes[:, 2])) / 2 / w
    dy = ((targets[:, 1] + targets[:, 3]) - (boxes[:, 1] + boxes[:, 3])) / 2 / h
    return torch.stack([dx, dy, (tw / w).log(), (th / h).log()], dim=1)


def clip(net: Network, boxes: Tensor) -> Tensor:
    h, w = net.size
    return torch.stack(
        [boxes[:, 0].clamp(0, w), boxes[:, 1].clamp(0, h), boxes[:, 2].clamp(0, w), boxes[:, 3].clamp(0, h)], dim=1
    )


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Return IoU [N, M]; 0 where both boxes are empty."""
    left_top = torch.maximum(a[:, None, :2], b[None, :, :2])
    right_bottom = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (right_bottom - left_top).clamp(min=0).prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return torch.nan_to_num(shared / (area_a[:, None] + area_b[None] - shared), nan=0.0)


def best_first(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


def suppress(net: Network, boxes: Tensor, scores: Tensor, threshold: float, what: str) -> Tensor:
    """Return the kept positions, best first: each kept box drops the worse ones that it overlaps more than ``threshold``."""
    alive, kept = best_first(scores), []
    iou = overlaps(boxes, boxes)
    while len(alive):
        best, rest = alive[0], alive[1:]
        kept.append(int(best))
        near = iou[best, rest]
        net.decided(near - threshold, f"overlap of {what}")
        net.decided((scores[best] - scores[rest])[near > threshold], f"which of two {what}")
        alive = rest[near <= threshold]
    return torch.tensor(kept, dtype=torch.int64)


@torch.no_grad()
def propose(net: Network, feature: Tensor, number: int) -> Tensor:
    """Return proposals [N, 5]: box and score, best first."""
    logits, deltas, anchors = rpn(net, feature)
    scores = logits.sigmoid()
    best = best_first(scores)
    net.decided((scores[best][:-1] - scores[best][1:])[net.settings["nms_pre"] - 1 :][:1], "number of anchors")
    best = best[: net.settings["nms_pre"]]
    boxes, scores = clip(net, decode(anchors[best], deltas[best])), scores[best]
    real = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, scores = boxes[real], scores[real]
    kept = suppress(net, boxes, scores, 0.7, "proposals")
    net.decided((scores[kept][:-1] - scores[kept][1:])[:number], "order of proposals")
    kept = kept[:number]
    return torch.cat([boxes[kept], scores[kept, None]], dim=1)


def roi_features(feature: Tensor, boxes: Tensor) -> Tensor:
    """Return RoIAlign features [N, C, 7, 7]."""
    return roi_align(feature, [boxes[:, :4]], 7, 1 / STRIDE, sampling_ratio=2, aligned=True)


def attention(net: Network, prefix: str, heads: int, x: Tensor, keys: Tensor) -> Tensor:
    """Return A(x, keys) [N, C], head by head."""
    query, key, value = (
        net.linear(prefix + "fc_embed", x),
        net.linear(prefix + "ref_fc_embed", keys),
        net.linear(prefix + "ref_fc", keys),
    )
    width, out = x.shape[1] // heads, []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        out.append((query[:, own] @ key[:, own].T / math.sqrt(width)).softmax(dim=1) @ value[:, own])
    return net.linear(prefix + "fc", torch.cat(out, dim=1))


def stage(net: Network, i: int, h: Tensor, keys: Tensor) -> Tensor:
    return h + attention(net, f"{HEAD}aggregator.{i}.", net.settings["heads"], h, keys)


def outputs(net: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.linear(HEAD + "fc_cls", x), net.linear(HEAD + "fc_reg", x)


def head_with_references(net: Network, x: Tensor, refs: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run the head with plain reference rows as keys. Return logits, deltas and the rows of each stage."""
    rows = []
    for i in range(2):
        h, refs = (net.linear(f"{HEAD}shared_fcs.{i}", part) for part in (x, refs))
        rows.append(refs)
        x, refs = F.relu(stage(net, i, h, refs)), F.relu(refs)
    return *outputs(net, x), rows


@torch.no_grad()
def detect(net: Network, cls: Tensor, reg: Tensor, boxes: Tensor, scale: Sequence[float]) -> Tensor:
    """Return [D, 6]: box divided by ``scale`` (x, y, x, y), score, class; best first."""
    scores = cls.softmax(dim=1)
    found = []
    for label in range(net.settings["ncls"]):
        own = clip(net, decode(boxes[:, :4], reg[:, 4 * label : 4 * label + 4] * 0.2)) / torch.tensor(
            scale, dtype=torch.float64
        )
        net.decided(scores[:, label] - net.settings["score_thr"], "score threshold")
        good = scores[:, label] > net.settings["score_thr"]
        own, score = own[good], scores[good, label]
        kept = suppress(net, own, score, 0.5, "detections")
        found.append(torch.cat([own[kept], score[kept, None], torch.full((len(kept), 1), float(label)).double()], dim=1))
    rows = torch.cat(found)
    rows = rows[best_first(rows[:, 4])]
    net.decided((rows[:-1, 4] - rows[1:, 4])[: net.settings["max_det"]], "order of detections")
    return rows[: net.settings["max_det"]]


# Memory


class Bank:
    """Rows only. Reads and writes draw a permutation of all rows where the published code does."""

    def __init__(self, rows: Tensor, max_length: int, key_length: int) -> None:
        self.rows, self.max_length, self.key_length = rows, max_length, key_length

    def read(self, draw: Draw) -> Tensor:
        if len(self.rows) < self.key_length:
            return self.rows
        return self.rows[draw(len(self.rows))[: self.key_length]]

    def write(self, new: Tensor, draw: Draw) -> None:
        if len(new) == 0:
            return
        if len(self.rows) >= self.max_length:
            self.rows = self.rows[draw(len(self.rows))[: -len(new)]]
        self.rows = torch.cat([self.rows, new])


def head_with_banks(net: Network, x: Tensor, banks: Sequence[Bank], draw: Draw) -> tuple[Tensor, Tensor]:
    for i, bank in enumerate(banks):
        y = stage(net, i, net.linear(f"{HEAD}shared_fcs.{i}", x), bank.read(draw))
        bank.write(y[: net.settings["topk"]], draw)
        x = F.relu(y)
    return outputs(net, x)


def cells_of(net: Network, box: Tensor, height: int, width: int) -> list[int]:
    """Return the cells whose center lies in a box, row by row; else the one that holds the box's center."""
    x1, y1, x2, y2 = box.tolist()
    inside = []
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
            if x1 <= x <= x2 and y1 <= y <= y2:
                inside.append(row * width + column)
            net.decided(torch.tensor([x - x1, x2 - x, y - y1, y2 - y]) / STRIDE, "cell in a box")
    if not inside:
        column, row = (x1 + x2) / 2 / STRIDE, (y1 + y2) / 2 / STRIDE
        net.decided(torch.tensor([column - round(column), row - round(row)]), "cell of a center")
        inside = [min(max(int(row), 0), height - 1) * width + min(max(int(column), 0), width - 1)]
    return inside


def choose_cells(net: Network, found: Tensor, map_: Tensor, generator: torch.Generator) -> Tensor:
    """Return the cells that a frame writes to the pixel bank; of a big box some at random."""
    settings, (height, width) = net.settings, map_.shape[2:]
    net.decided(found[:, 4] - settings["thr"], "pixel threshold")
    chosen: list[int] = []
    for row in found[found[:, 4] > settings["thr"]]:
        cells = torch.tensor(cells_of(net, row[:4], height, width))
        if len(cells) > settings["ppb"]:
            cells = cells[torch.randperm(len(cells), generator=generator)[: settings["ppb"]]]
        chosen += cells.tolist()
    if chosen:
        return torch.tensor(chosen[: settings["ppf"]])
    strength = map_[0].pow(2).sum(0).sqrt().flatten()
    best = best_first(strength)
    net.decided((strength[best][:-1] - strength[best][1:])[: settings["fb"]], "order of cells")
    return best[: settings["fb"]]


# Whole videos


def scale_of(settings: Mapping[str, Any]) -> list[float]:
    """Return the resize factor as (x, y, x, y)."""
    scale = settings.get("scale", 1.0)
    return [float(s) for s in scale] if isinstance(scale, (list, tuple)) else [float(scale)] * 4


@torch.no_grad()
def instance_video(net: Network, frames: Tensor, refs: Tensor, draw: Draw, perms: Drawn) -> Arrays:
    """Return the entries of ``tiny_video*.npz``. ``perms(t)`` gives what was drawn since its last call."""
    settings, out, banks = net.settings, {}, []
    for t in range(len(frames)):
        out[f"f{t}_backbone"] = backbone(net, frames[t])
        out[f"f{t}_neck"] = feature = neck(net, out[f"f{t}_backbone"])
        out[f"f{t}_proposals"] = boxes = propose(net, feature, settings["n_prop"])
        out[f"f{t}_roi_feats"] = roi_features(feature, boxes)
        x = out[f"f{t}_roi_feats"].flatten(1)
        if t == 0:
            rows = []
            for i, image in enumerate([*refs, frames[0]]):
                ref_feature = neck(net, backbone(net, image))
                out[f"f0_ref_proposals_{i}"] = top = propose(net, ref_feature, settings["n_prop"])[: settings["topk"]]
                rows.append(roi_features(ref_feature, top))
            out["f0_ref_roi_feats"] = torch.cat(rows)
            cls, reg, kept = head_with_references(net, x, torch.cat(rows).flatten(1))
            banks = [Bank(r, settings["max_len"], settings["key_len"]) for r in kept]
        else:
            cls, reg = head_with_banks(net, x, banks, draw)
        out[f"f{t}_cls_score"], out[f"f{t}_bbox_pred"] = cls, reg
        out[f"f{t}_det"] = detect(net, cls, reg, boxes, scale_of(settings))
        out |= {f"f{t}_bank{i}": bank.rows for i, bank in enumerate(banks)}
        out |= {f"f{t}_perm{j}": perm for j, perm in enumerate(perms(t))}
    return out


@torch.no_grad()
def pixel_video(
    net: Network, frames: Tensor, refs: Tensor, draw: Draw, perms: Callable[[int], list[Tensor]], cells: Cells
) -> Arrays:
    """Return the entries of ``tiny_pixel_video*.npz`` but the weights. ``cells(entry, detections, map)`` chooses cells."""
    settings, out, at_neck = net.settings, {}, net.settings["position"] == "neck"
    ones = [1.0] * 4

    def plain(image: Tensor) -> Tensor:
        map_ = backbone(net, image)
        return neck(net, map_) if at_neck else map_

    def rows_at(map_: Tensor, index: Tensor) -> Tensor:
        return map_[0].flatten(1).T[index]

    # The start: detect on plain maps, write their cells image by image.
    images = [*refs, frames[0]]
    maps = [plain(image) for image in images]
    features = [map_ if at_neck else neck(net, map_) for map_ in maps]
    boxes = [propose(net, feature, settings["n_prop"]) for feature in features]
    x = [roi_features(f, b).flatten(1) for f, b in zip(features, boxes, strict=True)]
    x_refs = torch.cat([part[: settings["topk"]] for part in x])
    pixels = Bank(maps[0].new_zeros(0, maps[0].shape[1]), settings["pmax"], settings["pkey"])
    rows: list[Tensor] = []
    for i in range(len(images)):
        cls, reg, rows = head_with_references(net, x[i], x_refs)
        found = detect(net, cls, reg, boxes[i], ones)
        out[f"init{i}_det"] = found[:, :5]
        out[f"init{i}_cells"] = cells(f"init{i}_cells", found, maps[i])
        pixels.write(rows_at(maps[i], out[f"init{i}_cells"]), draw)
    out["init_bank"] = pixels.rows
    banks = [Bank(r, settings["max_len"], settings["key_len"]) for r in rows]

    for t in range(len(frames)):
        out[f"f{t}_map"] = map_ = plain(frames[t])
        out[f"f{t}_pix_keys"] = keys = pixels.read(draw)
        points = map_[0].flatten(1).T
        enhanced = (points + attention(net, PIXEL, settings["pheads"], points, keys)).T.reshape(map_.shape)
        out[f"f{t}_map_enhanced"] = enhanced
        feature = enhanced if at_neck else neck(net, enhanced)
        proposals = propose(net, feature, settings["n_prop"])
        cls, reg = head_with_banks(net, roi_features(feature, proposals).flatten(1), banks, draw)
        out[f"f{t}_det"] = found = detect(net, cls, reg, proposals, ones)
        out[f"f{t}_written_cells"] = cells(f"f{t}_written_cells", found, enhanced)
        pixels.write(rows_at(enhanced, out[f"f{t}_written_cells"]), draw)
        out[f"f{t}_pix_bank"] = pixels.rows
        out |= {f"f{t}_ins_bank{i}": bank.rows for i, bank in enumerate(banks)}
        out |= {f"f{t}_perm{j}": perm for j, perm in enumerate(perms(t))}
    return out
