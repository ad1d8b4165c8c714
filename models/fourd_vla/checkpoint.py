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

import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch, ConfigError
from models.file_headers import make_header
from models.fourd_vla.header import FORMAT, MODEL, policy_config
from models.fourd_vla.model import FourDVLA
from models.fourd_vla.names import UNUSED, internvl_names
from models.skeletons import skeleton
from models.tokenizers import FolderTokenizer, Tokenizer, WordTokenizer
from models.weight_files import read_safetensors, write_safetensors

__all__ = ["Policy", "fit", "load_policy", "save_policy"]

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
    with skeleton():
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
    metadata = make_header(MODEL, FORMAT, config=policy.model.config.to_json(), words=policy.tokenizer.words)
    write_safetensors(policy.model.state_dict(), metadata, Path(path))


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
