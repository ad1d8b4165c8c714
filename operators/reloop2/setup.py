"""From options to a model that can be used with them, and what two runs must have in common. No streams, no memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from connectors.errors import ConfigError, StreambankError
from models.reloop2 import checkpoint
from models.reloop2.base import CtrModel
from models.reloop2.model import build_model
from operators.banks import check_budget
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.early import EarlyLabels
from operators.reloop2.join import JoinTable
from operators.reloop2.memory import bytes_needed, key_bytes

__all__ = ["check_memory", "fingerprint", "hidden_dim", "load_model", "require_same_setup", "setup_of"]

_SHAPING = (
    "mode",
    "scope",
    "id_type",
    "arrays",
    "bits",
    "seed",
    "center",
    "capacity",
    "slots_per_bucket",
    "lists_per_query",
    "forgetting",
    "forget_rows",
    "micro_batch",
    "pending_capacity",
    "early_capacity",
)
"""Options that decide what a snapshot looks like or means."""


def load_model(path: str, options: ReLoop2Options, name: str) -> CtrModel:
    """Return the model of a checkpoint. Raise a ``StreambankError`` if it cannot be used with these options."""
    model = checkpoint.load(path)
    if options.center == "train_mean" and not bool(model.hidden_mean_known):
        raise ConfigError(
            f"{name}: {path!r} has no training mean of the hidden vector, which center='train_mean' subtracts; measure it with "
            "models.reloop2.train.measure_hidden_mean and save the model again, or set center='none'"
        )
    check_memory(options, name, model.hidden_dim)
    return model


def check_memory(options: ReLoop2Options, name: str, hidden_dim: int) -> None:
    """Raise ``ConfigError`` unless the memory and the tables of waiting rows fit into ``memory_budget_gib``."""
    per_lane = bytes_needed(options, hidden_dim)
    per_lane += JoinTable.bytes_needed(1, options.pending_capacity, options.micro_batch, key_bytes(options, hidden_dim))
    per_lane += EarlyLabels.bytes_needed(1, options.early_capacity)
    check_budget(
        name,
        bytes_per_stream=per_lane,
        streams=options.max_streams,
        budget=int(options.memory_budget_gib * 2**30),
        hint="Lower bits, arrays, capacity, pending_capacity or max_streams, or raise memory_budget_gib.",
    )


def setup_of(options: ReLoop2Options, model: CtrModel) -> dict[str, Any]:
    """Return what must be equal in two runs for one to go on with the other's memory, besides the model itself."""
    return {"hidden_dim": model.hidden_dim, **{name: getattr(options, name) for name in _SHAPING}}


def require_same_setup(given: Mapping[str, Any], wanted: Mapping[str, Any], what: str, error: type[StreambankError]) -> None:
    """Raise ``error`` naming every entry in which ``given``, which belongs to ``what``, differs from ``wanted``."""
    names = sorted(given.keys() | wanted.keys())
    differing = [f"{name} {given.get(name)!r} instead of {wanted.get(name)!r}" for name in names]
    differing = [text for text, name in zip(differing, names, strict=True) if given.get(name) != wanted.get(name)]
    if differing:
        raise error(f"{what} does not fit this operator: {', '.join(differing)}; use the options of the first run")


def fingerprint(options: ReLoop2Options, model_id: str) -> str:
    """Return a name of everything that decides the output, besides models that come later."""
    values = dataclasses.asdict(options) | {"checkpoint": model_id, "lists_path": None}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def hidden_dim(header: checkpoint.Header) -> int:
    """Return the hidden width of a checkpoint's model, without its weights."""
    with torch.device("meta"):
        return build_model(header.config, header.feature_map).hidden_dim
