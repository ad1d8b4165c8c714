"""Builds a network from its config."""

from __future__ import annotations

import torch

from models.prompttpp.attnhp import PromptAttNHP
from models.prompttpp.config import TppConfig
from models.prompttpp.nhp import NHP
from models.prompttpp.process import PointProcess
from models.prompttpp.s2p2 import S2P2
from models.prompttpp.thp import THP

__all__ = ["build_model"]

_NETWORKS: dict[str, type[PointProcess]] = {"attnhp": PromptAttNHP, "s2p2": S2P2, "nhp": NHP, "thp": THP}


def build_model(config: TppConfig, *, seed: int | None = None) -> PointProcess:
    """Return a network with new weights; ``seed`` fixes them without touching the global generator."""
    if seed is None:
        return _NETWORKS[config.backbone](config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _NETWORKS[config.backbone](config)
