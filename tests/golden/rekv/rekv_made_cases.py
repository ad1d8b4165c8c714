"""Golden cases of other sizes, made with :mod:`rekv_reference` in the form that README.md beside this file describes.

Seeds whose outcome hangs on rounding are skipped. ``python tests/golden/rekv/rekv_made_cases.py FOLDER`` writes a whole set;
check it with ``STREAMBANK_GOLDEN=FOLDER pytest -m golden``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rekv_reference import PROJECTOR, TEXT, VISION, Model, TooClose, replay
from safetensors.torch import save_file
from torch import Tensor

MARGIN = 2e-3  # of scores and logits; float32 errs by less than a hundredth of it

Event = tuple[Any, ...]
Tensors = dict[str, Tensor]


def video(frames: int) -> Event:
    return ("video", frames)


def ask(question: int, prompt: int, new: int, external: list[int] | None = None) -> Event:
    """Return a question of so many tokens, a prompt of so many, and the most tokens of the answer."""
    return ("ask", question, prompt, new, external)


# What is unlike the published sizes (4 heads in 2 groups of 8 channels, 16 tokens per frame, 3 layers, 97 words).
SETTINGS: dict[str, dict[str, Any]] = {
    # Three heads per group, chunks of three with a short last one, an odd grid of patches, one sink, two layers.
    "odd": {
        "layers": 2, "heads": 6, "groups": 2, "width": 6, "mlp": 20, "words": 53, "theta": 500.0,
        "vision": (2, 1, 10, 14), "image": 20, "patch": 4, "window": 61, "sinks": 1, "topk": 6, "chunk": 3,
        "events": [video(4), ask(1, 3, 5), video(4), ask(3, 7, 12), video(5), ask(2, 2, 6), ask(2, 5, 3, [0, 12])],
    },
    # A frame is one token; the window holds just the retrieved frames, and just the prefix.
    "narrow": {
        "layers": 1, "heads": 1, "groups": 1, "width": 8, "mlp": 9, "words": 11, "theta": 1e5,
        "vision": (1, 3, 12, 8), "image": 16, "patch": 8, "window": 7, "sinks": 7, "topk": 7, "chunk": 1,
        "events": [video(2), ask(2, 2, 4), video(11), ask(3, 6, 9), video(1), ask(1, 1, 2, [3])],
    },
    # Every head its own keys; all groups but one are chosen; the window's edge ends inside the prefix, whose sinks count twice.
    "even": {
        "layers": 4, "heads": 3, "groups": 3, "width": 4, "mlp": 16, "words": 30, "theta": 1e4,
        "vision": (1, 2, 8, 6), "image": 12, "patch": 4, "window": 42, "sinks": 3, "topk": 8, "chunk": 2,
        "events": [video(1), ask(2, 4, 1), video(9), ask(4, 9, 20), ask(2, 3, 4, list(range(8)))],
    },
}  # fmt: skip


def weights(settings: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Return random weights in the published naming."""
    out: dict[str, Tensor] = {}

    def normal(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        out[name] = mean + std * torch.randn(*shape, generator=generator)

    def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> None:
        normal(name + ".weight", outputs, inputs, std=1.2 / inputs**0.5)
        if bias:
            normal(name + ".bias", outputs, std=0.3)

    def norm(name: str, channels: int) -> None:
        normal(name + ".weight", channels, std=0.1, mean=1.0)
        normal(name + ".bias", channels, std=0.1)

    hidden, key_rows = settings["heads"] * settings["width"], settings["groups"] * settings["width"]
    normal("image_newline", hidden, std=1.0)
    normal("language_model.lm_head.weight", settings["words"], hidden, std=1.0 / hidden**0.5)
    normal(TEXT + "embed_tokens.weight", settings["words"], hidden, std=1.0)
    normal(TEXT + "norm.weight", hidden, std=0.1, mean=1.0)
    for i in range(settings["layers"]):
        name = f"{TEXT}layers.{i}."
        for part in ("input_layernorm", "post_attention_layernorm"):
            normal(f"{name}{part}.weight", hidden, std=0.1, mean=1.0)
        for part, rows in (("q", hidden), ("k", key_rows), ("v", key_rows)):
            linear(f"{name}self_attn.{part}_proj", rows, hidden)
        linear(name + "self_attn.o_proj", hidden, hidden, bias=False)
        for part, rows, columns in (
            ("gate", settings["mlp"], hidden),
            ("up", settings["mlp"], hidden),
            ("down", hidden, settings["mlp"]),
        ):
            linear(f"{name}mlp.{part}_proj", rows, columns, bias=False)
    layers, _, width, mlp = settings["vision"]
    patch, side = settings["patch"], settings["image"] // settings["patch"]
    normal(VISION + "embeddings.patch_embedding.weight", width, 3, patch, patch, std=1.0 / patch)
    normal(VISION + "embeddings.patch_embedding.bias", width, std=0.3)
    normal(VISION + "embeddings.position_embedding.weight", side * side, width, std=0.5)
    for i in range(layers):
        name = f"{VISION}encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{name}self_attn.{part}", width, width)
        linear(name + "mlp.fc1", mlp, width)
        linear(name + "mlp.fc2", width, mlp)
        norm(name + "layer_norm1", width)
        norm(name + "layer_norm2", width)
    norm(VISION + "post_layernorm", width)
    linear(PROJECTOR + "linear_1", hidden, width)
    linear(PROJECTOR + "linear_2", hidden, hidden)
    return out


