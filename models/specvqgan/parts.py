"""Which files of a folder are which network of SpecVQGAN. Reads headers at most, and needs no torch."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from connectors.errors import CheckpointMismatch
from models.file_headers import is_own, is_safetensors, read_header

__all__ = ["PARTS", "SMALL_WEIGHTS", "find_parts", "is_own_file"]

SMALL_WEIGHTS = Path(__file__).resolve().parent / "weights"
"""The small networks that come with the package."""

PARTS = ("autoencoder", "transformer", "vocoder", "features")

_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth")


def find_parts(folder: str | os.PathLike[str], wanted: Collection[str]) -> dict[str, Path]:
    """Return the file of each network. Raises ``CheckpointMismatch`` for one that is not there, or there twice."""
    place = Path(folder)
    if not place.is_dir():
        raise CheckpointMismatch(f"{place}: is no folder; give one with {', '.join(PARTS)} ({', '.join(_ENDINGS)})")
    found: dict[str, Path] = {}
    for name in wanted:
        files = [path for ending in _ENDINGS if (path := place / f"{name}{ending}").is_file()]
        if len(files) > 1:
            raise CheckpointMismatch(f"{place}: holds {' and '.join(path.name for path in files)}; leave the one that counts")
        if files:
            found[name] = files[0]
    missing = [name for name in wanted if name not in found]
    if missing == ["autoencoder"] and (beside := find_parts(place, ["transformer"])) and not is_own_file(beside["transformer"]):
        found["autoencoder"] = beside["transformer"]
        missing = []
    if missing:
        there = ", ".join(sorted(path.name for path in place.iterdir())[:8]) or "nothing"
        raise CheckpointMismatch(
            f"{place}: has no {' and no '.join(missing)} ({', '.join(_ENDINGS)}); it holds {there}. Put the file there under "
            "this name"
        )
    return found


def is_own_file(file: Path) -> bool:
    """Tell whether a file is one of ours."""
    return is_safetensors(file) and is_own(read_header(file)[1])
