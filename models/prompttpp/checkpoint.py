"""Weights on disk: our safetensors files, and those of the official code and of EasyTPP, read without executing pickle code.

Official state dicts grow after the first forward pass (every pool gains ``prompt``, an alias of ``type_prompt``); both sets of
keys load. What a file lacks, has too much, or holds in another shape raises ``CheckpointMismatch``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch, ConfigError
from models.file_headers import is_safetensors, make_header
from models.prompttpp.config import TppConfig
from models.prompttpp.header import FORMAT, MODEL, require_safetensors, stored_config
from models.prompttpp.model import build_model
from models.prompttpp.process import PointProcess
from models.skeletons import skeleton
from models.weight_files import read_safetensors, read_state_dict, weights_name, write_safetensors

__all__ = ["checked_config", "infer_config", "load", "load_official", "model_id", "official_state", "save"]

# Carried in official files and never used by them: a second projection of time and an embedding nothing reads.
_UNUSED = re.compile(r"(time_cde\.(weight|bias)|layer_event_emb\.(weight|bias)|layer_temporal_encoding\.div_term)$")
_ALIASES = (
    (re.compile(r"prompt_pool_([kv])\.prompt$"), r"prompt_pool_\1.type_prompt"),
    (re.compile(r"^inten_linear\."), "layer_intensity.0."),
    (re.compile(r"^softplus\.log_beta$"), "layer_intensity.1.log_beta"),
    (re.compile(r"^stack_layers\.\d+\.feed_forward\."), "feed_forward."),  # one MLP, named once per layer
)
_HEAD_LAYER = re.compile(r"^heads\.(\d+)\.(\d+)\.self_attn\.linears\.0\.weight$")
_LINEARS = ("query", "key", "value")


def save(model: PointProcess, path: str | os.PathLike[str]) -> None:
    """Write ``model`` and its config to a safetensors file, replacing it in one step."""
    write_safetensors(model.state_dict(), make_header(MODEL, FORMAT, config=model.config.to_json()), Path(path))


def load(path: str | os.PathLike[str]) -> PointProcess:
    """Build the model of one of our files, on the CPU, in eval mode. Raises ``CheckpointMismatch``."""
    file = Path(path)
    state, config = _read(file, header_only=False)
    return _filled(build_model(config), state, file)


def checked_config(path: str | os.PathLike[str]) -> TppConfig:
    """Return the config of one of our files after comparing its names and shapes with a network of these settings."""
    file = Path(path)
    state, config = _read(file, header_only=True)
    with skeleton():
        wanted = build_model(config).state_dict()
    _check(state, wanted, file)
    return config


def model_id(model: PointProcess) -> str:
    """Return a name of config and weights."""
    return weights_name(MODEL, model.config.to_json(), model.state_dict())


def load_official(
    path: str | os.PathLike[str], *, top_k: int = 5, time_scale: float = 1.0, heads: int = 2, dtype: torch.dtype = torch.float32
) -> PointProcess:
    """Build the model of a file of the official PromptTPP code or of EasyTPP (NHP, THP, AttNHP), in eval mode.

    Sizes are told by shapes; ``top_k`` is in no file, nor is ``heads`` where attention is split (THP). Raises
    ``CheckpointMismatch``.
    """
    file = Path(path)
    stored = read_safetensors(file)[0] if is_safetensors(file) else read_state_dict(file)
    config = dataclasses.replace(infer_config(stored, str(file), top_k=top_k, heads=heads), time_scale=time_scale)
    model = build_model(config).to(dtype)
    own = official_state(config, stored, str(file))
    return _filled(model, {name: tensor.to(dtype) for name, tensor in own.items()}, file)


def infer_config(stored: Mapping[str, Tensor], where: str, *, top_k: int = 5, heads: int = 2) -> TppConfig:
    """Tell the sizes of an official state dict by its shapes. Raises ``CheckpointMismatch``."""
    shapes = {_plain(name): tuple(tensor.shape) for name, tensor in stored.items()}
    try:
        padded, hidden = shapes["layer_type_emb.weight"]
        common: dict[str, Any] = {"types": padded - 1, "hidden": hidden, "scaled": any("log_beta" in name for name in shapes)}
        if "rnn_cell.linear_layer.weight" in shapes:
            return TppConfig(backbone="nhp", pool=0, **common)
        if "layer_intensity_hidden.weight" in shapes:
            layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("stack_layers."))
            inner = shapes["feed_forward.0.weight"][0]
            return TppConfig(backbone="thp", pool=0, layers=layers, heads=heads, feed_forward=inner, **common)
        places = [match for name in shapes if (match := _HEAD_LAYER.match(name))]
        common["heads"], common["layers"] = (1 + max(int(place[part]) for place in places) for part in (1, 2))
        common["time_dim"] = shapes["heads.0.0.self_attn.linears.0.weight"][1] - hidden
        if "heads.0.0.self_attn.prompt_pool_k.prompt_key" not in shapes:
            return TppConfig(pool=0, **common)
        size, length, _ = shapes["heads.0.0.self_attn.prompt_pool_k.type_prompt"]
        return TppConfig(pool=size, prompt_length=length, top_k=top_k, **common)
    except (KeyError, ValueError, IndexError, ConfigError) as error:
        raise CheckpointMismatch(
            f"{where}: not a state dict of PromptAttNHP, AttNHP, NHP or THP ({error}); it has {sorted(shapes)[:4]} …"
        ) from error


def official_state(config: TppConfig, stored: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return official parameters under our names. Raises ``CheckpointMismatch`` for aliases that differ and for leftovers."""
    left: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        plain = _plain(name)
        if _UNUSED.search(plain):
            continue
        if plain in left and not torch.equal(left[plain], tensor):
            raise CheckpointMismatch(f"{where}: {name} differs from {plain}, of which it is an alias; the file is damaged")
        left[plain] = tensor
    own = {"types.weight": "layer_type_emb.weight"}
    if config.backbone == "attnhp":
        own |= _attention_names(config)
    elif config.backbone == "nhp":
        own |= {f"cell.{part}": f"rnn_cell.linear_layer.{part}" for part in ("weight", "bias")}
    else:
        own |= _transformer_names(config)
    if config.backbone != "thp":
        own |= {f"rate.linear.{part}": f"layer_intensity.0.{part}" for part in ("weight", "bias")}
        if config.scaled:
            own["rate.log_beta"] = "layer_intensity.1.log_beta"
    missing = sorted(theirs for theirs in own.values() if theirs not in left)
    if missing:
        raise CheckpointMismatch(f"{where}: {len(missing)} parameters are missing: {', '.join(missing[:4])}")
    renamed = {ours: left.pop(theirs) for ours, theirs in own.items()}
    if config.pool:
        try:
            renamed |= _pools(config, left)
        except (KeyError, RuntimeError) as error:
            raise CheckpointMismatch(f"{where}: its prompt pools are incomplete or of different sizes: {error}") from error
    if left:
        raise CheckpointMismatch(f"{where}: {len(left)} parameters have no place: {', '.join(sorted(left)[:4])}")
    return renamed


