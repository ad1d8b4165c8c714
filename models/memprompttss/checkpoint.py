"""Reading and writing weights: own files, and those of the Perseus and PromptTSS releases. No pickle code is executed.

A release's file is a bare state dict. Its shapes tell width, channels, states and layers; heads, strides, activation and the
axis of the encoder are not in it and are given as settings. Both of Perseus' encoders load: torch's, and the release's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from connectors.errors import CheckpointMismatch, ConfigError
from models.file_headers import is_own, is_safetensors, make_header
from models.memprompttss.config import PATCH, MemPromptTSSConfig, PromptTSSConfig
from models.memprompttss.header import FORMAT, MODEL, stored_config
from models.memprompttss.layers import sinusoids
from models.memprompttss.model import MemPromptTSS
from models.memprompttss.prompttss import PromptTSS
from models.pretrained import some_of
from models.weight_files import read_safetensors, read_state_dict, write_safetensors

__all__ = [
    "load_network",
    "load_prompttss",
    "own_names",
    "perseus_config",
    "prompttss_config",
    "release_config",
    "release_names",
    "save_network",
]

M = TypeVar("M", bound=nn.Module)

_POSITIONS = ".input_layer.position_embedding.pe"
_PROJECTIONS = ("query", "key", "value")
_PARTS = {  # of a layer of the release's own encoder → of torch's
    "attention.out_projection": "self_attn.out_proj",
    "conv1": "linear1",
    "conv2": "linear2",
    "norm1": "norm1",
    "norm2": "norm2",
}


def save_network(model: MemPromptTSS, path: str | os.PathLike[str]) -> None:
    """Write one safetensors file with the settings in its header."""
    write_safetensors(model.state_dict(), make_header(MODEL, FORMAT, config=model.config.to_json()), Path(path))


def release_config(file: Path, settings: Mapping[str, Any] | None) -> MemPromptTSSConfig:
    """Return the settings of a release's file; of safetensors without reading weights. Raise ``CheckpointMismatch``."""
    if not is_safetensors(file):
        return _perseus(own_names(read_state_dict(file)), file, settings)
    shapes, metadata = read_safetensors(file, header_only=True)
    return _config(shapes, metadata, file, settings)


def load_network(
    path: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    device: torch.device | str = "cpu",
    classes: int | None = None,
) -> MemPromptTSS:
    """Load a network for inference, from an own file or a Perseus release's (safetensors or PyTorch).

    ``settings``: for a release's file, what its shapes do not tell (:func:`perseus_config`). ``classes``: another number of
    states than the file has; the head and the projection of labels are then new (seeded). Raises ``CheckpointMismatch``.
    """
    place = Path(path)
    if is_safetensors(place):
        tensors, metadata = read_safetensors(place)
        config = _config(tensors, metadata, place, settings)
    else:
        tensors = read_state_dict(place)
        config = _perseus(own_names(tensors), place, settings)
    named = own_names(tensors)
    if classes is not None and classes != config.classes:
        values = config.to_json() | {"classes": classes, "state_names": ()}
        config = MemPromptTSSConfig.from_json(values)
        fresh = _fresh(MemPromptTSS, config).state_dict()
        named |= {name: fresh[name] for name in fresh if name.startswith(("prompt_encoder.label_proj.", "state_decoder.head."))}
    return _filled(_fresh(MemPromptTSS, config), named, place, device)


def load_prompttss(
    path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None, *, device: torch.device | str = "cpu"
) -> PromptTSS:
    """Load the predecessor's network for inference from its release's file. Raises ``CheckpointMismatch``."""
    place = Path(path)
    named = own_names(read_safetensors(place)[0] if is_safetensors(place) else read_state_dict(place))
    try:
        config = prompttss_config(named, settings)
    except (KeyError, ConfigError) as error:
        raise CheckpointMismatch(f"{place}: is no checkpoint of PromptTSS: {error}; check the settings") from error
    return _filled(_fresh(PromptTSS, config), named, place, device)


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under our names: without ``module.``, without the table of positions, layers of either encoder alike.

    Raise ``CheckpointMismatch`` where a table of positions is not the fixed one.
    """
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    out: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if name.endswith(_POSITIONS):
            _check_positions(name, tensor)
            continue
        found = re.fullmatch(r"(.*encoder)\.attn_layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            out[name] = tensor
            continue
        stem, layer, part, kind = found.groups()
        if part in _PARTS:
            out[f"{stem}.layers.{layer}.{_PARTS[part]}.{kind}"] = tensor.squeeze(-1) if part.startswith("conv") else tensor
        elif part == "attention.query_projection":
            parts = [named.get(f"{stem}.attn_layers.{layer}.attention.{each}_projection.{kind}") for each in _PROJECTIONS]
            present = [each for each in parts if each is not None]
            if len(present) == len(_PROJECTIONS):
                out[f"{stem}.layers.{layer}.self_attn.in_proj_{kind}"] = torch.cat(present)
        elif not part.startswith("attention."):
            out[name] = tensor
    return out


def release_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the network under the names of the release's own encoder: the way back from :func:`own_names`."""
    back = {ours: theirs for theirs, ours in _PARTS.items()}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.*ts_encoder\.encoder)\.layers\.(\d+)\.(.+?)[._](weight|bias)", name)
        if found is None:
            out[name] = tensor
            continue
        stem, layer, part, kind = found.groups()
        if part == "self_attn.in_proj":
            for each, piece in zip(_PROJECTIONS, tensor.chunk(3), strict=True):
                out[f"{stem}.attn_layers.{layer}.attention.{each}_projection.{kind}"] = piece
        else:
            is_conv = kind == "weight" and part.startswith("linear")
            out[f"{stem}.attn_layers.{layer}.{back[part]}.{kind}"] = tensor[..., None] if is_conv else tensor
    return out


