"""The policy over streams: frames to what the bank keeps of them, kept frames to actions. Knows no Arrow and no stream ids."""

# B frames or streams, H height, W width, L tokens of a frame, K frames kept, D width of the decoder

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from models.fourd_vla.checkpoint import Policy
from models.fourd_vla.geometry import depth_meters, resize_plan
from models.fourd_vla.model import Actions
from models.fourd_vla.vision import pooled_feature
from models.uploads import upload, upload_values
from operators.banks import RowSpec
from operators.fourd_vla.frames import RgbdImage

__all__ = ["Acting"]

_IDENTITY = np.eye(4)


class Acting:
    """A policy on a device, for inference."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self.model, self.device = policy.model, device
        self._encode = lru_cache(maxsize=256)(policy.tokenizer.encode)

    @property
    def rows(self) -> dict[str, RowSpec]:
        """What a bank keeps of a frame."""
        config = self.model.config
        tokens = RowSpec((config.tokens, config.decoder.hidden), self.model.dtype)
        return {"feature": RowSpec((config.vision.hidden,)), "tokens": tokens}

    def instruction(self, text: str) -> Tensor:
        """Return the token ids of an instruction."""
        return torch.tensor(self._encode(text), dtype=torch.int64)

    @torch.inference_mode()
    def look(self, images: Sequence[RgbdImage]) -> dict[str, Tensor]:
        """Encode frames of one size: name → [B, ...] of ``rows``. Each frame goes through the encoder once, here."""
        config, model = self.model.config, self.model
        plan = resize_plan((images[0].height, images[0].width), (config.vision.height, config.vision.width), config.resize)
        color_BHW3 = torch.from_numpy(np.stack([image.color for image in images if image.color is not None]))
        rgb_BCHW = plan.color(upload(color_BHW3, self.device).permute(0, 3, 1, 2).float())
        features_BPD = model.vision_model(model.vision_model.normalize(rgb_BCHW))
        coord = share = None
        if config.coordinates:
            parts = [self._depth(image, config.depth_max_m) for image in images]
            depth_BHW, valid_BHW = (plan.depth(torch.stack([part[i] for part in parts])) for i in range(2))
            camera_B33 = plan.camera(upload_values(np.stack([image.matrix for image in images]), self.device))
            poses = [_IDENTITY if i.pose_16 is None else np.reshape(i.pose_16, (4, 4)) for i in images]
            pose_B44 = upload_values(np.stack(poses), self.device)
            coord, share = model.coordinates(depth_BHW, valid_BHW, camera_B33, pose_B44)
        return {"feature": pooled_feature(features_BPD), "tokens": model.spatial_tokens(features_BPD, coord, share)}

    @torch.inference_mode()
    def act(
        self,
        tokens_BKLD: Tensor,
        offset_BK: Tensor,
        most_B: Sequence[int],
        texts: Sequence[Tensor],
        states: Tensor | None,
        count_B: Tensor,
    ) -> Tensor:
        """Return actions in the data's units and the gripper's probability, [B, 8]. The host knows ``most_B`` of the counts."""
        said: Actions = self.model.act(tokens_BKLD, offset_BK, most_B, texts, states, count_B)
        return torch.cat([said.scaled(self.model.config), said.gripper_B.float().sigmoid()[:, None]], dim=1)

    def _depth(self, image: RgbdImage, depth_max_m: float) -> tuple[Tensor, Tensor]:
        """Return meters and validity, [H, W]; nothing is valid where a frame has no depth."""
        if image.depth_HW is None:
            empty_HW = torch.zeros((image.height, image.width), device=self.device)
            return empty_HW, empty_HW.bool()
        return meters(image, depth_max_m, self.device)


def meters(image: RgbdImage, depth_max_m: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the depth of a frame in meters and which pixels are valid, [H, W]."""
    assert image.depth_HW is not None
    kind = np.int32 if image.depth_HW.dtype == np.uint16 else np.float32
    raw_1HW = upload_values(image.depth_HW.astype(kind), device)[None]
    depth_1HW, valid_1HW = depth_meters(raw_1HW, torch.tensor([image.depth_scale]), depth_max_m)
    return depth_1HW[0], valid_1HW[0]
