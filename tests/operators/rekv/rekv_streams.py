"""Frames of several streams, questions, and ``rekv`` with a tiny random model for the tests beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from video_streams import STEP_US, frames, image, interleaved, question, questions, rows_of

from models.rekv.small import build_small, save_small
from models.tokenizers import WordTokenizer
from operators.base import Context
from operators.rekv import ReKVOperator, ReKVOptions

__all__ = ["SMALL", "STEP_US", "frames", "image", "interleaved", "operator", "question", "questions", "rows_of", "tiny"]

WORDS = ["watch the video.", "answer:", "which colour is it? when did a red circle come"]
SMALL: dict[str, Any] = {
    "window_tokens": 24,
    "retrieve_frames": 4,
    "sample_fps": None,
    "max_answer_tokens": 5,
    "batch_frames": 1,
    "batch_questions": 1,
    "frames_per_stream": 10,
    "device_gib": 0.01,
}


@cache
def tiny(folder: Path) -> str:
    """Write a model with random weights, large enough that answers depend on the frames."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        small = build_small(WordTokenizer.of(WORDS), side=16)
        with torch.no_grad():
            for parameter in small.model.model.language_model.layers.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
    save_small(small, folder / "tiny.safetensors")
    return str(folder / "tiny.safetensors")


def operator(checkpoint: str, **options: Any) -> ReKVOperator:
    """Return an operator."""
    return ReKVOperator(ReKVOptions(**(SMALL | {"checkpoint": checkpoint} | options)), Context(name="watch"))
