"""What one of our files says without its weights: the settings. Needs no torch for a file that is as it was written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from connectors.errors import CheckpointMismatch
from models.file_headers import damaged_named, is_safetensors, is_sealed, read_header, require_model
from models.prompttpp.config import TppConfig

__all__ = ["FORMAT", "MODEL", "read_config", "require_safetensors", "stored_config"]

MODEL = "prompttpp"
FORMAT = "1"
"""Of the header of a file, as ``MODEL`` is."""


def read_config(path: str | os.PathLike[str]) -> TppConfig:
    """Return the config of one of our files after checking names and shapes, without reading weights."""
    file = Path(path)
    require_safetensors(file)
    tensors, metadata = read_header(file)
    if is_sealed(metadata, tensors):
        return stored_config(metadata, file)
    from models.prompttpp.checkpoint import checked_config  # needs torch

    return checked_config(file)


def require_safetensors(file: Path) -> None:
    """Raise ``CheckpointMismatch`` for any other file."""
    if not is_safetensors(file):
        raise CheckpointMismatch(
            f"{file}: not a safetensors file; convert an official state dict first, with load_official() and save() of "
            "models.prompttpp.checkpoint"
        )


def stored_config(metadata: Mapping[str, str], file: Path) -> TppConfig:
    """Return the config in the header of one of our files."""
    require_model(metadata, MODEL, FORMAT, file)
    with damaged_named(file):
        return TppConfig.from_json(json.loads(metadata["config"]))
