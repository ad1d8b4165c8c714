"""From options to the network's settings, and whether they and the memory go together. Needs no torch and reads no weights."""

from __future__ import annotations

import math

from connectors.errors import ConfigError
from models.hub import weights_file
from models.memprompttss.config import MemPromptTSSConfig
from models.memprompttss.header import SMALL_WEIGHTS, network_config
from operators.budget import check_budget, slot_bytes
from operators.memprompttss.config import Geometry, MemPromptTSSOptions

__all__ = ["ID_BYTES", "checked", "settings_of", "stream_bytes"]

ID_BYTES = 64
"""Longest id of a prompt, in UTF-8."""


def settings_of(options: MemPromptTSSOptions) -> MemPromptTSSConfig:
    """Return the network's settings without its weights. Raises ``CheckpointMismatch``."""
    return network_config(weights_file(options.checkpoint, SMALL_WEIGHTS), options.settings)


def checked(options: MemPromptTSSOptions, config: MemPromptTSSConfig, name: str) -> Geometry:
    """Return the lengths; raise ``ConfigError`` where options, network and memory do not go together."""
    geometry = Geometry.of(options, config, name)
    unknown = [level for level in options.granularities if level not in config.granularities and len(config.granularities) > 1]
    if unknown:
        raise ConfigError(f"{name}: granularities {unknown} were not trained; the network has {list(config.granularities)}")
    check_budget(
        name,
        bytes_per_stream=stream_bytes(geometry, config, options.capacity, len(options.granularities)),
        streams=options.max_streams,
        budget=int(options.bank_gib * 2**30),
        hint="Lower max_streams, history or capacity, or raise bank_gib",
    )
    return geometry


def stream_bytes(geometry: Geometry, config: MemPromptTSSConfig, capacity: int, levels: int) -> int:
    """Return what one stream costs: its prompts, samples, encoded windows, votes and states (``PromptBank``, ``Timeline``)."""
    token, facts = 4 * config.width, ID_BYTES + 7 * 8 + 3
    sample = 4 * config.channels + 2 * 8 + 1
    window = 4 * math.prod((config.patches, config.width)) + 1
    state = 5 * 8 + 5 * 4 + 2  # numbers of 64, 32 and 16 bits
    votes = geometry.window * (4 * config.classes + 8)
    return (
        levels * (slot_bytes(token, capacity) + slot_bytes(facts, capacity) + slot_bytes(state, geometry.kept) + votes)
        + slot_bytes(sample, geometry.kept)
        + slot_bytes(window, geometry.cached)
    )