def _plain(name: str) -> str:
    name = name.removeprefix("module.")
    for pattern, replacement in _ALIASES:
        name = pattern.sub(replacement, name)
    return name


def _attention_names(config: TppConfig) -> dict[str, str]:
    return {
        f"attention.{head * config.layers + layer}.{ours}.{part}": f"heads.{head}.{layer}.self_attn.linears.{theirs}.{part}"
        for head in range(config.heads)
        for layer in range(config.layers)
        for theirs, ours in enumerate(_LINEARS)
        for part in ("weight", "bias")
    }


def _transformer_names(config: TppConfig) -> dict[str, str]:
    names = {
        f"attention.{layer}.{ours}.{part}": f"stack_layers.{layer}.self_attn.linears.{theirs}.{part}"
        for layer in range(config.layers)
        for theirs, ours in enumerate(_LINEARS)
        for part in ("weight", "bias")
    }
    names |= {
        f"{ours}.{part}": f"feed_forward.{i}.{part}" for i, ours in ((0, "inner"), (2, "outer")) for part in ("weight", "bias")
    }
    names |= {f"hidden_rate.{part}": f"layer_intensity_hidden.{part}" for part in ("weight", "bias")}
    names |= {"base": "factor_intensity_base", "decay": "factor_intensity_decay"}
    return names | ({"log_beta": "layer_intensity.1.log_beta"} if config.scaled else {})


def _pools(config: TppConfig, left: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the prompts of all layers out of ``left`` and stack them."""
    stacked: dict[str, list[Tensor]] = {"prompt_key": [], "type_prompt": []}
    for head in range(config.heads):
        for layer in range(config.layers):
            for side in "kv":
                for name, parts in stacked.items():
                    parts.append(left.pop(f"heads.{head}.{layer}.self_attn.prompt_pool_{side}.{name}"))
    return {"prompts.key": torch.stack(stacked["prompt_key"]), "prompts.value": torch.stack(stacked["type_prompt"])}


def _read(file: Path, *, header_only: bool) -> tuple[dict[str, Tensor], TppConfig]:
    require_safetensors(file)
    state, metadata = read_safetensors(file, header_only=header_only)
    return state, stored_config(metadata, file)


def _filled(model: PointProcess, state: Mapping[str, Tensor], file: Path) -> PointProcess:
    _check(state, model.state_dict(), file)
    model.load_state_dict(dict(state))
    return model.eval()


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    if state.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        raise CheckpointMismatch(f"{file}: parameters missing: {missing[:4]}; not of this network: {extra[:4]}")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointMismatch(f"{file}: {name} is {list(tensor.shape)}, not {list(wanted[name].shape)}")
        if not tensor.is_meta and not torch.isfinite(tensor).all():
            raise CheckpointMismatch(f"{file}: {name} holds NaN or infinity; the file is damaged")
