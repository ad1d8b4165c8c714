"""Weights on disk: our safetensors files, and official PyTorch checkpoints read without executing pickle code.

``load`` takes both, told apart by content; ``convert`` turns the second kind into the first. Everything that can be wrong with
a file raises ``CheckpointMismatch``. Knows nothing about streams: banks are never part of a checkpoint.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch, ConfigError
from models.file_headers import is_own, is_safetensors, make_header
from models.mamba.config import IMAGENET_VID_CLASSES, MambaConfig
from models.mamba.header import FORMAT, MODEL, stored_config
from models.mamba.model import Mamba
from models.skeletons import skeleton
from models.weight_files import read_safetensors, read_state_dict, write_safetensors

__all__ = ["checked_config", "convert", "infer_config", "load", "load_backbone", "official_key", "own_key", "save"]

logger = logging.getLogger(__name__)


# Our module prefix -> the official one. The layout is that of the authors' release; SELSA models of the same family share it.
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("backbone.", "detector.backbone."),
    ("neck_conv.", "detector.neck.convs.0.conv."),
    ("rpn.conv.", "detector.rpn_head.rpn_conv."),
    ("rpn.objectness.", "detector.rpn_head.rpn_cls."),
    ("rpn.deltas.", "detector.rpn_head.rpn_reg."),
    ("head.fc.", "detector.roi_head.bbox_head.shared_fcs."),
    ("head.attention.", "detector.roi_head.bbox_head.aggregator."),
    ("head.logits.", "detector.roi_head.bbox_head.fc_cls."),
    ("head.deltas.", "detector.roi_head.bbox_head.fc_reg."),
    ("pixel.", "pixel.aggregator."),
)
_LINEARS = {"query": "fc_embed", "key": "ref_fc_embed", "value": "ref_fc", "output": "fc"}
_ATTENTION_PREFIXES = ("head.attention.", "pixel.")


def official_key(key: str) -> str:
    """Return the official name of one of our parameters. Raises ``KeyError`` for a name that is not ours."""
    for ours, theirs in _PREFIXES:
        if key.startswith(ours):
            rest = key.removeprefix(ours)
            return theirs + (_rename_linear(rest, _LINEARS) if ours in _ATTENTION_PREFIXES else rest)
    raise KeyError(key)


def own_key(key: str) -> str | None:
    """Return our name of an official parameter, or None where the model has no such part."""
    for ours, theirs in _PREFIXES:
        if key.startswith(theirs):
            rest = key.removeprefix(theirs)
            back = {theirs: ours for ours, theirs in _LINEARS.items()}
            return ours + (_rename_linear(rest, back) if ours in _ATTENTION_PREFIXES else rest)
    return None


def _rename_linear(rest: str, names: Mapping[str, str]) -> str:
    return ".".join(names.get(part, part) for part in rest.split("."))


def save(model: Mamba, path: str | os.PathLike[str]) -> None:
    """Write ``model`` and its config to a safetensors file, replacing it in one step.

    Raises ``ValueError`` for a model after ``fuse_for_inference``: its parameters are no longer those of the network.
    """
    if model.fused:
        raise ValueError("a model after fuse_for_inference() cannot be saved; save before fusing")
    write_safetensors(model.state_dict(), make_header(MODEL, FORMAT, config=model.config.to_json()), Path(path))


def load(path: str | os.PathLike[str], config: MambaConfig | None = None, *, classes: Sequence[str] | None = None) -> Mamba:
    """Build the model of a checkpoint file, on the CPU, in eval mode.

    Takes our safetensors files and official checkpoints (``.pth``: a state dict, bare or under ``state_dict``; names may start
    with ``module.``). ``config`` overrides what the file says or what its shapes tell; ``classes`` names the classes of an
    official file that is not ImageNet VID. A file without pixel-level weights gives an instance-only model, whatever
    ``config.pixel_level`` says. Parameters of the file that the model has no use for are logged and left.

    Raises ``CheckpointMismatch`` if the file cannot be read safely or does not fit.
    """
    file = Path(path)
    state, stored = _read(file)
    config = _settle_config(config or stored, state, file)
    if classes is not None:
        config = _with_classes(config, classes, file)
    model = Mamba(config)
    _check(state, model.state_dict(), file)
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model.eval()


def checked_config(path: str | os.PathLike[str]) -> MambaConfig:
    """Return the config of a checkpoint after comparing its names and shapes with a network of these settings."""
    file = Path(path)
    state, stored = _read(file, header_only=True)
    config = _settle_config(stored, state, file)
    with skeleton():
        wanted = Mamba(config).state_dict()
    _check(state, wanted, file)
    return config


def _settle_config(config: MambaConfig | None, state: Mapping[str, Tensor], file: Path) -> MambaConfig:
    """Return ``config``, or what the shapes tell; without a pixel level where the file has none."""
    if config is None:
        config = infer_config(state, file)
    has_pixel = any(name.startswith("pixel.") for name in state)
    if config.pixel_level and not has_pixel:
        logger.warning("checkpoint=%s has no pixel level: building the instance-only model", file)
        config = dataclasses.replace(config, pixel_level=False)
    return config


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], *, classes: Sequence[str] | None = None) -> Mamba:
    """Read a checkpoint of any accepted kind and write it as our safetensors file. Returns the model."""
    model = load(source, classes=classes)
    save(model, target)
    return model


def load_backbone(model: Mamba, path: str | os.PathLike[str]) -> None:
    """Fill the backbone of ``model`` with ImageNet weights in torchvision's layout (a ResNet's state dict).

    Training at full size starts from such weights: the stem and the first stage stay as they are. The classifier ``fc.*`` of
    the file is not used. Raises ``CheckpointMismatch`` if anything else is missing, left over or shaped differently.
    """
    file = Path(path)
    state, _ = _read(file)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    _check(state, model.backbone.state_dict(), file)
    model.backbone.load_state_dict({name: state[name] for name in model.backbone.state_dict()})


def infer_config(state: Mapping[str, Tensor], file: Path, settings: Mapping[str, Any] | None = None) -> MambaConfig:
    """Return the config that a state dict (our names) tells by its shapes; the rest keeps the official defaults.

    What shapes cannot tell (attention heads, anchors, thresholds, class names other than VID) is the default. Where pixel
    weights fit both positions the position is "backbone". ``settings``, fields of ``MambaConfig`` that the caller knows, win
    over both.
    """
    try:
        channels = [state["backbone.conv1.weight"].shape[0]]
        channels += [state[f"backbone.layer{i}.0.conv3.weight"].shape[0] for i in range(1, 5)]
        neck, fc = state["neck_conv.weight"].shape[0], state["head.fc.0.weight"].shape[0]
        roi_size = math.isqrt(state["head.fc.0.weight"].shape[1] // neck)
        number = state["head.logits.weight"].shape[0] - 1
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointMismatch(
            f"{file}: not a MAMBA detector (ResNet-DC5): {error} is missing or malformed among {len(state)} parameters; "
            "for another architecture pass its config"
        ) from error
    pixel = state.get("pixel.query.weight")
    at_neck = pixel is not None and pixel.shape[0] == neck != channels[-1]
    named = IMAGENET_VID_CLASSES if number == len(IMAGENET_VID_CLASSES) else tuple(f"class_{i}" for i in range(number))
    told: dict[str, Any] = {
        "classes": named,
        "blocks": tuple(_count(state, rf"backbone\.layer{i}\.(\d+)\.") for i in range(1, 5)),
        "channels": tuple(channels),
        "neck_channels": neck,
        "fc_channels": fc,
        "stages": _count(state, r"head\.fc\.(\d+)\."),
        "roi_size": roi_size,
        "pixel_level": pixel is not None,
        "pixel_position": "neck" if at_neck else "backbone",
    }
    try:
        return MambaConfig(**(told | dict(settings or {})))
    except ConfigError as error:
        raise CheckpointMismatch(f"{file}: its shapes give no valid model: {error}; pass the config of the model") from error


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})


def _with_classes(config: MambaConfig, classes: Sequence[str], file: Path) -> MambaConfig:
    if len(classes) != len(config.classes):
        raise CheckpointMismatch(f"{file}: has {len(config.classes)} classes, but {len(classes)} names were given")
    return dataclasses.replace(config, classes=tuple(classes))


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    if missing:
        raise CheckpointMismatch(
            f"{file}: {len(missing)} of {len(wanted)} parameters are missing ({_few(missing)}) and {len(unexpected)} are "
            f"not of this model ({_few(unexpected)}); this is another model or a part of one"
        )
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if state[name].shape != tensor.shape
    ]
    if shapes:
        raise CheckpointMismatch(f"{file}: {len(shapes)} parameters have another shape: {_few(shapes)}; check the config")
    broken = [name for name in wanted if not state[name].is_meta and not torch.isfinite(state[name]).all()]
    if broken:
        raise CheckpointMismatch(f"{file}: {len(broken)} parameters hold NaN or infinity: {_few(broken)}; the file is damaged")
    if unexpected:
        logger.warning("checkpoint=%s unused_parameters=%d (%s)", file, len(unexpected), _few(unexpected))


def _few(items: Sequence[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f", … {len(items) - most} more" if len(items) > most else "") if items else "none"


def _read(file: Path, *, header_only: bool = False) -> tuple[dict[str, Tensor], MambaConfig | None]:
    """Return the tensors under our names, and the config where the file holds one.

    ``header_only``: of a safetensors file only names and shapes (meta tensors).
    """
    if is_safetensors(file):
        tensors, metadata = read_safetensors(file, header_only=header_only)
        if is_own(metadata):
            return tensors, stored_config(metadata, file)
        return _own_names(tensors), None
    return _own_names(read_state_dict(file)), None


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official parameters; what has no counterpart keeps its name and is reported later."""
    renamed = {}
    for name, tensor in state.items():
        official = name.removeprefix("module.")
        renamed[own_key(official) or official] = tensor
    return renamed
