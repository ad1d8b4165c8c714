"""What the file of a matcher says without its weights. Needs no torch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from models.file_headers import damaged_named, read_header, require_model

__all__ = ["FORMAT", "MODEL", "MatcherConfig", "read_matcher"]

MODEL = "standing"
FORMAT = "1"
"""Of the header, as ``MODEL`` is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatcherConfig:
    """Sizes."""

    frame_width: int
    word_width: int
    hidden: int = 128
    width: int = 64


def read_matcher(path: str | os.PathLike[str]) -> tuple[MatcherConfig, dict[str, str]]:
    """Return the sizes and the header of such a file, without its weights. Raises ``CheckpointMismatch`` for any other file."""
    file = Path(path)
    _, metadata = read_header(file)
    require_model(metadata, MODEL, FORMAT, file)
    with damaged_named(file):
        return MatcherConfig(**json.loads(metadata["config"])), metadata
