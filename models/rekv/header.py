"""What checkpoints of video-language models say without their weights: kind, settings, width of a head. Needs no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from models.file_headers import damaged_named, read_header, require_model
from models.pretrained import read_config
from models.rekv.config import ReKVConfig
from models.rekv.families import FAMILIES

__all__ = [
    "FORMAT",
    "MODEL",
    "SMALL_MATCHER",
    "SMALL_REKV",
    "SMALL_UNSURE_BELOW",
    "SMALL_WEIGHTS",
    "read_head_width",
    "read_model_type",
    "read_small",
]

MODEL = "rekv"
FORMAT = "1"
"""Of the header of a small model's file, as ``MODEL`` is."""

SMALL_REKV = ReKVConfig(window_tokens=128, retrieve_frames=16)
"""What the small model is trained for: a window of 32 frames of 4 tokens, half as many retrieved."""

SMALL_UNSURE_BELOW = 0.9
"""Of ``SMALL_WEIGHTS``, calibrated on films by ``benchmarks.rekv_confidence``."""

SMALL_WEIGHTS = Path(__file__).resolve().parent / "weights" / "shapes.safetensors"
"""The small model that comes with the package."""

SMALL_MATCHER = SMALL_WEIGHTS.with_name("standing.safetensors")
"""Tells when what a standing question asks about is there; trained beside ``SMALL_WEIGHTS``."""


def read_model_type(folder: str | os.PathLike[str]) -> str:
    """Return the ``model_type`` of a checkpoint folder. Raises ``CheckpointMismatch``."""
    return str(read_config(Path(folder), FAMILIES)["model_type"])


def read_head_width(folder: str | os.PathLike[str]) -> int | None:
    """Return the width of an attention head of a checkpoint folder; None where its config.json leaves it to the family."""
    config = read_config(Path(folder), FAMILIES)
    text = config.get("text_config") or config  # Qwen2-VL and Qwen2.5-VL as they were published have one level only
    hidden, heads = text.get("hidden_size"), text.get("num_attention_heads")
    width = text.get("head_dim") or (hidden // heads if hidden and heads else None)
    return None if width is None else int(width)


def read_small(path: str | os.PathLike[str]) -> tuple[ReKVConfig, int]:
    """Return the settings and the width of an attention head of such a file, without its weights and without transformers.

    Raises ``CheckpointMismatch`` for any other file.
    """
    file = Path(path)
    _, metadata = read_header(file)
    require_model(metadata, MODEL, FORMAT, file, otherwise="a published checkpoint is given as its folder")
    with damaged_named(file):
        text = json.loads(metadata["config"])["text_config"]
        return ReKVConfig(**json.loads(metadata["rekv"])), text["hidden_size"] // text["num_attention_heads"]
