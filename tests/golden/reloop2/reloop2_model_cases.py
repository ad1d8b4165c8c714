"""What the golden files of the click-through-rate networks have in common: kinds, features and networks from their content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.reloop2.base import CtrModel
from models.reloop2.checkpoint import official_state
from models.reloop2.config import CtrConfig, from_fuxictr
from models.reloop2.feature_map import Feature, FeatureMap
from models.reloop2.model import build_model

TOLERANCE = 1e-5  # the README's: absolute on y_base, relative to the largest entry on the rest

NETWORK = ("cfg", r"in/.*", r"sd/.*", "out/h", "out/y_base")
HASHED = ("cfg", r"in/.*", r"sd/random_rotations", "out/lsh_attention")
KEYS = (r"(DCNv2|DIN)_\w+",)
ERROR_MEMORY = ("cfg", "W", "H", "y_base")

KINDS = [(".npz", NETWORK), (".npz", HASHED), (".npz", ERROR_MEMORY), (".json", KEYS)]


def settings(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the experiment's settings under FuxiCTR's names."""
    return json.loads(arrays["cfg"].tobytes())


def state(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the recorded state dict."""
    return {name.removeprefix("sd/"): torch.from_numpy(array) for name, array in arrays.items() if name.startswith("sd/")}


def inputs(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the columns. SDIM's come with the target as the last entry of its history: it is cut off here."""
    columns = {name.removeprefix("in/"): torch.from_numpy(array) for name, array in arrays.items() if name.startswith("in/")}
    if columns.pop("mask", None) is None:
        return columns
    cut = {}
    for name, column in columns.items():
        cut[name] = column if column.ndim == 1 else column[:, -1]
        if column.ndim == 2:
            cut[f"{name}_history"] = column[:, :-1]
    return cut


def feature_map(weights: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> FeatureMap:
    """Return the features of these columns; histories share the table they repeat, or that of the same stem."""
    tables = {}
    for name, weight in weights.items():
        parts = name.split(".")
        if "embedding_layers" in parts and "lr_layer" not in parts:
            tables[parts[-2]] = weight
    features = []
    for name, column in columns.items():
        if column.ndim == 1:
            features.append(Feature(name=name, vocab_size=len(tables[name])))
            continue
        targets = [f.name for f in features if f.kind == "categorical"]
        if name in tables:
            owner = next(target for target in targets if torch.equal(tables[target], tables[name]))
        else:
            owner = name.removesuffix("_history")
        features.append(
            Feature(
                name=name,
                kind="sequence",
                vocab_size=len(tables[owner]),
                share_embedding=owner,
                max_len=column.shape[1],
            )
        )
    return FeatureMap(tuple(features))


def config(arrays: Mapping[str, np.ndarray]) -> CtrConfig:
    """Return the network's config. JSON has turned tuples of field names (one group of DIN) into lists."""
    params = settings(arrays)
    if params["model"] == "DIN" and "sd/attention_layers.1.attention_layer.mlp.0.weight" not in arrays:
        params |= {key: tuple(params[key]) for key in ("din_target_field", "din_sequence_field")}
    own: dict[str, Any] = {}
    if params["model"] == "SDIM":
        targets = [name.removeprefix("in/") for name, array in arrays.items() if name.startswith("in/") and array.ndim == 2]
        targets.remove("mask")
        own = {"target_fields": tuple(targets), "sequence_fields": tuple(f"{name}_history" for name in targets)}
    return from_fuxictr(params, **own)


def network(arrays: Mapping[str, np.ndarray]) -> CtrModel:
    """Return the network with the recorded weights."""
    weights = state(arrays)
    model = build_model(config(arrays), feature_map(weights, inputs(arrays)))
    model.load_state_dict(official_state(model, weights, "golden"), strict=False)
    return model


def assert_close(found: Tensor, wanted: np.ndarray, what: str, *, scale: float | None = None) -> None:
    """Compare with the tolerance, which is relative to the largest wanted entry unless ``scale`` is given."""
    largest = float(np.abs(wanted).max()) if scale is None else scale
    difference = np.abs(found.detach().numpy() - wanted).max()
    assert difference <= TOLERANCE * largest, f"{what}: off by {difference:.2e} at a scale of {largest:.3g}"


def config_of_shapes(name: str, shapes: Mapping[str, list[int]]) -> tuple[CtrConfig, FeatureMap]:
    """Return the config and features that the names and shapes of a full-size state dict tell."""
    network_name = name.split("_")[0]
    tables = {key.split(".")[-2]: shape for key, shape in shapes.items() if "embedding_layers" in key}
    items = [f for f in tables if not f.endswith("_history")]
    features = tuple(
        Feature(name=f, vocab_size=shape[0])
        if f in items
        else Feature(
            name=f,
            kind="sequence",
            vocab_size=shape[0],
            max_len=1,
            share_embedding=next(i for i in items if i.split("_")[0] == f.split("_")[0]),
        )
        for f, shape in tables.items()
    )

    params: dict[str, Any] = {"model": network_name, "embedding_dim": next(iter(tables.values()))[1]}
    if network_name == "DCNv2":
        mlp = _mlp("parallel_dnn.mlp.", shapes, output=False)
        params |= {
            "model_structure": "parallel",
            "num_cross_layers": sum(key.startswith("crossnet.") and key.endswith(".bias") for key in shapes),
            "parallel_dnn_hidden_units": mlp["units"],
        }
    else:
        mlp = _mlp("dnn.mlp.", shapes, output=True)
        attention = _mlp("attention_layers.0.attention_layer.mlp.", shapes, output=True)
        params |= {
            "dnn_hidden_units": mlp["units"],
            "attention_hidden_units": attention["units"],
            "attention_hidden_activations": attention["activation"],
            "attention_dropout": attention["dropout"],
            "din_target_field": tuple(items),
            "din_sequence_field": tuple(f for f in tables if f not in items),
        }
    params |= {"dnn_activations": mlp["activation"], "batch_norm": mlp["batch_norm"], "net_dropout": mlp["dropout"]}
    return from_fuxictr(params), FeatureMap(features)


def _mlp(prefix: str, shapes: Mapping[str, list[int]], *, output: bool) -> dict[str, Any]:
    """Return what names and shapes tell about an MLP: per layer Linear, maybe BatchNorm, activation, maybe dropout."""
    own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    linears = sorted(int(key.split(".")[0]) for key, shape in own.items() if len(shape) == 2)
    batch_norm = f"{linears[0] + 1}.running_mean" in own
    units = [own[f"{number}.weight"][0] for number in linears]
    return {
        "units": units[:-1] if output else units,
        "batch_norm": batch_norm,
        "activation": "Dice" if any(key.endswith("alpha") for key in own) else "ReLU",
        "dropout": 0.1 if linears[1] - linears[0] == 3 + batch_norm else 0.0,
    }
