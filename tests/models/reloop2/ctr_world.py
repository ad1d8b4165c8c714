"""A small feature map with every kind of feature, columns for it, and small configs of all networks."""

import torch
from torch import Tensor

from models.reloop2.config import CtrConfig, DCNv2Config, DeepFMConfig, DINConfig, FiBiNETConfig, SDIMConfig
from models.reloop2.feature_map import Feature, FeatureMap

FEATURES = FeatureMap(
    (
        Feature(name="type", vocab_size=5),  # a name that nn.ModuleDict does not take
        Feature(name="item_id", vocab_size=20),
        Feature(name="cate_id", vocab_size=7),
        Feature(name="age", kind="numeric", mean=40.0, std=10.0),
        Feature(name="item_history", kind="sequence", vocab_size=20, share_embedding="item_id", max_len=6),
        Feature(name="cate_history", kind="sequence", vocab_size=7, share_embedding="cate_id", max_len=6),
    )
)

_SMALL = {"embedding_dim": 4, "hidden_units": (12, 8), "batch_norm": False, "dropout": 0.0}

CONFIGS: dict[str, CtrConfig] = {
    "dcnv2": DCNv2Config(**_SMALL, cross_layers=2),
    "dcnv2_stacked": DCNv2Config(**_SMALL, cross_layers=2, structure="stacked"),
    "dcnv2_batch_norm": DCNv2Config(**(_SMALL | {"batch_norm": True, "dropout": 0.2})),
    "deepfm": DeepFMConfig(**_SMALL),
    "din": DINConfig(**_SMALL, attention_units=(6,)),
    "din_sum": DINConfig(**_SMALL, attention_units=(6,), softmax=False),
    "fibinet": FiBiNETConfig(**_SMALL),
    "fibinet_each": FiBiNETConfig(**_SMALL, bilinear="field_each"),
    "fibinet_all": FiBiNETConfig(**_SMALL, bilinear="field_all", excitation="sigmoid"),
    "sdim": SDIMConfig(**_SMALL, attention_dim=8, num_heads=2, short_seq_len=3),
    "sdim_plain": SDIMConfig(**_SMALL, projections=False, use_scale=False, short_seq_len=3),
}


def columns(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Draw rows; histories are left-padded, and that of row 0 is empty."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    length = torch.randint(1, 7, (rows, 1), generator=generator)
    length[0] = 0
    held = torch.arange(6) >= 6 - length
    for feature in FEATURES:
        if feature.kind == "numeric":
            drawn[feature.name] = torch.randn(rows, generator=generator)
        elif feature.kind == "categorical":
            drawn[feature.name] = torch.randint(1, feature.vocab_size, (rows,), generator=generator)
        else:
            drawn[feature.name] = torch.randint(1, feature.vocab_size, (rows, 6), generator=generator) * held
    return drawn
