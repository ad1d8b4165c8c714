"""Golden cases of other sizes, made with :mod:`videostreaming_reference` in the form of README.md beside this file.

Draws whose outcome hangs on rounding are skipped. ``python tests/golden/videostreaming/videostreaming_made_cases.py FOLDER``
writes a whole set; check it with ``STREAMBANK_GOLDEN=FOLDER pytest -m golden``.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from videostreaming_reference import INPUTS, replay

MARGIN = 2e-3  # between a selected similarity and one that is not; float32 errs by less than a hundredth of it

# What is unlike the published sizes (2 frames of 16 tokens, 4 summaries, 5 clips, 2 selected, 2 layers, 4 heads).
SETTINGS: dict[str, dict[str, Any]] = {
    # One summary per frame, more clips to select than there are, one head, all channels turned.
    "few": {
        "encoder": {"vocab_size": 17, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1,
                    "num_attention_heads": 1, "max_position_embeddings": 256, "partial_rotary_factor": 1.0},
        "llm": {"vocab_size": 23, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 256},
        "T": 1, "N": 4, "P": 1, "K": 2, "V": 4, "C": 10, "tau": 1.0, "final_norm": True,
    },
    # A grid of 5x5 pooled to 2x2 with cells that overlap, three frames, no last norm, a wide encoder before a narrow model.
    "odd": {
        "encoder": {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 18, "num_hidden_layers": 3,
                    "num_attention_heads": 3, "max_position_embeddings": 256, "partial_rotary_factor": 0.5},
        "llm": {"vocab_size": 19, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2,
                "num_attention_heads": 3, "max_position_embeddings": 256},
        "T": 3, "N": 25, "P": 4, "K": 7, "V": 3, "C": 9, "tau": 0.3, "final_norm": False,
    },
}  # fmt: skip


def weights(sizes: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Return random weights."""
    out: dict[str, Tensor] = {}

    def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> None:
        out[f"{name}.weight"] = 1.3 * torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        if bias:
            out[f"{name}.bias"] = 0.2 * torch.randn(outputs, generator=generator)

    def norm(name: str, width: int, *, bias: bool) -> None:
        out[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        if bias:
            out[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    small, large = sizes["encoder"], sizes["llm"]
    inner, outer = small["hidden_size"], large["hidden_size"]
    linear("mm_projector.0", inner, sizes["C"])
    linear("mm_projector.2", inner, inner)
    linear("memory_projector.0", outer, inner)
    linear("memory_projector.2", outer, outer)
    out["streaming_encoder.embed_tokens.weight"] = torch.randn(small["vocab_size"], inner, generator=generator)
    for i in range(small["num_hidden_layers"]):
        name = f"streaming_encoder.layers.{i}"
        norm(f"{name}.input_layernorm", inner, bias=True)
        for part in ("q_proj", "k_proj", "v_proj", "dense"):
            linear(f"{name}.self_attn.{part}", inner, inner)
        linear(f"{name}.mlp.fc1", small["intermediate_size"], inner)
        linear(f"{name}.mlp.fc2", inner, small["intermediate_size"])
    norm("streaming_encoder.final_layernorm", inner, bias=True)
    out["language_model.model.embed_tokens.weight"] = torch.randn(large["vocab_size"], outer, generator=generator)
    for i in range(large["num_hidden_layers"]):
        name = f"language_model.model.layers.{i}"
        norm(f"{name}.input_layernorm", outer, bias=False)
        norm(f"{name}.post_attention_layernorm", outer, bias=False)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear(f"{name}.self_attn.{part}", outer, outer, bias=False)
        for part in ("gate_proj", "up_proj"):
            linear(f"{name}.mlp.{part}", large["intermediate_size"], outer, bias=False)
        linear(f"{name}.mlp.down_proj", outer, large["intermediate_size"], bias=False)
    norm("language_model.model.norm", outer, bias=False)
    linear("language_model.lm_head", large["vocab_size"], outer, bias=False)
    return out


def inputs(sizes: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Return random inputs."""

    def ids(*shape: int) -> Tensor:
        least = min(sizes["encoder"]["vocab_size"], sizes["llm"]["vocab_size"])
        return torch.randint(0, least, shape, generator=generator)

    clips = sizes["K"]
    time_ids = ids(clips, 6)
    time_ids[0, 3:] = -1
    uniform = torch.rand(clips, generator=generator).clamp(1e-6, 1 - 1e-6)
    relevant = torch.randperm(clips, generator=generator)[: max(clips // 3, 1)].sort().values
    return {
        "clip_features": torch.randn(clips, sizes["T"], sizes["N"], sizes["C"], generator=generator),
        "time_ids": time_ids,
        "question_ids": ids(5),
        "prefix_ids": ids(3),
        "selected_time_ids": ids(clips, 2),
        "gumbel": -torch.log(-torch.log(uniform)),
        "relevant": relevant,
        "prefix_text_ids": ids(4),
    }


def write_case(folder: Path, label: str) -> Path:
    """Write a case whose selections do not hang on rounding; return the path of its arrays."""
    sizes = SETTINGS[label]
    for seed in count():
        generator = torch.Generator().manual_seed(seed)
        w, given = weights(sizes, generator), inputs(sizes, generator)
        with torch.no_grad():
            out = replay(w, sizes, given)
        noisy = out["similarity"] + given["gumbel"]
        if all(_clear(scores, sizes["V"]) for scores in (out["similarity"], noisy)):
            break
    assert set(given) == set(INPUTS)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"case_{label}.npz", **{name: tensor.numpy() for name, tensor in (given | out).items()})
    (folder / f"config_{label}.json").write_text(json.dumps(sizes))
    save_file(w, folder / f"state_{label}.safetensors")
    return folder / f"case_{label}.npz"


def _clear(scores_K: Tensor, count: int) -> bool:
    ordered = scores_K.sort(descending=True).values
    return count >= len(ordered) or float(ordered[count - 1] - ordered[count]) > MARGIN


if __name__ == "__main__":
    for name in SETTINGS:
        print(write_case(Path(sys.argv[1]) / "videostreaming", name))
