"""The click-through-rate networks by name: the one place that knows them all."""

from __future__ import annotations

import torch

from models.reloop2.base import CtrModel, CtrOutput
from models.reloop2.config import CtrConfig, DCNv2Config, DeepFMConfig, DINConfig, FiBiNETConfig, SDIMConfig
from models.reloop2.dcnv2 import DCNv2
from models.reloop2.deepfm import DeepFM
from models.reloop2.din import DIN
from models.reloop2.feature_map import FeatureMap
from models.reloop2.fibinet import FiBiNET
from models.reloop2.layers import reset_linears
from models.reloop2.sdim import SDIM

__all__ = ["CtrModel", "CtrOutput", "build_model"]


def build_model(config: CtrConfig, feature_map: FeatureMap, *, seed: int = 0) -> CtrModel:
    """Build the network of ``config`` for these features, with new weights drawn from ``seed``, on the CPU, in eval mode.

    Raises ``ConfigError`` where the network cannot be built from the features.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network(config, feature_map)
        reset_linears(model)
    return model.eval()


def _network(config: CtrConfig, feature_map: FeatureMap) -> CtrModel:
    match config:
        case DCNv2Config():
            return DCNv2(config, feature_map)
        case DeepFMConfig():
            return DeepFM(config, feature_map)
        case DINConfig():
            return DIN(config, feature_map)
        case FiBiNETConfig():
            return FiBiNET(config, feature_map)
        case SDIMConfig():
            return SDIM(config, feature_map)
    raise TypeError(f"no network for {type(config).__name__}")
