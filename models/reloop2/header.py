"""What one of our files says without its weights. Needs no torch for a file that is as it was written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from connectors.errors import CheckpointMismatch
from models.file_headers import damaged_named, is_safetensors, is_sealed, read_header, require_model
from models.reloop2.config import CtrConfig
from models.reloop2.feature_map import FeatureMap

__all__ = ["FORMAT", "MODEL", "Header", "read_model", "require_safetensors", "stored_header"]

MODEL = "reloop2"
FORMAT = "1"
"""Of the header of a file, as ``MODEL`` is."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a checkpoint says without its weights."""

    config: CtrConfig
    feature_map: FeatureMap
    model_id: str
    hidden_dim: int
    """Width of the vector by which rows are remembered; 0 in a file that lacks it, which names and shapes tell."""


def read_model(path: str | os.PathLike[str]) -> Header:
    """Return what one of our files says after checking names and shapes, without reading weights."""
    file = Path(path)
    require_safetensors(file)
    tensors, metadata = read_header(file)
    if is_sealed(metadata, tensors):
        return stored_header(metadata, {name: tensor.shape for name, tensor in tensors.items()}, file)
    from models.reloop2.checkpoint import checked_header  # needs torch

    return checked_header(file)


def require_safetensors(file: Path) -> None:
    """Raise ``CheckpointMismatch`` for any other file."""
    if not is_safetensors(file):
        raise CheckpointMismatch(
            f"{file}: not a safetensors file; convert a FuxiCTR checkpoint first, with load_official() and save() of "
            "models.reloop2.checkpoint"
        )


def stored_header(metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], file: Path) -> Header:
    """Return what the header of one of our files says."""
    require_model(metadata, MODEL, FORMAT, file)
    with damaged_named(file):
        config = CtrConfig.from_json(json.loads(metadata["config"]))
        feature_map = FeatureMap.from_json(json.loads(metadata["feature_map"]))
        return Header(config, feature_map, metadata["model_id"], sum(shapes.get("hidden_mean", ())))
