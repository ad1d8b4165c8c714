"""A tiny random policy for the tests beside this file."""

from __future__ import annotations

from typing import Any

import torch

from models.fourd_vla.checkpoint import Policy
from models.fourd_vla.config import DecoderConfig, FourDVLAConfig, VisionConfig
from models.fourd_vla.model import FourDVLA
from models.tokenizers import WordTokenizer

VISION = VisionConfig(width=48, height=32, patch=8, hidden=16, layers=2, heads=2, mlp=32, grid=4)
DECODER = DecoderConfig(vocabulary=16, hidden=24, layers=2, heads=4, kv_heads=2, mlp=40)


def tiny_config(**settings: Any) -> FourDVLAConfig:
    return FourDVLAConfig(**({"vision": VISION, "decoder": DECODER, "offsets": 6, "action_hidden": 20} | settings))


def tiny_policy(seed: int = 0, **settings: Any) -> Policy:
    """Return a policy whose coordinates already count."""
    torch.manual_seed(seed)
    model = FourDVLA(tiny_config(**settings)).eval().requires_grad_(False)
    if model.config.coordinates:
        torch.nn.init.normal_(model.coord_embed.out.weight, std=0.3)
        torch.nn.init.normal_(model.coord_invalid, std=0.3)
    return Policy(model, WordTokenizer.of(["point to the red green blue cube", "wait"]))
