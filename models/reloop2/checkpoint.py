"""Checkpoints of the click-through-rate networks: our safetensors files, and FuxiCTR state dicts.

Ours hold config, feature map and the training mean of the hidden vector; a FuxiCTR file needs its ``feature_map.json`` and
model settings beside it. No pickle code is executed. Everything that does not fit raises ``CheckpointMismatch``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch, ConfigError
from models.file_headers import is_safetensors, make_header
from models.reloop2.base import CtrModel
from models.reloop2.config import CtrConfig, from_fuxictr
from models.reloop2.feature_map import FeatureMap, read_fuxictr
from models.reloop2.header import FORMAT, MODEL, Header, require_safetensors, stored_header
from models.reloop2.model import build_model
from models.skeletons import skeleton
from models.weight_files import read_safetensors, read_state_dict, write_safetensors

__all__ = ["checked_header", "load", "load_official", "model_id", "official_state", "save"]

_OWN_BUFFERS = ("hidden_mean", "hidden_mean_known")
# Constants that FuxiCTR stores and we compute.
_COMPUTED = re.compile(r"(^|\.)(powers_of_two|triu_index)$")
_TABLE = re.compile(r"embedding_layers\.(?P<feature>.+)\.weight$")


def save(model: CtrModel, path: str | os.PathLike[str]) -> None:
    """Write ``model`` with its config and feature map to a safetensors file, replacing it in one step."""
    values = {"config": model.config.to_json(), "feature_map": model.feature_map.to_json(), "model_id": model_id(model)}
    metadata = make_header(MODEL, FORMAT, **values)
    write_safetensors(model.state_dict(), metadata, Path(path))


def load(path: str | os.PathLike[str]) -> CtrModel:
    """Build the model of one of our files, on the CPU, in eval mode. Raises ``CheckpointMismatch``."""
    file = Path(path)
    state, header = _read(file, header_only=False)
    model = _build(header.config, header.feature_map, file)
    _fill(model, state, file)
    return model


def checked_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of one of our files after comparing its names and shapes with a network of these settings."""
    file = Path(path)
    state, header = _read(file, header_only=True)
    with skeleton():
        wanted = _build(header.config, header.feature_map, file).state_dict()
    _check(state, wanted, file)
    return header


def load_official(
    model_file: str | os.PathLike[str],
    feature_map: str | os.PathLike[str] | FeatureMap,
    config: CtrConfig | Mapping[str, Any],
) -> CtrModel:
    """Build the model of a FuxiCTR checkpoint (``<model_id>.model``), on the CPU, in eval mode.

    ``feature_map``: the ``feature_map.json`` beside it. ``config``: ours, or the mapping of the experiment's
    ``model_config.yaml``. Parameters are found by the end of their name and by shape, so that a wrapper's prefix does not
    matter; one that is missing, left over or ambiguous is an error. Tables that the map shares must be equal, and are tied.
    The hidden mean is not known afterwards: ``models.reloop2.train.measure_hidden_mean`` sets it from data.

    Raises ``CheckpointMismatch``, and ``ConfigError`` for settings that are not built here.
    """
    file = Path(model_file)
    features = feature_map if isinstance(feature_map, FeatureMap) else read_fuxictr(feature_map)
    settled = config if isinstance(config, CtrConfig) else from_fuxictr(config)
    model = _build(settled, features, file)
    stored = read_safetensors(file)[0] if is_safetensors(file) else read_state_dict(file)
    own = {name: tensor for name, tensor in model.state_dict().items() if name in _OWN_BUFFERS}
    _fill(model, own | official_state(model, stored, str(file)), file)
    return model


