"""Causal cases of other sizes in the form of README.md, made by the slow reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prompttpp_reference import causal_vectors
from safetensors.torch import save_file


def make_case(folder: Path, seed: int) -> Path:
    """Write ``made_*`` files and return the npz."""
    rng = np.random.default_rng(seed)
    pick = lambda low, high: int(rng.integers(low, high))  # noqa: E731
    pool = pick(2, 6)
    config: dict[str, Any] = {
        "case": "made",
        "num_event_types": pick(1, 5),
        "num_heads": pick(1, 4),
        "num_layers": pick(1, 4),
        "hidden_size": pick(2, 7),
        "time_emb_size": 2 * pick(1, 4),
        "pool_size": pool,
        "top_k": pick(1, pool + 1),
        "prompt_length": pick(1, 4),
        "loss_integral_num_sample_per_step": pick(2, 6),
        "seq_lens": [pick(3, 8), pick(3, 8)],
    }
    types, hidden, token = config["num_event_types"], config["hidden_size"], config["hidden_size"] + config["time_emb_size"]
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    state = {"layer_type_emb.weight": draw(types + 1, hidden), "layer_event_emb.weight": draw(hidden, token)}
    for h in range(config["num_heads"]):
        for layer in range(config["num_layers"]):
            name = f"heads.{h}.{layer}.self_attn."
            for i in range(3):
                state |= {f"{name}linears.{i}.weight": draw(hidden, token), f"{name}linears.{i}.bias": draw(hidden)}
            for side in "kv":
                state[f"{name}prompt_pool_{side}.prompt_key"] = draw(pool, token)
                state[f"{name}prompt_pool_{side}.type_prompt"] = draw(pool, config["prompt_length"], hidden)
                state[f"{name}prompt_pool_{side}.prompt"] = state[f"{name}prompt_pool_{side}.type_prompt"]
    state["layer_intensity.0.weight"] = draw(types, config["num_heads"] * hidden)
    state["layer_intensity.0.bias"] = draw(types)
    config["saved_keys"] = sorted(state)
    longest = max(config["seq_lens"])
    arrays = {
        "time_seq": np.full((2, longest), types, np.float32),
        "event_seq": np.full((2, longest), types, np.int64),
        "non_pad_mask": np.zeros((2, longest), bool),
    }
    total = []
    for row, n in enumerate(config["seq_lens"]):
        times = np.concatenate([[0], rng.exponential(1.0, n - 1).cumsum()]).astype(np.float32)
        kinds = rng.integers(0, types, n)
        arrays["time_seq"][row, :n], arrays["event_seq"][row, :n], arrays["non_pad_mask"][row, :n] = times, kinds, True
        found = causal_vectors(state, config, times.astype(np.float64), kinds, row)
        total.append((found[f"causal.{row}.event_ll"] - found[f"causal.{row}.integral_trapezoid"]).sum())
        arrays |= found
    arrays["causal.loglik_per_sequence"] = np.array(total)
    save_file({name: torch.from_numpy(array.copy()) for name, array in state.items()}, folder / "made_state.safetensors")
    (folder / "made_config.json").write_text(json.dumps(config))
    path = folder / "made_io.npz"
    np.savez(path, **arrays)
    return path
