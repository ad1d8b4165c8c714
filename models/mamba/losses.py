"""The four losses of MAMBA and one training step with references (paper §3.5; released configuration).

Covers instance and pixel level, one key frame or a batch. Knows nothing about data sets, optimizers or banks: in training
the keys of the attention are the plain features of reference frames, and gradients flow through them.
"""

# B key images, R references per key, P anchors, G ground truth boxes, N proposals, S sampled RoIs, F RoI features, L map cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.mamba.boxes import encode_boxes
from models.mamba.images import Prepared
from models.mamba.model import BOX_DELTA_STD, Mamba, Proposals
from models.mamba.targets import Sample, assign, inside, sample

__all__ = ["TrainingRules", "Truth", "roi_loss", "rpn_loss", "sample_rois", "training_step"]

_RPN_BETA = 1.0 / 9.0
_ROI_BETA = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRules:
    """Overlap thresholds and sample sizes. Defaults are those of the released configuration."""

    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_samples: int = 256
    rpn_positive_share: float = 0.5
    roi_positive_iou: float = 0.5
    roi_samples: int = 256
    roi_positive_share: float = 0.25
    reference_rois: int = 75
    """Best proposals per reference frame that become keys of the instance level."""
    pixel_cells: int = 2000
    """Random cells per reference frame that become keys of the pixel level, and the most keys over all references."""


class Truth(NamedTuple):
    """Ground truth of one image."""

    boxes_G4: Tensor
    """Pixels of the network input."""
    labels_G: Tensor
    """int64 class index."""


def training_step(
    model: Mamba,
    keys: Prepared,
    references: Prepared | None,
    truth: Sequence[Truth],
    generator: torch.Generator,
    rules: TrainingRules | None = None,
    *,
    proposals: Proposals | None = None,
    reference_proposals: Proposals | None = None,
) -> dict[str, Tensor]:
    """Return ``loss_rpn_cls``, ``loss_rpn_bbox``, ``loss_cls`` and ``loss_bbox``; their sum is what is minimized.

    ``references`` holds B·R images, those of the first key image first; None trains the plain detector. The key gives all
    four losses; references give keys only. ``proposals`` of the keys and ``reference_proposals`` replace the RPN's (to repeat
    a recorded step). ``generator`` draws anchors, RoIs and cells.
    """
    rules = rules or TrainingRules()
    B = keys.pixels_BCHW.shape[0]
    key_map, ref_map = _encode(model, keys, references)
    at_neck = model.config.pixel_position == "neck"
    if model.pixel is not None and not at_neck and ref_map is not None:
        key_map = _enhance_pixels(model, key_map, ref_map, rules, generator)
    feature = model.neck(key_map)
    ref_feature = model.neck(ref_map) if ref_map is not None else None
    if model.pixel is not None and at_neck and ref_feature is not None:
        feature = _enhance_pixels(model, feature, ref_feature, rules, generator)

    logits_BP, deltas_BP4 = model.rpn(feature)
    anchors_P4 = model.rpn.anchors(feature)
    losses = rpn_loss(logits_BP, deltas_BP4, anchors_P4, keys.sizes_B2, truth, generator, rules)
    if proposals is None:
        number = model.config.train_proposals
        proposals = model.rpn.select(logits_BP.detach(), deltas_BP4.detach(), anchors_P4, keys.sizes_B2, number)

    ref_BMF, valid_BM = None, None
    if references is not None and ref_feature is not None:
        if reference_proposals is None:
            with torch.no_grad():
                reference_proposals = model.propose(ref_feature, references.sizes_B2)
        top = slice(rules.reference_rois)
        ref_rows = model.roi_features(ref_feature, reference_proposals.boxes_BN4[:, top])
        ref_BMF = ref_rows.reshape(B, -1, ref_rows.shape[-1])
        valid_BM = reference_proposals.valid_BN[:, top].reshape(B, -1)

    boxes, samples = sample_rois(proposals, truth, generator, rules)
    boxes_BS4 = pad_sequence(boxes, batch_first=True)
    cls_BSK1, reg_BSK4 = model.head(model.roi_features(feature, boxes_BS4), ref_BMF, valid_BM)
    return losses | roi_loss(cls_BSK1, reg_BSK4, boxes, samples, truth)


def rpn_loss(
    logits_BP: Tensor,
    deltas_BP4: Tensor,
    anchors_P4: Tensor,
    sizes_B2: Tensor,
    truth: Sequence[Truth],
    generator: torch.Generator,
    rules: TrainingRules,
) -> dict[str, Tensor]:
    """Return cross-entropy and smooth-L1 of the sampled anchors, both averaged over all of them.

    Anchors that cross the edge of the image (without padding) take no part.
    """
    logits, labels, deltas, targets = [], [], [], []
    for b, image in enumerate(truth):
        allowed = inside(anchors_P4, sizes_B2[b]).nonzero()[:, 0]
        match_P = assign(
            anchors_P4[allowed],
            image.boxes_G4,
            positive_iou=rules.rpn_positive_iou,
            negative_iou=rules.rpn_negative_iou,
            rescue_iou=rules.rpn_negative_iou,
        )
        chosen = sample(match_P, rules.rpn_samples, rules.rpn_positive_share, generator)
        index_S, positive_S = allowed[chosen.index_S], chosen.match_S >= 0
        logits.append(logits_BP[b, index_S])
        labels.append(positive_S.to(logits_BP.dtype))
        deltas.append(deltas_BP4[b, index_S[positive_S]])
        targets.append(encode_boxes(anchors_P4[index_S[positive_S]], image.boxes_G4[chosen.match_S[positive_S]]))
    logits_S, labels_S = torch.cat(logits), torch.cat(labels)
    number = max(logits_S.shape[0], 1)
    return {
        "loss_rpn_cls": F.binary_cross_entropy_with_logits(logits_S, labels_S, reduction="sum") / number,
        "loss_rpn_bbox": F.smooth_l1_loss(torch.cat(deltas), torch.cat(targets), reduction="sum", beta=_RPN_BETA) / number,
    }


