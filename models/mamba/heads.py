"""The two heads of the detector: region proposals, and the box head that attends to remembered rows.

They hold weights only and know nothing of targets, losses or where keys come from (a bank, references). Proposals are sorted by
score and padded to a fixed number, so that shapes do not depend on the data.
"""

# B batch, A anchors per cell, P anchors of a map (H·W·A), N proposals or RoIs, M keys, F flattened RoI features, C channels,
# H height, W width, K candidates kept; in the box head classes

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from connectors.extras import optional
from models.mamba.attention import Attention
from models.mamba.backbone import STRIDE
from models.mamba.boxes import base_anchors, clip_boxes, decode_boxes, grid_anchors
from models.mamba.config import MambaConfig
from models.mamba.suppression import suppress
from models.uploads import upload

ops = optional("torchvision.ops")

__all__ = ["BoxHead", "Proposals", "RegionProposals"]


class Proposals(NamedTuple):
    """Proposals of a batch, best first. Rows that are not valid hold zeros."""

    boxes_BN4: Tensor
    """Pixels of the network input."""
    scores_BN: Tensor
    """Objectness in 0..1."""
    valid_BN: Tensor
    """bool; the valid rows stand first."""


class RegionProposals(nn.Module):
    """3x3 convolution, then one objectness logit and four deltas per anchor (Faster R-CNN §3.1)."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        channels = config.neck_channels
        anchors = len(config.anchor_scales) * len(config.anchor_ratios)
        self.config = config
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, anchors * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, feature_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``logits_BP`` and ``deltas_BP4`` in the order of :meth:`anchors`, in float32."""
        x_BCHW = F.relu(self.conv(feature_BCHW))
        logits_BP = self.objectness(x_BCHW).permute(0, 2, 3, 1).flatten(1)
        deltas_BP4 = self.deltas(x_BCHW).permute(0, 2, 3, 1).reshape(logits_BP.shape[0], -1, 4)
        return logits_BP.float(), deltas_BP4.float()

    def anchors(self, feature_BCHW: Tensor) -> Tensor:
        """Return the anchors ``[P, 4]`` of a map of this size."""
        config = self.config
        # No buffer: a model moved to half precision would round the anchors with its weights.
        base_A4 = upload(base_anchors(config.anchor_base, config.anchor_scales, config.anchor_ratios), feature_BCHW.device)
        height, width = feature_BCHW.shape[-2:]
        return grid_anchors(base_A4, height, width, STRIDE)

    @torch.no_grad()
    def select(self, logits_BP: Tensor, deltas_BP4: Tensor, anchors_P4: Tensor, sizes_B2: Tensor, proposals: int) -> Proposals:
        """Turn the network's output into at most ``proposals`` boxes per image (best ``nms_pre``, clip, NMS).

        ``sizes_B2`` are the (h, w) of the images without padding. Boxes without area after clipping are dropped.
        """
        B, P = logits_BP.shape
        scores_BK, order_BK = logits_BP.sigmoid().topk(min(self.config.nms_pre, P), dim=1)
        chosen_BK4 = deltas_BP4.gather(1, order_BK[..., None].expand(-1, -1, 4))
        boxes_BK4 = clip_boxes(decode_boxes(anchors_P4[order_BK], chosen_BK4), sizes_B2)
        real_BK = ((boxes_BK4[..., 2:] - boxes_BK4[..., :2]) > 0).all(dim=-1)
        if boxes_BK4.device.type != "cpu":
            return _first_kept(boxes_BK4, scores_BK, suppress(boxes_BK4, real_BK, self.config.rpn_nms), proposals)
        boxes_BN4 = boxes_BK4.new_zeros(B, proposals, 4)
        scores_BN = scores_BK.new_zeros(B, proposals)
        valid_BN = torch.zeros(B, proposals, dtype=torch.bool, device=boxes_BK4.device)
        # One NMS per image: suppression is quadratic, so one call over the whole batch would cost B times as much.
        for b in range(B):
            candidates = real_BK[b].nonzero()[:, 0]
            kept = candidates[ops.nms(boxes_BK4[b, candidates], scores_BK[b, candidates], self.config.rpn_nms)][:proposals]
            boxes_BN4[b, : kept.shape[0]] = boxes_BK4[b, kept]
            scores_BN[b, : kept.shape[0]] = scores_BK[b, kept]
            valid_BN[b, : kept.shape[0]] = True
        return Proposals(boxes_BN4, scores_BN, valid_BN)


def _first_kept(boxes_BK4: Tensor, scores_BK: Tensor, kept_BK: Tensor, proposals: int) -> Proposals:
    """Return the first ``proposals`` kept candidates of each image without the host knowing how many there are."""
    # The j-th kept one goes to column j; everything else to a column that is cut off.
    column_BK = torch.where(kept_BK, kept_BK.cumsum(1) - 1, proposals).clamp_max(proposals)
    boxes_BN4 = boxes_BK4.new_zeros(len(boxes_BK4), proposals + 1, 4)
    boxes_BN4.scatter_(1, column_BK[..., None].expand_as(boxes_BK4), boxes_BK4)
    scores_BN = scores_BK.new_zeros(len(boxes_BK4), proposals + 1).scatter_(1, column_BK, scores_BK)
    valid_BN = torch.arange(proposals, device=kept_BK.device) < kept_BK.sum(1, keepdim=True)
    return Proposals(boxes_BN4[:, :-1], scores_BN[:, :-1], valid_BN)


class BoxHead(nn.Module):
    """Stage i: ``h = fc[i](x)``; ``y = h + attention[i](h, keys_i)``; ``x = relu(y)`` (MAMBA §3.4).

    Banks store ``y`` before the ReLU and attention reads such rows; only the next layer sees the ReLU.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        inputs = config.neck_channels * config.roi_size**2
        widths = (inputs, *(config.fc_channels,) * config.stages)
        self.classes = len(config.classes)
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.attention = nn.ModuleList(Attention(config.fc_channels, config.heads) for _ in range(config.stages))
        self.logits = nn.Linear(config.fc_channels, self.classes + 1)
        self.deltas = nn.Linear(config.fc_channels, self.classes * 4)
        # Attention keeps PyTorch's default Linear initialization, as the official run did.
        for layer in self.fc:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def predict(self, x_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``cls_BNK1`` logits (background last) and ``reg_BNK4`` deltas, both float32."""
        reg_BNK4 = self.deltas(x_BNC).unflatten(-1, (self.classes, 4))
        return self.logits(x_BNC).float(), reg_BNK4.float()

    def forward(
        self, x_BNF: Tensor, references_BMF: Tensor | None = None, valid_BM: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return class logits and deltas with the plain features of reference RoIs as keys.

        This is training and the first frame of the official protocol; the references themselves are not enhanced. Without
        references it is the plain two-layer head of Faster R-CNN.
        """
        x_BNC, ref_BMC = x_BNF, references_BMF
        for fc, attention in zip(self.fc, self.attention, strict=True):
            x_BNC = fc(x_BNC)
            if ref_BMC is not None:
                ref_BMC = fc(ref_BMC)
                x_BNC = x_BNC + attention(x_BNC, ref_BMC, valid_BM)
                ref_BMC = F.relu(ref_BMC)
            x_BNC = F.relu(x_BNC)
        return self.predict(x_BNC)
