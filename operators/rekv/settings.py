"""From options to the settings of the model, without its weights, and what does not fit it. Needs no torch."""

from __future__ import annotations

import dataclasses

from connectors.errors import CheckpointMismatch, ConfigError
from models.hub import weights_place
from models.rekv.config import ReKVConfig
from models.rekv.header import SMALL_WEIGHTS, read_head_width, read_small
from operators.rekv.config import ReKVOptions
from operators.rekv.policies import BlockFloat

__all__ = ["check_policy", "rekv_config", "settings"]


def settings(options: ReKVOptions, name: str) -> ReKVConfig:
    """Return the settings of the model. Raise ``ConfigError`` or ``CheckpointMismatch`` for what cannot be used."""
    path = weights_place(options.checkpoint, SMALL_WEIGHTS)
    if not path.exists():
        raise CheckpointMismatch(
            f"{name}: checkpoint {str(path)!r} does not exist; give the folder of a checkpoint, the file of a small model, or "
            "none for the one that comes with the package"
        )
    return rekv_config(
        read_small(path)[0] if path.is_file() else None,
        window_tokens=options.window_tokens,
        retrieve_frames=options.retrieve_frames,
        chunk_frames=options.chunk_frames,
        score=options.score,
        sink_overlap=options.sink_overlap,
        rope_mode=options.rope_mode,
        encode_frames=options.batch_frames,
    )


def rekv_config(own: ReKVConfig | None, **given: object) -> ReKVConfig:
    """Return the model's own settings, or the published ones, with what is given and not None."""
    return dataclasses.replace(own or ReKVConfig(), **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


def check_policy(options: ReKVOptions, name: str) -> None:
    """Raise ``ConfigError`` where the policy does not fit the model's attention heads, as far as its header tells them."""
    path = weights_place(options.checkpoint, SMALL_WEIGHTS)
    width = read_small(path)[1] if path.is_file() else read_head_width(path)
    if width is None or not isinstance(options.policy, BlockFloat):
        return
    try:
        options.policy.check_heads(width)
    except ConfigError as error:
        raise ConfigError(f"{name}: policy: {error}") from error
