"""The MAMBA detector as a set of stages that a caller strings together around its memory. Weights only: no bank, no stream.

A frame goes ``prepare -> encode -> [pixel attention] -> neck -> propose -> roi_features -> head stages -> detect``. The
attention in between reads whatever keys the caller hands in: banks of a stream when serving, references in training.
"""

# B batch, C channels, H height, W width, N proposals, F flattened RoI features, K classes, D detections

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from connectors.extras import optional
from models.mamba.attention import Attention
from models.mamba.backbone import STRIDE, build_backbone
from models.mamba.boxes import clip_boxes, decode_boxes
from models.mamba.config import MambaConfig
from models.mamba.heads import BoxHead, Proposals, RegionProposals
from models.mamba.images import Prepared, is_too_small, padded_size, prepare_images, resized_size
from models.mamba.suppression import suppress

ops = optional("torchvision.ops")

__all__ = ["BOX_DELTA_STD", "Detections", "Mamba", "PaddedDetections", "Prepared", "Proposals"]

BOX_DELTA_STD = 0.2
"""The box head predicts deltas in units of this standard deviation, all four."""

_SAMPLING_RATIO = 2


class Detections(NamedTuple):
    """What was found in one image, best first."""

    boxes_D4: Tensor
    """Pixels of the original image."""
    scores_D: Tensor
    labels_D: Tensor
    """int64 index into ``config.classes``."""


class PaddedDetections(NamedTuple):
    """What was found in B images, best first, padded to one length."""

    boxes_BD4: Tensor
    """Pixels of the original images."""
    scores_BD: Tensor
    """-1 where padded."""
    labels_BD: Tensor
    count_B: Tensor

    @staticmethod
    def of(images: Sequence[Detections]) -> PaddedDetections:
        """Pad detections of each image."""
        pad = nn.utils.rnn.pad_sequence
        count_B = torch.tensor([len(image.scores_D) for image in images])
        return PaddedDetections(
            pad([image.boxes_D4 for image in images], batch_first=True),
            pad([image.scores_D for image in images], batch_first=True, padding_value=-1.0),
            pad([image.labels_D for image in images], batch_first=True),
            count_B.to(images[0].scores_D.device),
        )

    def images(self) -> list[Detections]:
        """Return each image's detections, on the host."""
        boxes, scores, labels, counts = (part.cpu() for part in self)
        parts = zip(boxes, scores, labels, counts.tolist(), strict=True)
        return [Detections(b[:n], s[:n], label[:n]) for b, s, label, n in parts]


