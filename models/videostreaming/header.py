"""What a checkpoint of VideoStreaming says without its weights: the settings, and which files belong to it. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from connectors.errors import CheckpointMismatch, ConfigError
from models.file_headers import read_header, require_model
from models.videostreaming.config import VideoStreamingConfig

__all__ = [
    "FORMAT",
    "METHOD",
    "PUBLISHED",
    "SETTINGS_FILE",
    "SMALL_MATCHER",
    "SMALL_UNSURE_BELOW",
    "SMALL_WEIGHTS",
    "read_settings",
]

SMALL_WEIGHTS = Path(__file__).resolve().parent / "weights" / "shapes.safetensors"
"""The small model that comes with the package."""

SMALL_MATCHER = SMALL_WEIGHTS.with_name("standing.safetensors")
"""Tells when what a standing question asks about is there; trained beside ``SMALL_WEIGHTS``."""

SMALL_UNSURE_BELOW = 0.65
"""Of ``SMALL_WEIGHTS``, calibrated on films by ``benchmarks.videostreaming_confidence``."""

SETTINGS_FILE = "videostreaming.json"
"""In a folder: what of the settings and prompts differs from the defaults."""

PUBLISHED = ("vision_tower", "streaming_encoder", "language_model")
"""Folders of a checkpoint."""

METHOD = "videostreaming"
FORMAT = "1"
"""Of the header of a file, as ``METHOD`` is."""


def read_settings(path: Path, **changed: Any) -> tuple[VideoStreamingConfig, dict[str, str]]:
    """Return the settings of a checkpoint with what is changed, and its header: nothing large is read.

    Raises ``CheckpointMismatch`` where there is no such checkpoint or it is of another kind, ``ConfigError`` for settings.
    """
    if path.is_file():
        _, header = read_header(path)
        require_model(header, METHOD, FORMAT, path, otherwise="published weights are given as a folder")
    elif path.is_dir():
        missing = [part for part in PUBLISHED if not (path / part).is_dir()]
        if missing:
            raise CheckpointMismatch(
                f"{path}: has no folder {', '.join(missing)}; a checkpoint is one file, or a folder with vision_tower (CLIP), "
                "streaming_encoder (Phi-2, say) and language_model (Vicuna, say), each as published"
            )
        header = _folder_settings(path)
    else:
        raise CheckpointMismatch(
            f"checkpoint {str(path)!r} does not exist; give the file of a model, a folder with vision_tower, streaming_encoder "
            "and language_model, or none for the small model that comes with the package"
        )
    try:
        own = json.loads(header.get("config", "{}"))
        config = VideoStreamingConfig(**own | {name: value for name, value in changed.items() if value is not None})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointMismatch(f"{path}: its settings cannot be used: {error}; copy or train it again") from error
    return config, header


def _folder_settings(path: Path) -> dict[str, str]:
    file = path / SETTINGS_FILE
    if not file.exists():
        return {}
    try:
        said = json.loads(file.read_text(encoding="utf-8-sig"))
        return {name: json.dumps(said[name]) for name in ("config", "prompts") if name in said}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointMismatch(f"{file}: cannot be read as JSON ({error}); copy it again, or remove it") from error
