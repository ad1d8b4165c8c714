"""The detector run over a clip with the rows of its earlier frames as keys: for training and for validation.

Training needs gradients through the memory, so this is plain tensor code without banks or records; what a stream runs is the
operator. Instance level only. The result for a frame does not depend on later ones.
"""

# B clips, T frames per clip, N proposals, K rows written per frame, S sampled RoIs, M remembered rows, F RoI features,
# C channels, H and W of a map, P and Q bins of a RoI

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.mamba.backbone import STRIDE
from models.mamba.images import Prepared
from models.mamba.losses import TrainingRules, Truth, roi_loss, rpn_loss, sample_rois
from models.mamba.model import Detections, Mamba

__all__ = ["MemoryRules", "detect_clip", "rollout_losses", "separable_roi_align"]

_SAMPLES = 2  # per bin and axis, as in Mamba.roi_features


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRules:
    """Size of the memory in rows. Defaults are the paper's; the same names are options of the operator."""

    write_topk: int = 75
    max_length: int = 20000
    key_length: int = 2000


def rollout_losses(
    model: Mamba,
    images: Prepared,
    truth: Sequence[Truth],
    frames: int,
    generator: torch.Generator,
    rules: TrainingRules,
    *,
    memory: bool,
) -> dict[str, Tensor]:
    """Return the four losses over all frames of clips that are gone through in order, as a stream would be.

    ``images`` holds B·T frames, those of a clip next to each other and in order, ``frames`` = T. The first frame attends to
    the plain features of its own best ``rules.reference_rois`` proposals and leaves those; a later one attends to what all
    earlier ones left, and leaves its enhanced rows, before the ReLU. Gradients flow through them. (This is what the operator
    does with ``init: self``; in ``losses.training_step``, the paper's form, references are not enhanced.) Without ``memory``
    it is the plain detector on the same frames.
    """
    feature = model.neck(model.encode(images.pixels_BCHW))
    logits_BP, deltas_BP4 = model.rpn(feature)
    anchors_P4 = model.rpn.anchors(feature)
    losses = rpn_loss(logits_BP, deltas_BP4, anchors_P4, images.sizes_B2, truth, generator, rules)
    number = model.config.train_proposals
    proposals = model.rpn.select(logits_BP.detach(), deltas_BP4.detach(), anchors_P4, images.sizes_B2, number)
    sampled, samples = sample_rois(proposals, truth, generator, rules)
    sampled_BS4 = pad_sequence(sampled, batch_first=True)
    bins = model.config.roi_size
    K = min(rules.reference_rois, proposals.boxes_BN4.shape[1])
    if not memory:
        cls_BSK1, reg_BSK4 = model.head(separable_roi_align(feature, sampled_BS4, bins))
        return losses | roi_loss(cls_BSK1, reg_BSK4, sampled, samples, truth)

    # What is written stands before what is learned from; both are queries.
    boxes_BN4 = torch.cat([proposals.boxes_BN4[:, :K], sampled_BS4], dim=1)
    x_BNF = separable_roi_align(feature, boxes_BN4, bins)
    x_BTNC = x_BNF.view(-1, frames, *x_BNF.shape[1:])
    valid_BTK = proposals.valid_BN[:, :K].view(-1, frames, K)
    plain_BKC = x_BTNC[:, 0, :K]
    for fc, attention in zip(model.head.fc, model.head.attention, strict=True):
        h_BTNC, plain_BKC = fc(x_BTNC), fc(plain_BKC)
        keys_BMC, valid_BM = plain_BKC, valid_BTK[:, 0]
        enhanced = []
        for t in range(frames):
            y_BNC = h_BTNC[:, t] + attention(h_BTNC[:, t], keys_BMC, valid_BM)
            enhanced.append(y_BNC)
            if t > 0:  # the first frame leaves its plain rows
                keys_BMC = torch.cat([keys_BMC, y_BNC[:, :K]], dim=1)
                valid_BM = torch.cat([valid_BM, valid_BTK[:, t]], dim=1)
        x_BTNC, plain_BKC = F.relu(torch.stack(enhanced, dim=1)), F.relu(plain_BKC)
    cls_BSK1, reg_BSK4 = model.head.predict(x_BTNC[:, :, K:].flatten(0, 1))
    return losses | roi_loss(cls_BSK1, reg_BSK4, sampled, samples, truth)


