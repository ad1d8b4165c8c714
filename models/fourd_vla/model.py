"""The 4D-VLA policy: frames and their 3D coordinates to tokens, kept frames and an instruction to an action (spec section 5).

Holds weights only. A frame is encoded once; its tokens may be kept anywhere until an action is asked for.
"""

# B frames or streams, P patches, L tokens of a frame, K frames kept, n tokens, D width of the decoder, s numbers of a state

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fourd_vla.config import FourDVLAConfig
from models.fourd_vla.decoder import Decoder
from models.fourd_vla.geometry import pool_coordinates
from models.fourd_vla.vision import VisionEncoder, pixel_shuffle
from models.uploads import upload, upload_values

__all__ = ["Actions", "CoordinateEmbedding", "FourDVLA"]


@dataclass(frozen=True, slots=True)
class Actions:
    """What the action head says, in units of ``ActionScale``."""

    translation_B3: Tensor
    rotation_B3: Tensor
    """As in the data, axis and angle or Euler."""
    gripper_B: Tensor
    """Logit."""

    def scaled(self, config: FourDVLAConfig) -> Tensor:
        """Return actions in the data's units, [B, 7] float32: translation, rotation, gripper (1 or 0)."""
        scale = config.action_scale
        units_23 = upload_values([scale.translation, scale.rotation], self.gripper_B.device, self.gripper_B.dtype)
        moves = self.translation_B3.float() * units_23[0].float()
        turns = self.rotation_B3.float() * units_23[1].float()
        return torch.cat([moves, turns, (self.gripper_B > 0).float()[:, None]], dim=1)


class CoordinateEmbedding(nn.Module):
    """E_S: world coordinates to the encoder's width. Its last layer starts at zero, so a loaded backbone is unchanged."""

    def __init__(self, config: FourDVLAConfig, width: int) -> None:
        super().__init__()
        self.center_m, self.scale_m = config.center_m, config.scale_m
        self.octaves = config.octaves
        self.hidden = nn.Linear(6 * config.octaves + 3, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, coord_BP3: Tensor) -> Tensor:
        """Return the embedding [B, P, width] of coordinates in meters, in the weights' type."""
        center_3 = upload_values(self.center_m, coord_BP3.device, coord_BP3.dtype)
        place_BP3 = (coord_BP3.float() - center_3.float()) / self.scale_m
        rate_o = math.pi * 2.0 ** torch.arange(self.octaves, device=coord_BP3.device)
        angle_BPo = (place_BP3[..., None] * rate_o).flatten(-2)
        waves = torch.cat([angle_BPo.sin(), angle_BPo.cos(), place_BP3], dim=-1).to(self.hidden.weight.dtype)
        embedded: Tensor = self.out(F.gelu(self.hidden(waves)))
        return embedded


