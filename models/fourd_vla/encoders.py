"""Frame encoders for the selection alone: a grid of colors, torchvision classifiers, DINOv2. Frames to one feature each."""

# B frames, H height, W width, D width of a feature

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from connectors.errors import CheckpointMismatch, ConfigError, nearest
from connectors.extras import optional
from models.file_headers import is_safetensors
from models.fourd_vla.config import VisionConfig
from models.fourd_vla.names import dino_names
from models.fourd_vla.vision import VisionEncoder, pooled_feature
from models.weight_files import read_safetensors, read_state_dict

torchvision = optional("torchvision")

__all__ = ["ColorGrid", "DinoEncoder", "FrameEncoder", "TorchvisionEncoder"]

_DINO_HEAD = 64
"""Width of an attention head of all DINOv2 models."""


class FrameEncoder(nn.Module):
    """Takes RGB [B, H, W, 3] in 0..255 of one size, gives features [B, D] float32."""

    size: int
    """D"""


class ColorGrid(FrameEncoder):
    """The mean colors of a grid of cells, less the mean of the frame, so that overall light counts for nothing."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.size = rows * columns * 3

    def forward(self, rgb_BHW3: Tensor) -> Tensor:
        """Return the colors, row by row."""
        cells_B3hw = F.adaptive_avg_pool2d(rgb_BHW3.permute(0, 3, 1, 2).float() / 255, (self.rows, self.columns))
        grid_BD = cells_B3hw.permute(0, 2, 3, 1).flatten(1)
        return grid_BD - grid_BD.mean(dim=1, keepdim=True)


class TorchvisionEncoder(FrameEncoder):
    """A classifier of torchvision without its last layer."""

    def __init__(self, name: str, checkpoint: Path | str, side: int) -> None:
        super().__init__()
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise ConfigError(f"features.model: torchvision has no model {name!r}{nearest(name, known)}")
        tensors = _tensors(Path(checkpoint))
        head = [key for key in tensors if key.endswith(".weight") and tensors[key].dim() == 2]
        classes = len(tensors[head[-1]]) if head else 1000
        self.model: Any = torchvision.models.get_model(name, weights=None, num_classes=classes)
        try:
            self.model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointMismatch(f"{checkpoint}: does not fit torchvision's {name}: {_lines(error)}") from error
        last = [(path, module) for path, module in self.model.named_modules() if isinstance(module, nn.Linear)][-1]
        self.size = last[1].in_features
        parent, _, attribute = last[0].rpartition(".")
        setattr(self.model.get_submodule(parent), attribute, nn.Identity())
        self.side = side
        self.normal = VisionConfig()

    def forward(self, rgb_BHW3: Tensor) -> Tensor:
        """Return what the last layer but one says."""
        features: Tensor = self.model(_prepared(rgb_BHW3, (self.side, self.side), self.normal)).float()
        return features


class DinoEncoder(FrameEncoder):
    """DINOv2 without registers; the feature is the mean over patches, of length 1."""

    def __init__(self, checkpoint: Path | str, height: int, width: int) -> None:
        super().__init__()
        path = Path(checkpoint)
        named = dino_names(_tensors(path / "model.safetensors" if path.is_dir() else path))
        named.pop("mask_token", None)
        try:
            hidden, _, patch, _ = named["embeddings.patch_embedding.weight"].shape
            positions = named["embeddings.position_embedding"].shape[1]
            mlp = len(named["encoder.layers.0.mlp.fc1.weight"])
        except KeyError as error:
            raise CheckpointMismatch(
                f"{checkpoint}: is no DINOv2 encoder: it has no {error}; ViT-g is not supported"
            ) from error
        if height % patch or width % patch:
            raise ConfigError(f"features: {width}x{height} px are no whole patches of {patch} px; use multiples of {patch}")
        config = VisionConfig(
            width=width,
            height=height,
            patch=patch,
            hidden=hidden,
            layers=1 + max(int(key.split(".")[2]) for key in named if key.startswith("encoder.layers.")),
            heads=max(1, hidden // _DINO_HEAD),
            mlp=mlp,
            grid=round((positions - 1) ** 0.5),
            final_norm=True,
        )
        self.encoder = VisionEncoder(config)
        try:
            self.encoder.load_state_dict(named)
        except RuntimeError as error:
            raise CheckpointMismatch(f"{checkpoint}: does not fit a DINOv2 encoder: {_lines(error)}") from error
        self.size = hidden

    def forward(self, rgb_BHW3: Tensor) -> Tensor:
        """Return the mean token."""
        config = self.encoder.config
        return pooled_feature(self.encoder(_prepared(rgb_BHW3, (config.height, config.width), config)))


def _prepared(rgb_BHW3: Tensor, size: tuple[int, int], config: VisionConfig) -> Tensor:
    scaled = F.interpolate(rgb_BHW3.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v, device=scaled.device)[:, None, None] for v in (config.mean_rgb, config.std_rgb))
    made: Tensor = (scaled / 255 - mean) / std
    return made


def _tensors(file: Path) -> dict[str, Tensor]:
    return read_safetensors(file)[0] if is_safetensors(file) else read_state_dict(file)


def _lines(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:400]