@torch.no_grad()
def detect_clip(
    model: Mamba, clip: Iterable[Tensor], rules: MemoryRules, generator: torch.Generator, *, memory: bool = True
) -> Iterator[Detections]:
    """Yield the detections of each frame (RGB uint8 ``[H, W, 3]``) of one clip, causally, from an empty memory.

    The slow and obvious form of what the operator ``mamba`` does with ``init: self``.
    """
    device = next(model.parameters()).device
    banks: list[Tensor | None] = [None] * model.config.stages
    for frame in clip:
        images = model.prepare([frame], device)
        feature = model.neck(model.encode(images.pixels_BCHW))
        proposals = model.propose(feature, images.sizes_B2)
        x_BNC = model.roi_features(feature, proposals.boxes_BN4)
        written = int(proposals.valid_BN[0, : rules.write_topk].sum())
        plain_BKC = x_BNC[:, :written]
        for i, (fc, attention) in enumerate(zip(model.head.fc, model.head.attention, strict=True)):
            x_BNC, plain_BKC = fc(x_BNC), fc(plain_BKC)
            bank = banks[i]
            if memory and bank is None and written:
                banks[i] = plain_BKC[0]
                x_BNC = x_BNC + attention(x_BNC, plain_BKC)
            elif memory and bank is not None:
                x_BNC = x_BNC + attention(x_BNC, _draw(bank, rules.key_length, generator)[None])
                kept = _draw(bank, rules.max_length - written, generator)
                banks[i] = torch.cat([kept, x_BNC[0, :written]])
            x_BNC, plain_BKC = F.relu(x_BNC), F.relu(plain_BKC)
        cls_BNK1, reg_BNK4 = model.head.predict(x_BNC)
        yield model.detect(cls_BNK1, reg_BNK4, proposals, images.sizes_B2, images.scales_B2)[0]


def separable_roi_align(feature_BCHW: Tensor, boxes_BN4: Tensor, bins: int) -> Tensor:
    """Return what ``Mamba.roi_features`` returns, as two matrix products: ``x_BNF``.

    Bilinear interpolation and the mean over samples act on rows and columns apart. torchvision's gradient took half of the
    training time of the small recipe (84 ms per step on one core, with this one 45 ms). Work grows with the size of the map,
    so it is not for the full-size model.
    """
    B, C, H, W = feature_BCHW.shape
    N = boxes_BN4.shape[1]
    x_BNQW = _interpolation(boxes_BN4[..., 0], boxes_BN4[..., 2], bins, W)
    y_BNPH = _interpolation(boxes_BN4[..., 1], boxes_BN4[..., 3], bins, H)
    columns = torch.bmm(feature_BCHW.reshape(B, C * H, W), x_BNQW.flatten(1, 2).transpose(1, 2))
    columns_BNHCQ = columns.view(B, C, H, N, bins).permute(0, 3, 2, 1, 4)
    x_BNPCQ = torch.matmul(y_BNPH, columns_BNHCQ.reshape(B, N, H, C * bins)).view(B, N, bins, C, bins)
    return x_BNPCQ.transpose(2, 3).reshape(B, N, -1)


def _interpolation(low_BN: Tensor, high_BN: Tensor, bins: int, cells: int) -> Tensor:
    """Return the weight of each cell in each bin along one axis, ``[B, N, bins, cells]``."""
    offset = (torch.arange(bins * _SAMPLES, device=low_BN.device) + 0.5) / (bins * _SAMPLES)
    position = (low_BN[..., None] + offset * (high_BN - low_BN)[..., None]) / STRIDE - 0.5
    counts = (position >= -1.0) & (position <= cells)  # samples further outside are 0
    distance = position.clamp(0.0, cells - 1.0)[..., None] - torch.arange(cells, device=low_BN.device)
    weight = (1.0 - distance.abs()).clamp(min=0.0) * counts[..., None]
    return weight.view(*low_BN.shape, bins, _SAMPLES, cells).mean(dim=3)


def _draw(rows_MC: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return all rows, or ``number`` of them at random where there are more."""
    if rows_MC.shape[0] <= number:
        return rows_MC
    return rows_MC[torch.randperm(rows_MC.shape[0], generator=generator)[:number].to(rows_MC.device)]
