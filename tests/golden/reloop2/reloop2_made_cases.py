"""Golden cases of other sizes, made with :mod:`reloop2_reference` in the form that README.md beside this file describes.

``python tests/golden/reloop2/reloop2_made_cases.py FOLDER`` writes a whole set; check it with
``STREAMBANK_GOLDEN=FOLDER pytest -m golden``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reloop2_reference as reference
from reloop2_reference import Array, Arrays

CLEAR = 1e-3  # of a projection, so that hashing in float32 gives the same buckets

MEMORIES: dict[str, dict[str, Any]] = {
    # Few buckets, a block of one write, several filters.
    "wide": {
        "d": 5, "L": 3, "K": 9, "n": 70, "q": 7, "k": 4, "tau": 0.3, "cap": 16, "writes_cut_at": [0, 1, 50, 70],
        "sigmas": [0.3, 0.6],
    },
    # One array, one block; as many neighbors as rows, and more than a filter leaves.
    "one": {
        "d": 30, "L": 7, "K": 1, "n": 25, "q": 3, "k": 25, "tau": 0.05, "cap": 25, "writes_cut_at": [0, 25], "sigmas": [0.4],
    },
}  # fmt: skip

ITEMS = {"item_id": 33, "cate_id": 7, "item_history": 33, "cate_history": 7}
FIELDS = {f"C{i}": 9 + 2 * i for i in range(5)}
NETWORKS: dict[str, dict[str, Any]] = {
    "dcnv2": {
        "model": "DCNv2", "embedding_dim": 3, "model_structure": "parallel", "num_cross_layers": 1,
        "parallel_dnn_hidden_units": [5, 7, 6], "dnn_activations": "relu", "batch_norm": True, "net_dropout": 0,
    },
    "deepfm": {
        "model": "DeepFM", "embedding_dim": 6, "hidden_units": [9], "hidden_activations": "relu", "batch_norm": True,
        "net_dropout": 0.2,
    },
    "fibinet": {
        "model": "FiBiNET", "embedding_dim": 5, "hidden_units": [10, 4, 3], "hidden_activations": "relu",
        "excitation_activation": "ReLU", "reduction_ratio": 2, "bilinear_type": "field_interaction", "batch_norm": False,
    },
    "din": {
        "model": "DIN", "embedding_dim": 2, "dnn_hidden_units": [6], "dnn_activations": "Dice", "attention_hidden_units": [5],
        "attention_hidden_activations": "Dice", "din_use_softmax": True, "batch_norm": False, "net_dropout": 0,
        "attention_dropout": 0, "din_target_field": ["item_id", "cate_id"],
        "din_sequence_field": ["item_history", "cate_history"],
    },
}  # fmt: skip
SDIM = {
    "model": "SDIM", "embedding_dim": 3, "dnn_hidden_units": [7], "dnn_activations": "relu", "attention_dim": 6,
    "use_qkvo": True, "num_heads": 3, "use_scale": True, "attention_dropout": 0, "reuse_hash": True, "num_hashes": 5,
    "hash_bits": 2, "short_seq_len": 3, "batch_norm": False,
}  # fmt: skip


def text(value: Mapping[str, Any]) -> Array:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def memory_case(settings: Mapping[str, Any], rng: np.random.Generator) -> Arrays:
    """Return inputs and outcome of an error memory."""
    cfg = {name: value for name, value in settings.items() if name != "sigmas"}
    planes = rng.standard_normal((cfg["K"], cfg["L"], cfg["d"])).astype(np.float32)

    def rows(number: int) -> Array:
        found: list[Array] = []
        while len(found) < number:
            row = rng.standard_normal(cfg["d"]).astype(np.float32)
            if np.abs(planes.astype(float) @ row).min() > CLEAR:
                found.append(row)
        return np.array(found)

    inputs: Arrays = {"W": planes, "H": rows(cfg["n"]), "Q": rows(cfg["q"])}
    inputs["y"] = (rng.random(cfg["n"]) < 0.4).astype(np.float32)
    inputs["y_base"], inputs["q_y_base"] = (rng.random(cfg[n]).astype(np.float32) for n in ("n", "q"))
    sigmas = settings["sigmas"]
    return {"cfg": text(cfg)} | inputs | reference.sketch(cfg, inputs) | reference.neighbors(cfg, inputs, sigmas)


class Builder:
    """Random weights under FuxiCTR's names."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.arrays = rng, {}

    def normal(self, name: str, *shape: int, std: float = 1.0) -> None:
        self.arrays[f"sd/{name}"] = (std * self.rng.standard_normal(shape)).astype(np.float32)

    def linear(self, name: str, outputs: int, inputs: int, *, bias: bool = True) -> None:
        self.normal(f"{name}.weight", outputs, inputs, std=1.2 / inputs**0.5)
        if bias:
            self.normal(f"{name}.bias", outputs, std=0.2)

    def statistics(self, name: str, width: int) -> None:
        self.normal(f"{name}.running_mean", width, std=0.3)
        self.arrays[f"sd/{name}.running_var"] = self.rng.uniform(0.5, 1.5, width).astype(np.float32)
        self.arrays[f"sd/{name}.num_batches_tracked"] = np.array(9)

    def tables(self, prefix: str, vocabulary: Mapping[str, int], width: int) -> None:
        """Add one table per feature; a history has the one of the feature of its stem."""
        for name, size in vocabulary.items():
            owner = name.replace("_history", "_id")
            if owner != name:
                self.arrays[f"sd/{prefix}{name}.weight"] = self.arrays[f"sd/{prefix}{owner}.weight"]
            else:
                self.normal(f"{prefix}{name}.weight", size, width, std=0.5)
                self.arrays[f"sd/{prefix}{name}.weight"][0] = 0  # padding

    def mlp(
        self, prefix: str, inputs: int, units: Sequence[int], *, dice: bool, norm: bool, dropout: float, output: bool
    ) -> None:
        number = 0
        for width in units:
            self.linear(f"{prefix}{number}", width, inputs)
            if norm:
                number += 1
                self.normal(f"{prefix}{number}.weight", width)
                self.normal(f"{prefix}{number}.bias", width, std=0.2)
                self.statistics(f"{prefix}{number}", width)
            number += 1
            if dice:
                self.normal(f"{prefix}{number}.alpha", width, std=0.5)
                self.statistics(f"{prefix}{number}.bn", width)
            number += 2 if dropout else 1
            inputs = width
        if output:
            self.linear(f"{prefix}{number}", 1, inputs)


