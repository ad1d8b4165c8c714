"""Small networks and event streams for tests of PromptTPP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.prompttpp.config import TppConfig
from models.prompttpp.model import build_model
from models.prompttpp.process import PointProcess

BACKBONES = ("attnhp", "s2p2", "nhp", "thp")


def small(backbone: str, **changes: Any) -> PointProcess:
    """Build a small network in eval mode."""
    sizes: dict[str, Any] = {"types": 3, "hidden": 8, "time_dim": 4, "state": 4, "pool": 5, "top_k": 2, "prompt_length": 2}
    if backbone == "thp":
        sizes["pool"] = 0
    return build_model(TppConfig(backbone=backbone, **{**sizes, **changes}), seed=3).eval()  # type: ignore[arg-type]


def events(rows: int, length: int, types: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw times (float64, from 0) and types."""
    generator = torch.Generator().manual_seed(seed)
    gap = torch.rand(rows, length, dtype=torch.float64, generator=generator) * 2
    gap[:, 0] = 0
    return gap.cumsum(1), torch.randint(0, types, (rows, length), generator=generator)
