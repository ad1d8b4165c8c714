"""Reading and writing weights of the policy, and reading those of its backbones; config.json and safetensors, no pickle.

No official 4D-VLA weights could be found. What loads: a policy of this project (one file, or a folder), and InternVL2-4B or
InternVL2.5-4B as a backbone, under their own names or those of transformers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch, ConfigError
from models.file_headers import damaged_named, make_header, require_model
from models.fourd_vla.config import DecoderConfig, FourDVLAConfig, VisionConfig
from models.fourd_vla.model import FourDVLA
from models.fourd_vla.names import UNUSED, internvl_names
from models.tokenizers import FolderTokenizer, Tokenizer, WordTokenizer
from models.weight_files import read_safetensors, write_safetensors

__all__ = ["SMALL_WEIGHTS", "Policy", "fit", "load_policy", "policy_config", "save_policy"]

SMALL_WEIGHTS = Path(__file__).resolve().parent / "weights" / "past.safetensors"
"""The small policy that comes with the package: the recipe ``past`` with seed 0. It knows rendered scenes only."""

_MODEL, _FORMAT = "fourd_vla", "1"
_SHOWN = 5
_OWN = ("coord_embed.", "coord_invalid", "time_embed.", "action_head.", "proprio.")
"""Parameters that a backbone does not have."""


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """The network with its tokenizer."""

    model: FourDVLA
    tokenizer: Tokenizer
    fresh: tuple[str, ...] = ()
    """Parameters that no file gave: those of the action head and the like, where only a backbone was loaded."""


def policy_config(path: str | os.PathLike[str]) -> FourDVLAConfig:
    """Return the settings of a file or folder of weights without reading the weights. Raise ``CheckpointMismatch``."""
    place = Path(path)
    if place.is_dir():
        return _folder_config(_read_json(place / "config.json"), place)
    return _file_config(place, read_safetensors(place, header_only=True)[1])


def load_policy(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    strict: bool = True,
) -> Policy:
    """Load a policy, or a backbone with a fresh action head, for inference.

    ``dtype`` None keeps the checkpoint's. ``strict``: refuse files in which anything is missing or left over, except that a
    backbone lacks all of our own parameters. Raises ``CheckpointMismatch`` naming what does not fit.
    """
    place = Path(path)
    config = policy_config(place)
    if place.is_dir():
        files = sorted(place.glob("*.safetensors"))
        if not files:
            raise CheckpointMismatch(f"{place}: holds no safetensors file; convert the weights to safetensors first")
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= read_safetensors(file)[0]
        if not (place / "tokenizer_config.json").exists():
            raise CheckpointMismatch(f"{place}: has no tokenizer; put tokenizer.json and tokenizer_config.json into the folder")
        tokenizer: Tokenizer = FolderTokenizer(place)
    else:
        tensors, metadata = read_safetensors(place)
        tokenizer = WordTokenizer(json.loads(metadata["words"]))
    with torch.device("meta"):
        model = FourDVLA(config)
    fresh = fit(model, tensors, str(place), strict=strict)
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Policy(model, tokenizer, fresh)


def fit(model: FourDVLA, tensors: Mapping[str, Tensor], where: str, *, strict: bool = True) -> tuple[str, ...]:
    """Put tensors of any known naming into a model built on the meta device; return the names that were initialized anew."""
    named = {name: tensor for name, tensor in internvl_names(tensors).items() if not UNUSED.fullmatch(name)}
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in named]
    unknown = [name for name in named if name not in wanted]
    shapes = [
        f"{name} is {tuple(named[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in named and named[name].shape != wanted[name].shape
    ]
    is_backbone = not any(name.startswith(_OWN) for name in named)
    lacking = [name for name in missing if not (is_backbone and name.startswith(_OWN))]
    if shapes or (strict and (lacking or unknown)):
        raise CheckpointMismatch(
            f"{where}: does not fit the policy: missing {_some(lacking)}, not known {_some(unknown)}, shapes {_some(shapes)}; "
            "check config.json, or load with strict=False to initialize what is missing"
        )
    if missing:
        made = FourDVLA(model.config).state_dict()
        kind = next((tensor.dtype for tensor in named.values() if tensor.is_floating_point()), torch.float32)
        named |= {name: made[name].to(kind) for name in missing}
    model.load_state_dict({name: named[name] for name in wanted}, assign=True)
    return tuple(missing)


def save_policy(policy: Policy, path: str | os.PathLike[str]) -> None:
    """Write one safetensors file with settings and words in its header. For policies with a tokenizer of words."""
    if not isinstance(policy.tokenizer, WordTokenizer):
        raise ConfigError(
            "only a policy with a tokenizer of words is written as one file; write weights beside the tokenizer's"
        )
    metadata = make_header(_MODEL, _FORMAT, config=policy.model.config.to_json(), words=policy.tokenizer.words)
    write_safetensors(policy.model.state_dict(), metadata, Path(path))


def _file_config(file: Path, metadata: Mapping[str, str]) -> FourDVLAConfig:
    require_model(metadata, _MODEL, _FORMAT, file, otherwise="a published checkpoint is given as its folder")
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


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
