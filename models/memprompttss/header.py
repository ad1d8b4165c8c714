"""What a file of weights says without them: the settings. Needs no torch for one of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from connectors.errors import CheckpointMismatch
from models.file_headers import damaged_named, is_own, is_safetensors, read_header, require_model
from models.memprompttss.config import MemPromptTSSConfig

__all__ = ["FORMAT", "MODEL", "SMALL_WEIGHTS", "network_config", "stored_config"]

SMALL_WEIGHTS = Path(__file__).resolve().parent / "weights" / "two_frequencies.safetensors"
"""The small network of the package: one channel, two states, told apart by prompts only."""

MODEL = "memprompttss"
FORMAT = "1"
"""Of the header of a file, as ``MODEL`` is."""


def network_config(path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None) -> MemPromptTSSConfig:
    """Return the settings of a file without reading its weights where it is safetensors. Raise ``CheckpointMismatch``."""
    file = Path(path)
    if is_safetensors(file) and is_own(metadata := read_header(file)[1]):
        return stored_config(metadata, file, settings)
    from models.memprompttss.checkpoint import release_config  # needs torch

    return release_config(file, settings)


def stored_config(metadata: Mapping[str, str], file: Path, settings: Mapping[str, Any] | None) -> MemPromptTSSConfig:
    """Return the settings in the header of a file of ours, beside which none may be given."""
    require_model(metadata, MODEL, FORMAT, file)
    if settings:
        raise CheckpointMismatch(f"{file}: holds its own settings; remove {sorted(settings)}")
    with damaged_named(file):
        return MemPromptTSSConfig.from_json(json.loads(metadata["config"]))
