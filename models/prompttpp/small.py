"""The small network that comes with the package: made by ``streambank train prompttpp --recipe drift``, seed 0."""

from __future__ import annotations

from pathlib import Path

__all__ = ["SMALL_WEIGHTS"]

SMALL_WEIGHTS = Path(__file__).resolve().parent / "weights" / "drift.safetensors"
"""Three types, time unit one minute, prompts; pre-trained on the first three phases of the recipe's stream."""