class FourDVLA(nn.Module):
    """The policy. Parameter names of the backbone are those of InternVL checkpoints."""

    def __init__(self, config: FourDVLAConfig) -> None:
        super().__init__()
        self.config = config
        vision, width = config.vision, config.decoder.hidden
        self.vision_model = VisionEncoder(vision)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * vision.hidden), nn.Linear(4 * vision.hidden, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language_model = nn.ModuleDict({"model": Decoder(config.decoder)})
        spatial = vision.hidden if config.add_at == "patch" else 4 * vision.hidden
        if config.coordinates:
            self.coord_embed = CoordinateEmbedding(config, spatial)
            self.coord_invalid = nn.Parameter(torch.zeros(spatial))
        self.time_embed = nn.Embedding(config.offsets, width)
        nn.init.normal_(self.time_embed.weight, std=0.02)
        if config.state_dim:
            self.proprio = nn.Linear(config.state_dim, width)
        self.action_head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, config.action_hidden), nn.GELU(), nn.Linear(config.action_hidden, 7)
        )

    @property
    def decoder(self) -> Decoder:
        """The language decoder."""
        decoder = self.language_model["model"]
        assert isinstance(decoder, Decoder)
        return decoder

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.time_embed.weight.dtype

    def coordinates(self, depth_BHW: Tensor, valid_BHW: Tensor, camera_B33: Tensor, pose_B44: Tensor) -> tuple[Tensor, Tensor]:
        """Return coordinates [B, P, 3] and valid shares [B, P] of the places where they are added, from resized depth."""
        patch = self.config.vision.patch * (1 if self.config.add_at == "patch" else 2)
        coord, share = pool_coordinates(depth_BHW, valid_BHW, camera_B33, pose_B44, patch, self.config.coord_pool)
        return coord.flatten(1, 2), share.flatten(1, 2)

    def spatial_tokens(self, features_BPD: Tensor, coord_BP3: Tensor | None, share_BP: Tensor | None) -> Tensor:
        """Return the spatial vision tokens e_ST [B, L, D] of frames whose features the encoder gave.

        ``coord_BP3``, ``share_BP``: from ``coordinates``; None where the policy has no coordinates.
        """
        vision = self.config.vision
        late = self.config.add_at == "pixel_shuffled"
        if late:
            features_BPD = pixel_shuffle(features_BPD, vision.rows, vision.columns)
        if self.config.coordinates:
            assert coord_BP3 is not None and share_BP is not None
            has_depth_BP1 = (share_BP >= self.config.min_valid)[..., None] & (share_BP > 0)[..., None]
            features_BPD = features_BPD + torch.where(has_depth_BP1, self.coord_embed(coord_BP3), self.coord_invalid)
        if not late:
            features_BPD = pixel_shuffle(features_BPD, vision.rows, vision.columns)
        tokens_BLD: Tensor = self.mlp1(features_BPD)
        return tokens_BLD

    def act(
        self,
        tokens_BKLD: Tensor,
        offset_BK: Tensor,
        count_B: Sequence[int],
        text_B: Sequence[Tensor],
        state_Bs: Tensor | None = None,
        there_B: Tensor | None = None,
    ) -> Actions:
        """Return the actions of B streams.

        ``tokens_BKLD``: spatial tokens of the frames kept, oldest first, the first ``count_B`` of each stream; ``offset_BK``:
        how many frames ago each was (0: now); ``text_B``: token ids of each instruction; ``state_Bs``: where there is a state.
        ``there_B``: how many there are, on the device, where the host knows only that it is at most ``count_B``.
        """
        device = tokens_BKLD.device
        offset_BK = offset_BK.clamp(0, self.config.offsets - 1)
        frames_BKLD = torch.cat([self.time_embed(offset_BK)[:, :, None], tokens_BKLD.to(self.dtype)], dim=2)
        rest_BnD = self.decoder.embed_tokens(upload(nn.utils.rnn.pad_sequence(list(text_B), batch_first=True), device))
        own = 0
        if self.config.state_dim:
            assert state_Bs is not None
            rest_BnD, own = torch.cat([self.proprio(state_Bs.to(self.dtype))[:, None], rest_BnD], dim=1), 1
        # Row by row: the tokens of its frames, then the rest, then whatever, which nothing before it sees.
        per_frame, sizes = frames_BKLD.shape[2], [own + len(text) for text in text_B]
        known_2B = upload_values([list(count_B), sizes], device)
        begin_B1 = (known_2B[0] if there_B is None else there_B)[:, None] * per_frame
        place_n = torch.arange(max(c * per_frame + n for c, n in zip(count_B, sizes, strict=True)), device=device)
        after_Bn = (place_n - begin_B1).clamp(0, rest_BnD.shape[1] - 1) + frames_BKLD.shape[1] * per_frame
        source_Bn = torch.where(place_n < begin_B1, place_n, after_Bn)
        all_BnD = torch.cat([frames_BKLD.flatten(1, 2), rest_BnD], dim=1)
        states_BnD = self.decoder(all_BnD.gather(1, source_Bn[:, :, None].expand(-1, -1, all_BnD.shape[2])))
        last_B11 = (begin_B1 + known_2B[1][:, None] - 1)[:, :, None].expand(-1, -1, states_BnD.shape[2])
        out_B7 = self.action_head(states_BnD.gather(1, last_B11)[:, 0])
        return Actions(out_B7[:, :3], out_B7[:, 3:6], out_B7[:, 6])
