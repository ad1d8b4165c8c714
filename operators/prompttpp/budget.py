"""Whether options, network and memory go together, told by the network's settings. Needs no torch."""

from __future__ import annotations

import math

from connectors.errors import ConfigError
from models.prompttpp.config import TppConfig
from operators.budget import check_budget, slot_bytes
from operators.prompttpp.config import PromptTPPOptions

__all__ = ["check", "key_bytes"]

_NUMBERS = 7 * 8  # of ``KeyNumbers``


def check(config: TppConfig, options: PromptTPPOptions, name: str) -> None:
    """Raise ``ConfigError`` unless options and network go together and all keys fit into ``bank_gib``."""
    if options.learn == "prompts" and not config.pool:
        raise ConfigError(f"{name}: the network has no prompts to learn; set learn to 'off' or 'all', or take another one")
    if options.common_share and (not config.pool or config.backbone not in ("s2p2", "nhp")):
        raise ConfigError(
            f"{name}: common_share mixes queries of s2p2 or nhp with prompts, the network is {config.backbone} with "
            f"{config.pool} prompts; remove it, or take another network"
        )
    if options.novelty and not config.prompt_head:
        raise ConfigError(
            f"{name}: novelty needs to know which prompts the training has used, and the network's file does not tell; train "
            "one with prompt_head, or set novelty to 0"
        )
    if options.types == "name" and not config.type_names:
        raise ConfigError(f"{name}: the network knows its types by numbers only; set types='id'")
    if options.unknown_type == "other" and "other" not in config.type_names:
        raise ConfigError(
            f"{name}: the network has no type named 'other'; set unknown_type='refuse', or train one that has "
            f"(it has {list(config.type_names) or config.types})"
        )
    check_budget(
        name,
        bytes_per_stream=key_bytes(config, options.window),
        streams=options.max_streams,
        budget=int(options.bank_gib * 2**30),
        hint="Lower max_streams or window, or raise bank_gib.",
    )


def key_bytes(config: TppConfig, window: int) -> int:
    """Return what one key costs in the banks of ``KeyNetwork``: its events, its state, and numbers about it."""
    event = 8 + 4 + _float_bytes(config.row_shapes())
    cells = config.cell_shapes()
    return slot_bytes(event, window) + _NUMBERS + (slot_bytes(_float_bytes(cells), 1) if cells else 0)


def _float_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(4 * math.prod(shape) for shape in shapes.values())
