"""From options to the network and what two runs must have in common. No streams."""

from __future__ import annotations

import torch

from models.hub import weights_file
from models.prompttpp import checkpoint
from models.prompttpp.process import PointProcess
from operators.prompttpp.budget import check
from operators.prompttpp.config import PromptTPPOptions

__all__ = ["load_model", "settings_of"]

_SHAPING = (
    "types", "unknown_type", "window", "points", "grid", "predict", "allowed_lateness_s", "max_skew_s", "learn", "learn_batch",
    "learn_steps", "learn_history", "learning_rate", "network_rate", "alpha", "refresh_lag",
)  # fmt: skip


def load_model(options: PromptTPPOptions, name: str, device: torch.device) -> PointProcess:
    """Return the network, frozen. Raise a ``StreambankError`` if it cannot be used with these options."""
    model = checkpoint.load(weights_file(options.checkpoint))
    check(model.config, options, name)
    return model.to(device).eval().requires_grad_(False)


def settings_of(options: PromptTPPOptions) -> str:
    """Return the options that a state's meaning depends on."""
    told = ", ".join(f"{name} {getattr(options, name)}" for name in _SHAPING)
    # Not told where they are not set, as in snapshots that know no such options.
    if options.learn_interval_s is not None:
        told += f", learn_interval_s {options.learn_interval_s}"
    if options.common_share:
        told += f", common_share {options.common_share}, novelty {options.novelty}"
    return told