def config_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's configuration under its published names."""
    layers, heads, width, mlp = settings["vision"]
    text = {
        "vocab_size": settings["words"],
        "hidden_size": settings["heads"] * settings["width"],
        "intermediate_size": settings["mlp"],
        "num_hidden_layers": settings["layers"],
        "num_attention_heads": settings["heads"],
        "num_key_value_heads": settings["groups"],
        "rope_theta": settings["theta"],
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": settings["image"],
        "patch_size": settings["patch"],
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    }
    return {
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_token_index": settings["words"] - 2,
        "video_token_index": settings["words"] - 1,
        "projector_hidden_act": "gelu",
    }


def case(settings: Mapping[str, Any], generator: torch.Generator) -> tuple[dict[str, Any], Tensors, Tensors]:
    """Return the JSON of a case, its weights, and its inputs and outputs."""
    config, sinks, window = config_of(settings), settings["sinks"], settings["window"]
    tokens = (-(-(settings["image"] // settings["patch"]) // 2)) ** 2
    rekv = {"n_local": window, "n_init": sinks, "tokens_per_frame": tokens} | {n: settings[n] for n in ("topk", "chunk")}

    def ids(number: int) -> Tensor:
        return torch.randint(2, settings["words"] - 2, (number,), generator=generator)

    inputs, events, frames = {"init_ids": ids(sinks)[None]}, [], 0
    for i, (kind, number, *rest) in enumerate(settings["events"]):
        if kind == "video":
            shape = (number, settings["image"], settings["image"], 3)
            inputs[f"e{i}.frames"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            frames += number
            length = sinks + frames * tokens
            full = length > window
            state = {"init_exc": full, "num_global_block": frames if full else 0, "local_len": min(length, window)}
            state |= {"init_len": sinks if full else 0, "remainder_len": 0 if full else length}
            events.append({"type": "video", "n_frames": number, "frames_seen": frames, "length": length} | state)
        else:
            prompt, new, external = rest
            inputs[f"e{i}.question_ids"], inputs[f"e{i}.prompt_ids"] = ids(number), ids(prompt)
            events.append({"type": "ask", "q_len": number, "prompt_len": prompt, "max_new": new, "external": external})
    state = weights(settings, generator)
    outputs = replay(Model(state, config, rekv, MARGIN), events, inputs)
    io = inputs | {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in outputs.items()}
    return {"events": events, "config": config, "rekv": rekv}, state, io


def write_case(folder: Path, label: str, seed: int = 0, tries: int = 100) -> Path:
    """Write the three files of one entry of ``SETTINGS``, of the first seed whose choices do not hang on rounding."""
    reasons: Counter[str] = Counter()
    for attempt in range(tries):
        try:
            told, state, io = case(SETTINGS[label], torch.Generator().manual_seed(1000 * seed + attempt))
        except TooClose as reason:
            reasons[str(reason)] += 1
            continue
        path = folder / f"{label}.json"
        path.write_text(json.dumps(told))
        save_file({name: tensor.contiguous() for name, tensor in io.items()}, path.with_suffix(".io.safetensors"))
        save_file(state, path.with_suffix(".weights.safetensors"))
        return path
    raise RuntimeError(f"none of {tries} seeds from {1000 * seed} is decided: {dict(reasons)}; choose other sizes")


if __name__ == "__main__":
    target = Path(sys.argv[1]) / "rekv"
    target.mkdir(parents=True, exist_ok=True)
    for name in SETTINGS:
        print(write_case(target, name))
