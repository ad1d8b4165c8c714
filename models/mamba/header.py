"""What a checkpoint says without its weights: the settings. Needs no torch for a file of ours that is as it was written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from models.file_headers import damaged_named, is_safetensors, is_sealed, read_header, require_model
from models.mamba.config import MambaConfig

__all__ = ["FORMAT", "MODEL", "read_config", "stored_config"]

MODEL = "mamba"
FORMAT = "1"
"""Of the header of a file, as ``MODEL`` is."""


def read_config(path: str | os.PathLike[str]) -> MambaConfig:
    """Return the config of a checkpoint after checking names and shapes, without loading weights.

    Reads only the header of a safetensors file; an official ``.pth`` has none and is read whole. Raises ``CheckpointMismatch``
    as ``load`` does.
    """
    file = Path(path)
    if is_safetensors(file):
        tensors, metadata = read_header(file)
        if is_sealed(metadata, tensors):
            return stored_config(metadata, file)
    from models.mamba.checkpoint import checked_config  # needs torch

    return checked_config(file)


def stored_config(metadata: Mapping[str, str], file: Path) -> MambaConfig:
    """Return the config in the header of a file of ours."""
    require_model(metadata, MODEL, FORMAT, file)
    with damaged_named(file):
        return MambaConfig.from_json(json.loads(metadata["config"]))
