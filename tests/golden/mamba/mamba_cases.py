"""What the golden files of MAMBA have in common: kinds, tiny models, comparisons, and a literal bank."""

# N boxes, D detections, M bank rows

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.mamba.boxes import box_iou
from models.mamba.checkpoint import infer_config, own_key
from models.mamba.images import Prepared
from models.mamba.model import Mamba, Proposals

ATOL = 1e-4  # the README's tolerance for maps, attention, bank rows and logits

ATTENTION = (r"agg\d+_x",)
OLDER_ATTENTION = (r"geo\d+_(attention|alignment)_x",)
BANK = ("init", "key_length", r"s\d+_after")
KEYS = (r"detector\.backbone\.conv1\.weight",)
VIDEO = ("frames", "f0_proposals")
PIXEL_VIDEO = ("frames", r"f0_pix_keys")
TRAIN_STEP = ("img", "out_total")
EVALUATION = ("gt", "pred", "n_images")
SETTINGS = ("base", "topk")

KINDS = [
    (".npz", ATTENTION),
    (".npz", OLDER_ATTENTION),
    (".npz", BANK),
    (".npz", KEYS),  # weights of a tiny model
    (".npz", VIDEO),
    (".npz", PIXEL_VIDEO),
    (".npz", TRAIN_STEP),
    (".npz", EVALUATION),
    (".json", KEYS),
    (".json", SETTINGS),
]


def tiny_model(settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Mamba:
    """Build the model of official weights; settings decide over what shapes suggest."""
    state = {own_key(name) or name: torch.from_numpy(array) for name, array in weights.items()}
    told: dict[str, Any] = {
        "heads": settings["heads"],
        "anchor_scales": tuple(float(s) for s in settings["scales"]),
        "nms_pre": settings["nms_pre"],
        "proposals": settings["n_prop"],
        "train_proposals": settings["n_prop_train"],
        "score_threshold": settings["score_thr"],
        "max_detections": settings["max_det"],
    }
    if any(name.startswith("pixel.") for name in state):
        told |= {"pixel_heads": settings["pheads"], "pixel_position": settings["position"]}
    model = Mamba(infer_config(state, Path("golden"), told))
    model.load_state_dict(state)
    return model.eval()


def scale_xyxy(settings: Mapping[str, Any]) -> np.ndarray:
    """Return the resize factor of a case as (x, y, x, y); it is recorded as one number or as these four."""
    return np.broadcast_to(np.asarray(settings.get("scale", 1.0), dtype=np.float32), 4)


def prepared(images: np.ndarray, settings: Mapping[str, Any]) -> Prepared:
    """Wrap images that are normalized and padded already."""
    number, _, height, width = images.shape
    size = torch.tensor([[settings.get("H", height), settings.get("W", width)]], dtype=torch.float32)
    scale = torch.tensor(scale_xyxy(settings)[[1, 0]])
    return Prepared(torch.from_numpy(images), size.expand(number, 2), scale.expand(number, 2))


def as_proposals(*rows: np.ndarray) -> Proposals:
    """Stack recorded proposals [N, 5] of several images."""
    most = max(r.shape[0] for r in rows)
    boxes, scores, valid = torch.zeros(len(rows), most, 4), torch.zeros(len(rows), most), torch.zeros(len(rows), most)
    for i, r in enumerate(rows):
        boxes[i, : len(r)], scores[i, : len(r)], valid[i, : len(r)] = torch.from_numpy(r[:, :4]), torch.from_numpy(r[:, 4]), 1
    return Proposals(boxes, scores, valid.bool())


def assert_close(got: Tensor, wanted: np.ndarray, what: str, atol: float = ATOL, scale: float = 1.0) -> None:
    """Compare with an absolute tolerance for values of order 1; larger values (or ``scale``) widen it in proportion."""
    assert tuple(got.shape) == wanted.shape, what
    if wanted.size:
        worst = float((got.detach().double() - torch.from_numpy(wanted).double()).abs().max())
        allowed = atol * max(1.0, scale, float(np.abs(wanted).max()))
        assert worst <= allowed, f"{what}: off by {worst:.2e}, allowed {allowed:.2e}"


def assert_roi_features(got_NF: Tensor, wanted: np.ndarray, channels: int, what: str) -> None:
    """Compare with RoI features recorded per cell, ``[N, C, 7, 7]``, or averaged over the cells of a RoI."""
    N = len(wanted)
    if wanted.size != got_NF.numel():
        got_NF = got_NF.reshape(N, channels, -1).mean(dim=2)
    assert_close(got_NF, wanted.reshape(N, -1), what)


def in_order_of(wanted_NC: np.ndarray, rows_NC: Tensor) -> list[int]:
    """Return which of ``rows`` stands at each place of ``wanted``: proposals whose scores tie may have swapped places."""
    if len(wanted_NC) != len(rows_NC):
        return list(range(len(rows_NC)))
    distance_NN = torch.cdist(torch.from_numpy(wanted_NC).double(), rows_NC.detach().double(), p=torch.inf)
    order = list(range(len(wanted_NC)))
    moved = [i for i in order if distance_NN[i, i] > ATOL * max(1.0, float(np.abs(wanted_NC).max()))]
    free = set(moved)
    for i in moved:
        order[i] = min(free, key=lambda j: float(distance_NN[i, j]))
        free.remove(order[i])
    return order


def assert_same_boxes(got: np.ndarray, wanted: np.ndarray, what: str) -> None:
    """Compare boxes [N, 4 + score + class?] as sets: the same class, IoU > 0.999, scores within 1e-4."""
    assert got.shape == wanted.shape, f"{what}: {got.shape[0]} boxes instead of {wanted.shape[0]}"
    near = box_iou(torch.from_numpy(got[:, :4]).double(), torch.from_numpy(wanted[:, :4]).double()).numpy() > 0.999
    # The overlap of boxes without area is 0, and that of slivers is all rounding: the same place to a hundredth of a pixel.
    near |= np.abs(got[:, None, :4] - wanted[None, :, :4]).max(axis=-1, initial=0.0) < 1e-2
    near &= np.abs(got[:, None, 4] - wanted[None, :, 4]) < 1e-4
    near &= (got[:, None, 5:] == wanted[None, :, 5:]).all(axis=-1)
    free = np.ones(len(wanted), dtype=bool)
    for i in range(len(got)):
        partners = np.flatnonzero(near[i] & free)
        assert len(partners), f"{what}: box {i} {got[i]} has no partner"
        free[partners[0]] = False


class LiteralBank:
    """The published bank, word for word, with its permutations handed in."""

    def __init__(self, rows: Tensor, capacity: int, keys: int, draws: Iterator[np.ndarray]) -> None:
        self.rows, self.capacity, self.keys, self.draws = rows, capacity, keys, draws

    def read(self) -> Tensor:
        if len(self.rows) < self.keys:
            return self.rows
        return self.rows[torch.from_numpy(next(self.draws))[: self.keys]]

    def write(self, new: Tensor) -> None:
        if len(new) == 0:
            return
        kept = self.rows
        if len(kept) >= self.capacity:
            kept = kept[torch.from_numpy(next(self.draws))[: -len(new)]]
        self.rows = torch.cat([kept, new])


def draws(arrays: Mapping[str, np.ndarray], frame: int) -> Iterator[np.ndarray]:
    """Yield the recorded permutations of a frame in order."""
    j = 0
    while f"f{frame}_perm{j}" in arrays:
        yield arrays[f"f{frame}_perm{j}"]
        j += 1