def roi_loss(
    cls_BSK1: Tensor, reg_BSK4: Tensor, boxes: Sequence[Tensor], samples: Sequence[Sample], truth: Sequence[Truth]
) -> dict[str, Tensor]:
    """Return cross-entropy and class-specific smooth-L1 of the sampled RoIs, both averaged over all of them.

    ``boxes[b]`` are the RoIs of image b in the order of ``samples[b]``; rows of the padded outputs behind them do not count.
    """
    background = cls_BSK1.shape[-1] - 1
    logits, labels, deltas, targets = [], [], [], []
    for b, (boxes_S4, (_, match_S), image) in enumerate(zip(boxes, samples, truth, strict=True)):
        positive = (match_S >= 0).nonzero()[:, 0]
        label_S = torch.full_like(match_S, background)
        label_S[positive] = image.labels_G[match_S[positive]]
        logits.append(cls_BSK1[b, : match_S.shape[0]])
        labels.append(label_S)
        deltas.append(reg_BSK4[b, positive, label_S[positive]])
        targets.append(encode_boxes(boxes_S4[positive], image.boxes_G4[match_S[positive]]) / BOX_DELTA_STD)
    logits_S, labels_S = torch.cat(logits), torch.cat(labels)
    number = max(logits_S.shape[0], 1)
    return {
        "loss_cls": F.cross_entropy(logits_S, labels_S, reduction="sum") / number,
        "loss_bbox": F.smooth_l1_loss(torch.cat(deltas), torch.cat(targets), reduction="sum", beta=_ROI_BETA) / number,
    }


def _encode(model: Mamba, keys: Prepared, references: Prepared | None) -> tuple[Tensor, Tensor | None]:
    if references is None:
        return model.encode(keys.pixels_BCHW), None
    B, total = keys.pixels_BCHW.shape[0], references.pixels_BCHW.shape[0]
    if total == 0 or total % B:
        raise ValueError(f"{total} reference images for {B} key images; give the same number, at least one, for each")
    if keys.pixels_BCHW.shape[1:] != references.pixels_BCHW.shape[1:]:
        return model.encode(keys.pixels_BCHW), model.encode(references.pixels_BCHW)
    maps = model.encode(torch.cat([keys.pixels_BCHW, references.pixels_BCHW]))
    return maps[:B], maps[B:]


def _enhance_pixels(
    model: Mamba, map_BCHW: Tensor, references_BCHW: Tensor, rules: TrainingRules, generator: torch.Generator
) -> Tensor:
    """Enhance the key maps with random cells of their references.

    Random ones, because cells chosen by the references' ground truth give the answer away: the references of a still image
    are the image itself.
    """
    assert model.pixel is not None
    B, C = map_BCHW.shape[:2]
    cells_BRLC = references_BCHW.flatten(2).transpose(1, 2).reshape(B, -1, references_BCHW[0, 0].numel(), C)
    R, L = cells_BRLC.shape[1:3]
    per_reference = min(rules.pixel_cells, L)
    keys = []
    for cells_RLC in cells_BRLC:
        chosen = [torch.randperm(L, generator=generator, device=generator.device)[:per_reference] + r * L for r in range(R)]
        index = torch.cat(chosen)
        # Capped by a second draw, so that every reference keeps its share.
        kept = torch.randperm(index.shape[0], generator=generator, device=generator.device)[: rules.pixel_cells]
        keys.append(cells_RLC.flatten(0, 1)[index[kept].to(cells_RLC.device)])
    rows_BLC = map_BCHW.flatten(2).transpose(1, 2)
    enhanced_BLC: Tensor = rows_BLC + model.pixel(rows_BLC, torch.stack(keys))
    return enhanced_BLC.transpose(1, 2).reshape(map_BCHW.shape)


def sample_rois(
    proposals: Proposals, truth: Sequence[Truth], generator: torch.Generator, rules: TrainingRules
) -> tuple[list[Tensor], list[Sample]]:
    """Return the RoIs of each image and what they learn. Ground truth boxes are candidates too, before the proposals."""
    boxes, samples = [], []
    for b, image in enumerate(truth):
        candidates = torch.cat([image.boxes_G4, proposals.boxes_BN4[b, proposals.valid_BN[b]]])
        iou = rules.roi_positive_iou
        match = assign(candidates, image.boxes_G4, positive_iou=iou, negative_iou=iou)
        chosen = sample(match, rules.roi_samples, rules.roi_positive_share, generator)
        boxes.append(candidates[chosen.index_S])
        samples.append(chosen)
    return boxes, samples
