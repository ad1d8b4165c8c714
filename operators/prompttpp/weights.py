"""From options to the network and what two runs must have in common. No streams."""

from __future__ import annotations

import torch

from connectors.errors import ConfigError
from models.hub import weights_file
from models.prompttpp import checkpoint
from models.prompttpp.config import TppConfig
from models.prompttpp.model import build_model
from models.prompttpp.process import PointProcess
from operators.banks import check_budget
from operators.prompttpp.config import PromptTPPOptions
from operators.prompttpp.network import KeyNetwork

__all__ = ["check", "load_model", "settings_of"]

_SHAPING = (
    "types", "unknown_type", "window", "points", "grid", "predict", "allowed_lateness_s", "max_skew_s", "learn", "learn_batch",
    "learn_steps", "learn_history", "learning_rate", "network_rate", "alpha", "refresh_lag",
)  # fmt: skip


def load_model(options: PromptTPPOptions, name: str, device: torch.device) -> PointProcess:
    """Return the network, frozen. Raise a ``StreambankError`` if it cannot be used with these options."""
    model = checkpoint.load(weights_file(options.checkpoint))
    check(model.config, options, name)
    return model.to(device).eval().requires_grad_(False)


def check(config: TppConfig, options: PromptTPPOptions, name: str) -> None:
    """Raise ``ConfigError`` unless options and network go together and all keys fit into ``bank_gib``."""
    if options.learn == "prompts" and not config.pool:
        raise ConfigError(f"{name}: the network has no prompts to learn; set learn to 'off' or 'all', or take another one")
    if options.types == "name" and not config.type_names:
        raise ConfigError(f"{name}: the network knows its types by numbers only; set types='id'")
    if options.unknown_type == "other" and "other" not in config.type_names:
        raise ConfigError(
            f"{name}: the network has no type named 'other'; set unknown_type='refuse', or train one that has "
            f"(it has {list(config.type_names) or config.types})"
        )
    with torch.device("meta"):
        per_key = KeyNetwork.bytes_per_slot(build_model(config), options.window)
    check_budget(
        name,
        bytes_per_stream=per_key,
        streams=options.max_streams,
        budget=int(options.bank_gib * 2**30),
        hint="Lower max_streams or window, or raise bank_gib.",
    )


def settings_of(options: PromptTPPOptions) -> str:
    """Return the options that a state's meaning depends on."""
    told = ", ".join(f"{name} {getattr(options, name)}" for name in _SHAPING)
    # Not told where it is not set, as in snapshots that know no such option.
    return told if options.learn_interval_s is None else f"{told}, learn_interval_s {options.learn_interval_s}"