def perseus_config(tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> MemPromptTSSConfig:
    """Return the settings of a Perseus state dict (our names): shapes where they tell, ``settings``, else the defaults."""
    given = dict(settings or {})
    patch = int(given.get("patch", PATCH))
    classes, width = tensors["state_decoder.head.weight"].shape
    inputs = tensors["ts_encoder.input_layer.token_embedding.weight"].shape[1]
    told = {
        "channels": inputs // patch,
        "classes": classes,
        "width": width,
        "encoder_layers": _count(tensors, r"ts_encoder\.encoder\.layers\.(\d+)\."),
        "memory_layers": _count(tensors, r"memory_encoder\.layers\.(\d+)\."),
        "decoder_blocks": _count(tensors, r"state_decoder\.blocks\.(\d+)\."),
    }
    if "window" in given:
        given.setdefault("stride", max(1, int(given["window"]) // 4))  # as in all released experiments
    return MemPromptTSSConfig.from_json(given | told)


def prompttss_config(tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> PromptTSSConfig:
    """Return the settings of a PromptTSS state dict."""
    given = dict(settings or {})
    patch = int(given.get("patch", PATCH))
    classes, width = tensors["state_decoder.state_projection.weight"].shape
    inputs = tensors["time_series_encoder.input_layer.token_embedding.weight"].shape[1]
    told = {
        "channels": inputs // patch,
        "classes": classes,
        "width": width,
        "hidden": tensors["state_decoder.decoder_blocks.0.mlp_prompt.0.weight"].shape[0],
        "positions": tensors["state_decoder.positional_encoding"].shape[1],
        "encoder_layers": _count(tensors, r"time_series_encoder\.encoder\.layers\.(\d+)\."),
        "decoder_blocks": _count(tensors, r"state_decoder\.decoder_blocks\.(\d+)\."),
    }
    return PromptTSSConfig.from_json(given | told)


def _config(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: Path, settings: Mapping[str, Any] | None
) -> MemPromptTSSConfig:
    if not is_own(metadata):
        named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        # Shapes may be all there is (meta tensors): the table of positions is looked at when the weights are read.
        return _perseus(own_names({n: t for n, t in named.items() if not n.endswith(_POSITIONS)}), file, settings)
    return stored_config(metadata, file, settings)


def _perseus(named: Mapping[str, Tensor], file: Path, settings: Mapping[str, Any] | None) -> MemPromptTSSConfig:
    try:
        return perseus_config(named, settings)
    except (KeyError, ConfigError) as error:
        raise CheckpointMismatch(
            f"{file}: is no checkpoint of MemPromptTSS (Perseus): {error}; it has {some_of(named)}; check the file, and the "
            "settings that its shapes do not tell (heads, patch, patch_stride, activation, encoder_axis, window, context)"
        ) from error


def _fresh(kind: Callable[[Any], M], config: Any) -> M:
    """Build a network whose random weights are always the same, and leave the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config)


def _filled(model: M, named: Mapping[str, Tensor], file: Path, device: torch.device | str) -> M:
    wanted = model.state_dict()
    missing, unknown = [n for n in wanted if n not in named], [n for n in named if n not in wanted]
    shapes = [
        f"{name} is {tuple(named[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in named and named[name].shape != wanted[name].shape
    ]
    if missing or unknown or shapes:
        raise CheckpointMismatch(
            f"{file}: does not fit the network: missing {some_of(missing) or 'nothing'}, not known "
            f"{some_of(unknown) or 'nothing'}, shapes {some_of(shapes) or 'right'}; check the settings"
        )
    model.load_state_dict({name: named[name].float() for name in wanted})
    return model.to(device).eval().requires_grad_(False)


def _check_positions(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        return
    fixed = sinusoids(tensor.shape[-2], tensor.shape[-1])
    if not torch.allclose(tensor.float().reshape(fixed.shape), fixed, atol=1e-3):
        raise CheckpointMismatch(f"{name} is not the fixed table of sines and cosines; these weights are of another network")


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    numbers = [int(found.group(1)) for name in tensors if (found := re.match(pattern, name))]
    if not numbers:
        raise KeyError(pattern.replace("\\", ""))
    return max(numbers) + 1