class Mamba(nn.Module):
    """Faster R-CNN (ResNet-DC5) with attention over memory at pixel and instance level (AAAI 2021; arXiv 2401.09923)."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        self.neck_conv = nn.Conv2d(config.channels[-1], config.neck_channels, 3, padding=1)
        nn.init.xavier_uniform_(self.neck_conv.weight)
        nn.init.zeros_(self.neck_conv.bias)  # type: ignore[arg-type]
        self.rpn = RegionProposals(config)
        self.head = BoxHead(config)
        self.pixel = Attention(config.pixel_channels, config.pixel_heads) if config.pixel_level else None
        self.fused = False

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) in px that an image of this size has after resizing."""
        return resized_size(self.config, height, width)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) in px of the network input for an image of this size. Images that share it can be stacked."""
        return padded_size(self.config, height, width)

    def is_too_small(self, height: int, width: int) -> bool:
        """Tell whether an image of this size must be rejected (a side below 16 px after resizing)."""
        return is_too_small(self.config, height, width)

    def prepare(self, images: Sequence[Tensor], device: torch.device | str) -> Prepared:
        """Resize, normalize, pad and stack RGB images (uint8, ``[H, W, 3]``) that share a padded size."""
        return prepare_images(self.config, images, device)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the backbone's map ``[B, C, H/16, W/16]``."""
        map_BCHW: Tensor = self.backbone(pixels_BCHW)
        return map_BCHW

    def neck(self, map_BCHW: Tensor) -> Tensor:
        """Return the feature map that RPN and box head share: 3x3 convolution *and ReLU*."""
        return F.relu(self.neck_conv(map_BCHW))

    def propose(self, feature_BCHW: Tensor, sizes_B2: Tensor, training: bool = False) -> Proposals:
        """Return ``config.proposals`` (``train_proposals`` when ``training``) boxes per image, sorted by score and padded."""
        logits_BP, deltas_BP4 = self.rpn(feature_BCHW)
        number = self.config.train_proposals if training else self.config.proposals
        return self.rpn.select(logits_BP, deltas_BP4, self.rpn.anchors(feature_BCHW), sizes_B2, number)

    def roi_features(self, feature_BCHW: Tensor, boxes_BN4: Tensor) -> Tensor:
        """Return RoIAlign features ``x_BNF``, flattened channel by channel. Padded boxes give finite rows to be ignored."""
        B, N = boxes_BN4.shape[:2]
        image_BN1 = torch.arange(B, device=boxes_BN4.device, dtype=torch.float32)[:, None, None].expand(B, N, 1)
        # In float32 whatever the map's precision: 8 bits of mantissa cannot hold a coordinate of 1000 px.
        x_RCHW = ops.roi_align(
            feature_BCHW.float(),
            torch.cat([image_BN1, boxes_BN4.float()], dim=-1).flatten(0, 1),
            output_size=self.config.roi_size,
            spatial_scale=1.0 / STRIDE,
            sampling_ratio=_SAMPLING_RATIO,
            aligned=True,
        )
        x_BNF: Tensor = x_RCHW.to(feature_BCHW.dtype).reshape(B, N, -1)
        return x_BNF

    @torch.no_grad()
    def detect(
        self, cls_BNK1: Tensor, reg_BNK4: Tensor, proposals: Proposals, sizes_B2: Tensor, scales_B2: Tensor
    ) -> list[Detections]:
        """Turn the head's output into detections: softmax, decode, clip, class-wise NMS, best ``max_detections``.

        ``sizes_B2`` (h, w) and ``scales_B2`` (y, x) are those of ``prepare``. Invalid proposals give nothing.
        """
        decoded = self._decode(cls_BNK1, reg_BNK4, proposals, sizes_B2, scales_B2)
        return [self._suppress(*image) for image in zip(*decoded, strict=True)]

    @torch.no_grad()
    def detect_padded(
        self, cls_BNK1: Tensor, reg_BNK4: Tensor, proposals: Proposals, sizes_B2: Tensor, scales_B2: Tensor
    ) -> PaddedDetections:
        """Return what :meth:`detect` does for all images at once; on a device without the host waiting for it."""
        if cls_BNK1.device.type == "cpu":
            return PaddedDetections.of(self.detect(cls_BNK1, reg_BNK4, proposals, sizes_B2, scales_B2))
        boxes_BNK4, scores_BNK, good_BNK = self._decode(cls_BNK1, reg_BNK4, proposals, sizes_B2, scales_B2)
        _, order_BKN = scores_BNK.transpose(1, 2).sort(dim=2, descending=True, stable=True)
        good_BKN = good_BNK.transpose(1, 2).gather(2, order_BKN)
        boxes_BKN4 = boxes_BNK4.transpose(1, 2).gather(2, order_BKN[..., None].expand(-1, -1, -1, 4))
        kept_BKN = suppress(boxes_BKN4.flatten(0, 1), good_BKN.flatten(0, 1), self.config.box_nms).view_as(good_BKN)
        # Back to the order of proposals and classes, by which equal scores are told apart.
        kept_BNK = torch.zeros_like(kept_BKN).scatter_(2, order_BKN, kept_BKN).transpose(1, 2)
        ranked_BF, flat_BF = scores_BNK.masked_fill(~kept_BNK, -1.0).flatten(1).sort(dim=1, descending=True, stable=True)
        most = min(self.config.max_detections, ranked_BF.shape[1])
        flat_BD, scores_BD = flat_BF[:, :most], ranked_BF[:, :most]
        boxes_BD4 = boxes_BNK4.flatten(1, 2).gather(1, flat_BD[..., None].expand(-1, -1, 4))
        count_B = kept_BNK.flatten(1).sum(1).clamp_max(most)
        return PaddedDetections(boxes_BD4, scores_BD, flat_BD % scores_BNK.shape[2], count_B)

    def _decode(
        self, cls_BNK1: Tensor, reg_BNK4: Tensor, proposals: Proposals, sizes_B2: Tensor, scales_B2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and whether they count, of every proposal and class."""
        scores_BNK = cls_BNK1.float().softmax(dim=-1)[..., :-1]
        boxes_BNK4 = decode_boxes(proposals.boxes_BN4[:, :, None], reg_BNK4.float() * BOX_DELTA_STD)
        boxes_BNK4 = clip_boxes(boxes_BNK4, sizes_B2) / scales_B2.flip(1).repeat(1, 2)[:, None, None]
        good_BNK = (scores_BNK > self.config.score_threshold) & proposals.valid_BN[..., None]
        return boxes_BNK4, scores_BNK, good_BNK

    def _suppress(self, boxes_NK4: Tensor, scores_NK: Tensor, good_NK: Tensor) -> Detections:
        boxes_D4, scores_D, labels_D = boxes_NK4[good_NK], scores_NK[good_NK], good_NK.nonzero()[:, 1]
        if boxes_D4.shape[0] == 0:
            return Detections(boxes_D4, scores_D, labels_D)
        # Classes moved apart, so that one call suppresses within each class only.
        apart_D1 = (labels_D * (boxes_D4.max() + 1.0))[:, None]
        kept = ops.nms(boxes_D4 + apart_D1, scores_D, self.config.box_nms)[: self.config.max_detections]
        return Detections(boxes_D4[kept], scores_D[kept], labels_D[kept])

    def fuse_for_inference(self) -> Mamba:
        """Fold BatchNorm into the convolutions (exact algebra), in place, for serving. Ends training and saving."""
        if not self.fused:
            self.backbone.fuse()
            self.requires_grad_(False)
            self.fused = True
        return self.eval()