def network_case(cfg: Mapping[str, Any], rng: np.random.Generator) -> Arrays:
    """Return a network, 11 rows and what it says about them; the first row has no history."""
    builder, name, width, users = Builder(rng), cfg["model"], cfg["embedding_dim"], 11
    vocabulary = ITEMS if name in ("DCNv2", "DIN") else FIELDS
    columns: Arrays = {}
    for feature, size in vocabulary.items():
        columns[feature] = rng.integers(1, size, (users, 4) if feature.endswith("_history") else users)
    length = rng.integers(0, 5, users) * (np.arange(users) > 0)
    for feature in (f for f in vocabulary if f.endswith("_history")):
        columns[feature][np.arange(4) < 4 - length[:, None]] = 0  # padded on the left
    prefix = "embedding_layer.embedding_layers." if name == "DIN" else "embedding_layer.embedding_layer.embedding_layers."
    builder.tables(prefix, vocabulary, width)
    flat, fields, dropout = len(vocabulary) * width, len(vocabulary), cfg.get("net_dropout", 0)
    common = {"norm": cfg["batch_norm"], "dropout": dropout}
    if name == "DCNv2":
        for i in range(cfg["num_cross_layers"]):
            builder.linear(f"crossnet.cross_layers.{i}", flat, flat)
        units = cfg["parallel_dnn_hidden_units"]
        builder.mlp("parallel_dnn.mlp.", flat, units, dice=False, output=False, **common)
        builder.linear("fc", 1, flat + units[-1])
    elif name == "DIN":
        plain = {"norm": False, "dropout": cfg["attention_dropout"]}
        units = cfg["attention_hidden_units"]
        builder.mlp("attention_layers.0.attention_layer.mlp.", 8 * width, units, dice=True, output=True, **plain)
        builder.mlp("dnn.mlp.", flat, cfg["dnn_hidden_units"], dice=True, output=True, **common)
    elif name == "DeepFM":
        builder.normal("fm.lr_layer.bias", 1)
        builder.tables("fm.lr_layer.embedding_layer.embedding_layer.embedding_layers.", vocabulary, 1)
        builder.mlp("mlp.mlp.", flat, cfg["hidden_units"], dice=False, output=True, **common)
    else:
        pairs = np.array(np.triu_indices(fields, 1))
        builder.linear("senet_layer.excitation.0", fields // cfg["reduction_ratio"], fields, bias=False)
        builder.linear("senet_layer.excitation.2", fields, fields // cfg["reduction_ratio"], bias=False)
        for i in (1, 2):
            builder.normal(f"bilinear_interaction{i}.bilinear_W", pairs.shape[1], width, width, std=0.5)
            builder.arrays[f"sd/bilinear_interaction{i}.triu_index"] = pairs
        builder.tables("lr_layer.embedding_layer.embedding_layer.embedding_layers.", vocabulary, 1)
        builder.mlp("dnn.mlp.", 2 * pairs.shape[1] * width, cfg["hidden_units"], dice=False, output=True, **common)
    arrays = {"cfg": text(cfg)} | {f"in/{feature}": ids for feature, ids in columns.items()} | builder.arrays
    hidden, probability = reference.network(cfg, arrays)
    return arrays | {"out/h": hidden.astype(np.float32), "out/y_base": probability.astype(np.float32)}


def interest_case(l2_norm: bool, rng: np.random.Generator) -> Arrays:
    """Return SDIM's hash over 9 users with up to 13 behaviors each; without the outputs of the whole network."""
    cfg, builder, users, entries = SDIM | {"l2_norm": l2_norm}, Builder(rng), 9, 13
    vocabulary, width = {"user_index": 12, "item_index": 40, "cate_id": 6}, SDIM["embedding_dim"]
    length = rng.integers(SDIM["short_seq_len"], entries + 1, users)
    mask = (np.arange(entries) >= entries - length[:, None]).astype(np.float32)
    columns: Arrays = {"user_index": rng.integers(1, vocabulary["user_index"], users)}
    for name in ("item_index", "cate_id"):
        columns[name] = rng.integers(1, vocabulary[name], (users, entries + 1))
        columns[name][:, :-1] *= mask.astype(int)
    builder.tables("embedding_layer.embedding_layer.embedding_layers.", vocabulary, width)
    builder.arrays["sd/powers_of_two"] = (2.0 ** np.arange(SDIM["hash_bits"])).astype(np.float32)
    builder.normal("random_rotations", 1, 2 * width, SDIM["num_hashes"], SDIM["hash_bits"])
    for part in "qkvo":
        builder.linear(f"short_attention.W_{part}", SDIM["attention_dim"], SDIM["attention_dim"], bias=False)
    flat = width + 3 * 2 * width  # user, target, long and short interest
    builder.mlp("dnn.mlp.", flat, SDIM["dnn_hidden_units"], dice=False, norm=False, dropout=0, output=True)
    arrays = {"cfg": text(cfg)} | {f"in/{name}": ids for name, ids in columns.items()} | {"in/mask": mask} | builder.arrays
    return arrays | reference.long_interest(cfg, arrays)


def write_cases(folder: Path) -> Iterator[Path]:
    """Write a whole set."""
    cases = {f"error_memory_{label}": memory_case(s, np.random.default_rng(3)) for label, s in MEMORIES.items()}
    cases |= {f"{label}_made": network_case(cfg, np.random.default_rng(4)) for label, cfg in NETWORKS.items()}
    cases |= {f"sdim_made{int(norm)}": interest_case(norm, np.random.default_rng(5)) for norm in (False, True)}
    for name, arrays in cases.items():
        np.savez(folder / f"{name}.npz", **{n: a.astype(np.float32) if n.endswith("_emb") else a for n, a in arrays.items()})
        yield folder / f"{name}.npz"


if __name__ == "__main__":
    target = Path(sys.argv[1]) / "reloop2"
    target.mkdir(parents=True, exist_ok=True)
    for path in write_cases(target):
        print(path)
