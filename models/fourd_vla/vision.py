"""The frame encoder: a vision transformer in InternViT's layout, which also holds DINOv2's weights. No streams, no geometry."""

# B frames, C channels, H height, W width, P patches, D width of the encoder

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fourd_vla.config import VisionConfig
from models.uploads import upload_values

__all__ = ["VisionEncoder", "pixel_shuffle", "pooled_feature"]


class VisionEncoder(nn.Module):
    """Frames to one feature per patch. Parameter names are those of InternVL checkpoints."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps) if config.final_norm else nn.Identity()

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return features [B, P, D] of normalized frames, row by row; the class token is dropped."""
        tokens_BPD = self.embeddings(pixels_BCHW)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            tokens_BPD = layer(tokens_BPD)
        features_BPD: Tensor = self.norm(tokens_BPD)[:, 1:]
        return features_BPD

    def normalize(self, rgb_BCHW: Tensor) -> Tensor:
        """Return pixels for ``forward`` from RGB in 0..255, in the encoder's type."""
        table = self.embeddings.position_embedding
        mean, std = (
            upload_values(values, rgb_BCHW.device, torch.float32)[:, None, None]
            for values in (self.config.mean_rgb, self.config.std_rgb)
        )
        return ((rgb_BCHW.float() / 255 - mean) / std).to(table.dtype)


def pooled_feature(features_BPD: Tensor) -> Tensor:
    """Return phi: the mean over tokens, of length 1, float32 [B, D] (our reading; taken before coordinates are added)."""
    return F.normalize(features_BPD.float().mean(dim=1), dim=1)


def pixel_shuffle(features_BPD: Tensor, rows: int, columns: int) -> Tensor:
    """Fold 2x2 patches into one token of four times the width, [B, P / 4, 4 D], in InternVL's order."""
    B, _, D = features_BPD.shape
    blocks = features_BPD.view(B, rows // 2, 2, columns // 2, 2, D)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(B, rows * columns // 4, 4 * D)


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden) * 0.02)
        self.patch_embedding = nn.Conv2d(3, config.hidden, config.patch, config.patch)
        self.position_embedding = nn.Parameter(torch.randn(1, config.grid**2 + 1, config.hidden) * 0.02)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        map_BDhw = self.patch_embedding(pixels_BCHW)
        patches_BPD = map_BDhw.flatten(2).transpose(1, 2)
        first_B1D = self.class_embedding.expand(len(patches_BPD), -1, -1)
        return torch.cat([first_B1D, patches_BPD], dim=1) + self._positions(*map_BDhw.shape[2:])

    def _positions(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == (self.grid, self.grid):
            return self.position_embedding
        table_1Dgg = self.position_embedding[:, 1:].float().view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        scaled = F.interpolate(table_1Dgg, (rows, columns), mode="bicubic", align_corners=False)
        patches = scaled.flatten(2).transpose(1, 2).to(self.position_embedding.dtype)
        return torch.cat([self.position_embedding[:, :1], patches], dim=1)


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden, eps=config.norm_eps) for _ in range(2))
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(config.hidden, 3 * config.hidden), "proj": nn.Linear(config.hidden, config.hidden)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(config.hidden, config.mlp), "fc2": nn.Linear(config.mlp, config.hidden)})
        self.ls1, self.ls2 = (nn.Parameter(torch.full((config.hidden,), 0.1)) for _ in range(2))

    def forward(self, x_BPD: Tensor) -> Tensor:
        query, key, value = self.attn["qkv"](self.norm1(x_BPD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x_BPD = x_BPD + self.ls1 * self.attn["proj"](seen)
        out_BPD: Tensor = x_BPD + self.ls2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x_BPD))))
        return out_BPD
