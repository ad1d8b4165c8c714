"""What weights of the policy, or of one of its backbones, say without being read: the settings. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from connectors.errors import CheckpointMismatch
from models.file_headers import damaged_named, read_header, require_model
from models.fourd_vla.config import DecoderConfig, FourDVLAConfig, VisionConfig

__all__ = ["FORMAT", "MODEL", "SMALL_WEIGHTS", "policy_config"]

SMALL_WEIGHTS = Path(__file__).resolve().parent / "weights" / "past.safetensors"
"""The small policy that comes with the package: the recipe ``past`` with seed 0. It knows rendered scenes only."""

MODEL = "fourd_vla"
FORMAT = "1"
"""Of the header of a file, as ``MODEL`` is."""


def policy_config(path: str | os.PathLike[str]) -> FourDVLAConfig:
    """Return the settings of a file or folder of weights without reading the weights. Raise ``CheckpointMismatch``."""
    place = Path(path)
    if place.is_dir():
        return _folder_config(_read_json(place / "config.json"), place)
    return _file_config(place, read_header(place)[1])


def _file_config(file: Path, metadata: Mapping[str, str]) -> FourDVLAConfig:
    require_model(metadata, MODEL, FORMAT, file, otherwise="a published checkpoint is given as its folder")
    with damaged_named(file):
        return FourDVLAConfig.from_json(json.loads(metadata["config"]))


def _folder_config(values: Mapping[str, Any], folder: Path) -> FourDVLAConfig:
    """Return settings from config.json: our own under ``fourd_vla``, else those of an InternVL checkpoint."""
    if "fourd_vla" in values:
        return FourDVLAConfig.from_json(values["fourd_vla"])
    vision = values.get("vision_config")
    text = values.get("llm_config", values.get("text_config"))
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        raise CheckpointMismatch(
            f"{folder / 'config.json'}: no policy (key fourd_vla) and no InternVL checkpoint (keys vision_config and "
            f"llm_config or text_config); it has {sorted(values)[:12]}"
        )
    has_query_norm = vision.get("use_qk_norm", vision.get("qk_normalization", False))
    if vision.get("norm_type", "layer_norm") != "layer_norm" or has_query_norm:
        raise CheckpointMismatch(f"{folder}: only InternViT-300M is supported (layer norms, no norm of queries and keys)")
    try:
        side, patch = _first(vision["image_size"]), _first(vision["patch_size"])
        heads = int(text["num_attention_heads"])
        rope = text.get("rope_parameters") or {}
        return FourDVLAConfig(
            vision=VisionConfig(
                patch=patch,
                hidden=int(vision["hidden_size"]),
                layers=int(vision["num_hidden_layers"]),
                heads=int(vision["num_attention_heads"]),
                mlp=int(vision["intermediate_size"]),
                grid=side // patch,
                norm_eps=float(vision.get("layer_norm_eps", 1e-6)),
            ),
            decoder=DecoderConfig(
                vocabulary=int(text["vocab_size"]),
                hidden=int(text["hidden_size"]),
                layers=int(text["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(text.get("num_key_value_heads") or heads),
                mlp=int(text["intermediate_size"]),
                rope_theta=float(rope.get("rope_theta") or text.get("rope_theta") or 1e4),
                norm_eps=float(text.get("rms_norm_eps", 1e-5)),
                qkv_bias="qwen2" in str(text.get("model_type", text.get("architectures", ""))).lower(),
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointMismatch(f"{folder / 'config.json'}: cannot be used: {error!r}") from error


def _first(value: int | list[int]) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointMismatch(f"{file}: cannot be read: {error}; give a folder with config.json and safetensors") from error
    if not isinstance(values, dict):
        raise CheckpointMismatch(f"{file}: holds a {type(values).__name__}, not settings")
    return values
