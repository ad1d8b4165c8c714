"""From options to the settings of the model, without its weights. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.hub import weights_place
from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.header import SMALL_WEIGHTS, read_settings
from operators.videostreaming.config import VideoStreamingOptions

__all__ = ["changed", "place", "settings"]


def settings(options: VideoStreamingOptions, name: str) -> VideoStreamingConfig:
    """Return the settings of the model. Raise ``ConfigError`` or ``CheckpointMismatch`` for what cannot be used."""
    return read_settings(place(options), **changed(options))[0]


def place(options: VideoStreamingOptions) -> Path:
    """Return where the checkpoint lies."""
    return weights_place(options.checkpoint, SMALL_WEIGHTS)


def changed(options: VideoStreamingOptions) -> dict[str, Any]:
    """Return the settings that options change; None: the model's own."""
    names = ("clip_seconds", "frames_per_clip", "select_clips", "include_newest", "propagate", "llm_time_text", "similarity")
    return {name: getattr(options, name) for name in names}
