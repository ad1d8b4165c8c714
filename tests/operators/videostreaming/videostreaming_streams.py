"""``videostreaming`` with a tiny random model for the tests beside this file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.loaders import save_model
from models.videostreaming.small import build_small, word_tokenizer
from operators.base import Context
from operators.videostreaming import VideoStreamingOperator, VideoStreamingOptions

COLOR = "which colour is it?"
SMALL: dict[str, Any] = {
    "max_answer_tokens": 5,
    "batch_frames": 1,
    "batch_clips": 1,
    "batch_questions": 1,
    "clips_per_stream": 6,
    "device_gib": 0.01,
}
"""A clip is four frames, half a second apart."""


@functools.cache
def tiny(folder: Path) -> str:
    """Write a model with random weights, large enough that answers depend on the frames."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = VideoStreamingConfig(
            frames_per_clip=4, clip_seconds=2.0, frame_summaries=1, select_clips=2, encoder_layers=2, vision_layer=-1
        )
        words = word_tokenizer(["which colour is it? when did a red circle come"])
        ready = build_small(words, 16, config, hidden_size=32, intermediate_size=48)
        with torch.no_grad():
            for parameter in ready.model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
    save_model(ready, folder / "tiny.safetensors")
    return str(folder / "tiny.safetensors")


def operator(checkpoint: str, **options: Any) -> VideoStreamingOperator:
    """Return an operator."""
    return VideoStreamingOperator(
        VideoStreamingOptions(**(SMALL | {"checkpoint": checkpoint} | options)), Context(name="watch")
    )