def model_id(model: CtrModel) -> str:
    """Return 12 hex digits that tell this model (config, features, weights) from any other."""
    digest = hashlib.sha256(json.dumps([model.config.to_json(), model.feature_map.to_json()], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def official_state(model: CtrModel, stored: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return FuxiCTR's parameters under our names. ``where`` names the file for messages.

    Raises ``CheckpointMismatch`` for parameters that are missing, ambiguous, left over, or unequal although shared.
    """
    left = {_normal(name): tensor for name, tensor in stored.items() if not _COMPUTED.search(name)}
    renamed: dict[str, Tensor] = {}
    for name, wanted in model.state_dict().items():
        if name in _OWN_BUFFERS:
            continue
        found = _find(name, wanted, left, where)
        renamed[name] = left.pop(found)
    for name in list(left):
        owner = _shared_table(name, model.feature_map)
        if owner is None or owner not in renamed:
            continue
        if not torch.equal(left.pop(name), renamed[owner]):
            raise CheckpointMismatch(
                f"{where}: {name} and {owner} differ, but the feature map says that they share one table; "
                "take the feature map of this checkpoint"
            )
    if left:
        raise CheckpointMismatch(
            f"{where}: {len(left)} parameters have no place in {model.config.network} with features "
            f"{model.feature_map.names}: {_few(sorted(left))}; check the settings and the feature map"
        )
    return renamed


def _normal(name: str) -> str:
    """Undo the wrappers around embedding dictionaries, of which FuxiCTR's networks have one or two."""
    return re.sub(r"(embedding_layer\.)+embedding_layers\.", "embedding_layer.embedding_layers.", name.removeprefix("module."))


def _find(name: str, wanted: Tensor, left: Mapping[str, Tensor], where: str) -> str:
    """Return the stored name that ends with ``name`` and has its shape; the shortest, which must be the only one so short."""
    named = [key for key in left if key == name or key.endswith(f".{name}")]
    fits = sorted((key for key in named if left[key].shape == wanted.shape), key=len)
    if not fits:
        held = ", ".join(f"{key} {tuple(left[key].shape)}" for key in named) or "nothing of that name"
        raise CheckpointMismatch(
            f"{where}: no parameter {name} of shape {tuple(wanted.shape)}; there is {held}; check settings and feature map"
        )
    if len(fits) > 1 and len(fits[0]) == len(fits[1]):
        raise CheckpointMismatch(f"{where}: {name} could be any of {_few(fits)}; remove all but one model from the file")
    return fits[0]


def _shared_table(name: str, feature_map: FeatureMap) -> str | None:
    """Return our name of the table that a stored table of a sharing feature repeats."""
    match = _TABLE.search(name)
    if match is None or match["feature"] not in feature_map:
        return None
    owner = feature_map[match["feature"]].share_embedding
    return None if owner is None else f"embedding_layer.embedding_layers.{owner}.weight"


def _read(file: Path, *, header_only: bool) -> tuple[dict[str, Tensor], Header]:
    require_safetensors(file)
    state, metadata = read_safetensors(file, header_only=header_only)
    return state, stored_header(metadata, {name: tuple(tensor.shape) for name, tensor in state.items()}, file)


def _build(config: CtrConfig, feature_map: FeatureMap, file: Path) -> CtrModel:
    try:
        return build_model(config, feature_map)
    except ConfigError as error:
        raise CheckpointMismatch(f"{file}: its config and feature map give no network: {error}") from error


def _fill(model: CtrModel, state: Mapping[str, Tensor], file: Path) -> None:
    _check(state, model.state_dict(), file)
    model.load_state_dict(dict(state))


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    if state.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        raise CheckpointMismatch(f"{file}: parameters missing: {_few(missing)}; not of this network: {_few(extra)}")
    shapes = [f"{name} is {list(state[name].shape)}, not {list(wanted[name].shape)}" for name in wanted]
    shapes = [text for text, name in zip(shapes, wanted, strict=True) if state[name].shape != wanted[name].shape]
    if shapes:
        raise CheckpointMismatch(f"{file}: {len(shapes)} parameters have another shape: {_few(shapes)}")
    broken = [name for name, tensor in state.items() if not tensor.is_meta and not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointMismatch(f"{file}: {len(broken)} parameters hold NaN or infinity: {_few(broken)}; the file is damaged")


def _few(items: Sequence[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f", … {len(items) - most} more" if len(items) > most else "") if items else "none"
