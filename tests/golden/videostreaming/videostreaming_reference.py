"""A slow reference of VideoStreaming, token by token and head by head; it shares nothing with the product or transformers.

Weights are a dict in the naming of ``state.safetensors``. What it computes is what README.md beside this file lists.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    out = x @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def layer_norm(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms_norm(w: Weights, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * w[f"{name}.weight"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotate(x: Tensor, position: int, turned: int, base: float = 10_000.0) -> Tensor:
    """Rotate the first ``turned`` channels of one head's vector."""
    out = x.clone()
    for i in range(turned // 2):
        angle = position / base ** (2 * i / turned)
        a, b = x[i], x[i + turned // 2]
        out[i], out[i + turned // 2] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return out


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, turned: float, sees: Tensor) -> Tensor:
    """Return [n, heads * d]; ``sees[i, j]``: row i may look at row j."""
    n, width = query.shape
    d = width // heads
    out = torch.zeros(n, width)
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        q, k = (torch.stack([rotate(x[i, part], i, int(d * turned)) for i in range(n)]) for x in (query, key))
        scores = (q @ k.T / math.sqrt(d)).masked_fill(~sees, -torch.inf)
        out[:, part] = torch.softmax(scores, dim=-1) @ value[:, part]
    return out


def causal(n: int) -> Tensor:
    return torch.tensor([[j <= i for j in range(n)] for i in range(n)])


def encoder(w: Weights, sizes: dict[str, Any], x: Tensor, sees: Tensor | None = None) -> Tensor:
    """Phi: attention and MLP side by side, on the same normalized input."""
    said = sizes["encoder"]
    sees = causal(len(x)) if sees is None else sees
    for i in range(said["num_hidden_layers"]):
        name = f"streaming_encoder.layers.{i}"
        y = layer_norm(w, f"{name}.input_layernorm", x)
        q, k, v = (linear(w, f"{name}.self_attn.{part}_proj", y) for part in "qkv")
        heads = attend(q, k, v, said["num_attention_heads"], said["partial_rotary_factor"], sees)
        mlp = linear(w, f"{name}.mlp.fc2", gelu_tanh(linear(w, f"{name}.mlp.fc1", y)))
        x = x + linear(w, f"{name}.self_attn.dense", heads) + mlp
    return layer_norm(w, "streaming_encoder.final_layernorm", x) if sizes["final_norm"] else x


def answering_logits(w: Weights, sizes: dict[str, Any], x: Tensor) -> Tensor:
    """Llama, last position."""
    said, name = sizes["llm"], "language_model.model"
    for i in range(said["num_hidden_layers"]):
        y = rms_norm(w, f"{name}.layers.{i}.input_layernorm", x)
        q, k, v = (linear(w, f"{name}.layers.{i}.self_attn.{part}_proj", y) for part in "qkv")
        heads = attend(q, k, v, said["num_attention_heads"], 1.0, causal(len(x)))
        x = x + linear(w, f"{name}.layers.{i}.self_attn.o_proj", heads)
        y = rms_norm(w, f"{name}.layers.{i}.post_attention_layernorm", x)
        gate = linear(w, f"{name}.layers.{i}.mlp.gate_proj", y)
        up = linear(w, f"{name}.layers.{i}.mlp.up_proj", y)
        x = x + linear(w, f"{name}.layers.{i}.mlp.down_proj", gate / (1 + torch.exp(-gate)) * up)
    return linear(w, "language_model.lm_head", rms_norm(w, f"{name}.norm", x[-1]))


def project(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.2", gelu(linear(w, f"{name}.0", x)))


def summaries(frame: Tensor, count: int) -> Tensor:
    """Average the square grid of one frame [N, C] to ``count`` cells, cells of unequal size where it does not divide."""
    side, target = math.isqrt(len(frame)), math.isqrt(count)
    grid = frame.reshape(side, side, -1)
    cells = []
    for r in range(target):
        for c in range(target):
            rows = range(r * side // target, -(-(r + 1) * side // target))
            columns = range(c * side // target, -(-(c + 1) * side // target))
            cells.append(torch.stack([grid[a, b] for a in rows for b in columns]).mean(0))
    return torch.stack(cells)


def replay(w: Weights, sizes: dict[str, Any], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute every output of a case from its inputs."""
    out: dict[str, Tensor] = {}
    embed = w["streaming_encoder.embed_tokens.weight"]
    memory, memories, indicators, lengths = None, [], [], []
    for k, features in enumerate(given["clip_features"]):
        pooled = torch.cat([summaries(frame, sizes["P"]) for frame in features])
        everything = torch.stack([token for frame in features for token in frame])
        parts = [embed[[i for i in given["time_ids"][k].tolist() if i >= 0]]]
        parts += [] if memory is None else [memory]
        parts += [project(w, "mm_projector", x) for x in (everything, pooled, everything.mean(0, keepdim=True))]
        x = torch.cat(parts)
        y = encoder(w, sizes, x)
        memory = y[-1 - len(pooled) : -1]
        memories.append(memory)
        indicators.append(y[-1])
        lengths.append(len(x))
    out["memory"], out["clip_indicator"] = torch.stack(memories), torch.stack(indicators)
    out["seq_len"] = torch.tensor(lengths)
    assert memory is not None
    asked = encoder(w, sizes, torch.cat((memory, embed[given["question_ids"]])))[-1]
    out["question_indicator"] = asked
    out["similarity"] = torch.stack([asked @ one / (asked.norm() * one.norm()) for one in indicators])
    ranked = sorted(range(len(memories)), key=lambda k: (-float(out["similarity"][k]), -k))
    chosen = sorted(ranked[: sizes["V"]])
    out["selected"] = torch.tensor(chosen)
    words = w["language_model.model.embed_tokens.weight"]
    parts = [words[given["prefix_ids"]]]
    for k in chosen:
        parts += [words[given["selected_time_ids"][k]], project(w, "memory_projector", memories[k])]
    out["llm_last_logits"] = answering_logits(w, sizes, torch.cat([*parts, words[given["question_ids"]]]))

    exponents = torch.exp((out["similarity"] + given["gumbel"]) / sizes["tau"])
    out["gumbel_soft"] = exponents / exponents.sum()
    best = sorted(range(len(memories)), key=lambda k: -float(exponents[k]))[: sizes["V"]]
    out["gumbel_hard"] = torch.tensor([float(k in best) for k in range(len(memories))])
    relevant = given["relevant"].tolist()
    weights = torch.exp(out["similarity"] / sizes["tau"])
    shares = weights / weights.sum()
    out["kl"] = sum(math.log(1 / len(relevant) / float(shares[k])) / len(relevant) for k in relevant) * torch.ones(())

    first = given["clip_features"][0]
    pooled = torch.cat([summaries(frame, sizes["P"]) for frame in first])
    text = embed[given["prefix_text_ids"]]
    frames, n = first.shape[0] * first.shape[1], first.shape[0] * first.shape[1] + len(pooled) + len(text)
    sees = causal(n)
    for i in range(n - len(text), n):
        for j in range(frames):
            sees[i, j] = False
    out["prefix_mask"] = sees
    x = torch.cat((project(w, "mm_projector", torch.cat((first.flatten(0, 1), pooled))), text))
    out["prefix_hidden"] = encoder(w, sizes, x, sees)
    return out


INPUTS = (
    "clip_features", "time_ids", "question_ids", "prefix_ids", "selected_time_ids", "gumbel", "relevant", "prefix_text_ids",
)  # fmt: skip
