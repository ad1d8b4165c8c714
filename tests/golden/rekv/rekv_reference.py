"""What the published code of ReKV does around a LLaVA-OneVision model, written out slowly: float64, token by token.

Written from the description of the vectors (README.md beside this file) and of the method; it shares nothing with ``models`` or
``operators``, and nothing with transformers. Its own test compares it with the published vectors, so that cases of other sizes
made with it can judge the product. With ``margin`` above 0, :class:`TooClose` is raised where a choice hangs by less.
"""

# L layers, H query heads, G key/value heads, D head dim, S sinks, W window tokens, T tokens per frame, N frames, n tokens

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TEXT, VISION, PROJECTOR = "language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."
END = 1  # end of sequence

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class TooClose(Exception):
    """A choice of this case depends on rounding; make another one."""


@dataclass
class Model:
    """Weights in the published naming, ``config`` and ``rekv`` of a case."""

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]
    rekv: Mapping[str, Any]
    margin: float = 0.0

    def __post_init__(self) -> None:
        self.weights = {name: tensor.double() for name, tensor in self.weights.items()}
        text = self.config["text_config"]
        self.layers, self.heads, self.groups = (
            text[f"num_{n}"] for n in ("hidden_layers", "attention_heads", "key_value_heads")
        )
        self.width = text["hidden_size"] // self.heads
        self.theta, self.eps = text["rope_theta"], text["rms_norm_eps"]

    def decided(self, two: Tensor, what: str) -> None:
        if self.margin and len(two) == 2 and float(two[0] - two[1]) < self.margin:
            raise TooClose(what)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.weights[name + ".weight"].T
        return y + self.weights[name + ".bias"] if name + ".bias" in self.weights else y

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        eps = self.config["vision_config"]["layer_norm_eps"]
        return F.layer_norm(x, x.shape[-1:], self.weights[name + ".weight"], self.weights[name + ".bias"], eps)

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weights[name + ".weight"]

    def rotate(self, x: Tensor, angle: Sequence[int]) -> Tensor:
        """Rotate [heads, n, D] by positions [n]."""
        half = self.width // 2
        frequency = self.theta ** (-torch.arange(half).double() / half)
        phase = torch.tensor(angle, dtype=torch.float64)[:, None] * frequency
        cos, sin = phase.cos(), phase.sin()
        low, high = x[..., :half], x[..., half:]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def frame_tokens(model: Model, frames: Tensor) -> Tensor:
    """Return the tokens [N·T, C] of frames [N, h, w, 3] uint8."""
    settings, out = model.config["vision_config"], []
    heads, patch = settings["num_attention_heads"], settings["patch_size"]
    for frame in frames:
        image = (frame.double() / 255 - 0.5) / 0.5
        name = VISION + "embeddings."
        kernel, bias = (model.weights[name + "patch_embedding." + part] for part in ("weight", "bias"))
        x = F.conv2d(image.permute(2, 0, 1)[None], kernel, bias, stride=patch)
        side = x.shape[-1]
        x = x[0].flatten(1).T + model.weights[name + "position_embedding.weight"]
        for layer in range(settings["num_hidden_layers"]):
            name = f"{VISION}encoder.layers.{layer}."
            y = model.layer_norm(name + "layer_norm1", x)
            query, key, value = (model.linear(f"{name}self_attn.{p}_proj", y) for p in "qkv")
            parts = []
            for q, k, v in zip(*(t.chunk(heads, dim=1) for t in (query, key, value)), strict=True):
                parts.append((q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v)
            x = x + model.linear(name + "self_attn.out_proj", torch.cat(parts, dim=1))
            y = F.gelu(model.linear(name + "mlp.fc1", model.layer_norm(name + "layer_norm2", x)), approximate="tanh")
            x = x + model.linear(name + "mlp.fc2", y)
        x = model.linear(PROJECTOR + "linear_2", F.gelu(model.linear(PROJECTOR + "linear_1", x)))
        grid = x.T.reshape(1, -1, side, side)
        pooled = F.interpolate(grid, size=(-(-side // 2),) * 2, mode="bilinear", align_corners=False)
        out.append(pooled[0].flatten(1).T)
    return torch.cat(out)


def decode(model: Model, x: Tensor, attend: Attend) -> Tensor:
    """Run the decoder over embeddings [n, C]; ``attend(layer, q, k, v)`` gets raw heads [H or G, n, D], gives [H, n, D]."""
    for layer in range(model.layers):
        name = f"{TEXT}layers.{layer}."
        y = model.rms_norm(name + "input_layernorm", x)
        flat = [model.linear(f"{name}self_attn.{p}_proj", y) for p in "qkv"]
        query, key, value = (part.unflatten(1, (-1, model.width)).transpose(0, 1) for part in flat)
        mixed = attend(layer, query, key, value)
        x = x + model.linear(name + "self_attn.o_proj", mixed.transpose(0, 1).flatten(1))
        y = model.rms_norm(name + "post_attention_layernorm", x)
        y = F.silu(model.linear(name + "mlp.gate_proj", y)) * model.linear(name + "mlp.up_proj", y)
        x = x + model.linear(name + "mlp.down_proj", y)
    return model.rms_norm(TEXT + "norm", x)


def embed(model: Model, ids: Tensor) -> Tensor:
    return model.weights[TEXT + "embed_tokens.weight"][ids]


def logits(model: Model, hidden: Tensor) -> Tensor:
    return hidden @ model.weights["language_model.lm_head.weight"].T


def best_token(model: Model, hidden: Tensor) -> int:
    """Return the greedy token after one hidden state [1, C]."""
    best = logits(model, hidden)[0].topk(2)
    model.decided(best.values, "tokens")
    return int(best.indices[0])


def mix(model: Model, query: Tensor, keys: Tensor, values: Tensor, start: int, sinks: Callable[[int], int]) -> Tensor:
    """Return the attention [H, n, D] of queries at positions start.. over all keys and values [G, m, D].

    The query at position i sees the ``n_local`` positions up to its own at their true distance and the first ``sinks(i)`` ones
    un-rotated, as if all were ``n_local - 1`` away; one softmax over both.
    """
    window, repeat = model.rekv["n_local"], model.heads // model.groups
    turned, own = model.rotate(keys, range(keys.shape[1])), model.rotate(query, range(start, start + query.shape[1]))
    far = model.rotate(query, [window - 1] * query.shape[1])
    out = torch.empty_like(query)
    for n in range(query.shape[1]):
        near, first = slice(max(start + n - window + 1, 0), start + n + 1), slice(sinks(start + n))
        for h in range(model.heads):
            g = h // repeat
            score = torch.cat([turned[g, near] @ own[h, n], keys[g, first] @ far[h, n]]) / math.sqrt(model.width)
            out[h, n] = score.softmax(0) @ torch.cat([values[g, near], values[g, first]])
    return out


def join(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old, new], dim=1)


@dataclass
class Stream:
    """Raw keys and values [G, n, D] per layer of all tokens so far; token 0 is the first of the prefix."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0
    frames: int = 0


def new_stream(model: Model) -> Stream:
    empty = torch.zeros(model.groups, 0, model.width, dtype=torch.float64)
    return Stream([empty] * model.layers, [empty] * model.layers)


def encode_step(model: Model, stream: Stream, x: Tensor) -> Tensor:
    """Encode one step (the prefix, or one frame) and append its keys and values."""
    window, sinks = model.rekv["n_local"], model.rekv["n_init"]
    start, end = stream.length, stream.length + len(x)
    exposed = min(max(end - window, 0), sinks)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        stream.keys[layer], stream.values[layer] = join(stream.keys[layer], key), join(stream.values[layer], value)
        return mix(model, query, stream.keys[layer], stream.values[layer], start, lambda i: exposed)

    hidden = decode(model, x, attend)
    stream.length = end
    return hidden


@dataclass
class Context:
    """What a question sees: per layer raw keys and values [G, n, D], and which frames they are of."""

    keys: list[Tensor]
    values: list[Tensor]
    frames: list[list[int]] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)


def choose(model: Model, score: Tensor, number: int) -> list[int]:
    """Return the retrieved frames, ascending: the best groups of ``chunk`` frames."""
    chunk, most = model.rekv["chunk"], model.rekv["topk"]
    if number <= most:
        return list(range(number))
    groups = torch.stack([score[i : i + chunk].mean() for i in range(0, number, chunk)])
    ranked, order = groups.sort(descending=True)
    model.decided(ranked[most // chunk - 1 : most // chunk + 1], "groups of frames")
    return [
        f for group in sorted(order[: most // chunk].tolist()) for f in range(group * chunk, min(group * chunk + chunk, number))
    ]


def read_layer(model: Model, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend from the last positions of a context: sinks beyond the window are seen from its edge, and only those."""
    window, sinks = model.rekv["n_local"], model.rekv["n_init"]
    return mix(model, query, keys, values, keys.shape[1] - query.shape[1], lambda i: min(max(i - window + 1, 0), sinks))


def read(model: Model, context: Context, x: Tensor) -> Tensor:
    """Read text [n, C] behind the context, which grows by it."""
    window, sinks = model.rekv["n_local"], model.rekv["n_init"]

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = join(context.keys[layer], key), join(context.values[layer], value)
        mixed = read_layer(model, query, keys, values)
        if keys.shape[1] > sinks + window:  # the cache keeps the sinks and the window
            keys, values = (join(t[:, :sinks], t[:, -window:]) for t in (keys, values))
        context.keys[layer], context.values[layer] = keys, values
        return mixed

    return decode(model, x, attend)


def retrieve(model: Model, stream: Stream, question: Tensor, external: Sequence[int] | None) -> tuple[Context, Tensor]:
    """Return the frozen context of every layer and the question's hidden states; each layer chooses for itself."""
    sinks, tokens = model.rekv["n_init"], model.rekv["tokens_per_frame"]
    context = Context([], [])
    blocks = [
        (keys[:, sinks:].unflatten(1, (-1, tokens)), values[:, sinks:].unflatten(1, (-1, tokens)))
        for keys, values in zip(stream.keys, stream.values, strict=True)
    ]

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        block_keys, block_values = blocks[layer]
        asked, means = query.mean(1), block_keys.mean(2).repeat_interleave(model.heads // model.groups, dim=0)
        score = torch.einsum("hd,hnd->n", asked, means)
        frames = list(external) if external is not None else choose(model, score, stream.frames)
        own_keys = join(stream.keys[layer][:, :sinks], block_keys[:, frames].flatten(1, 2))
        own_values = join(stream.values[layer][:, :sinks], block_values[:, frames].flatten(1, 2))
        context.keys.append(own_keys)
        context.values.append(own_values)
        context.frames.append(frames)
        context.scores.append(score)
        return read_layer(model, query, join(own_keys, key), join(own_values, value))

    return context, decode(model, embed(model, question), attend)


def replay(model: Model, events: Sequence[Mapping[str, Any]], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all outputs of a case from its events, ``init_ids``, frames and token ids."""
    out, stream = {}, new_stream(model)
    rekv = model.rekv
    sinks, window, repeat = rekv["n_init"], rekv["n_local"], model.heads // model.groups
    out["init_hidden"] = encode_step(model, stream, embed(model, inputs["init_ids"][0]))[None]
    for i, event in enumerate(events):
        if event["type"] == "video":
            out[f"e{i}.video_features"] = features = frame_tokens(model, inputs[f"e{i}.frames"])[None]
            steps = []
            for frame in features[0].split(rekv["tokens_per_frame"]):
                steps.append(encode_step(model, stream, frame))
                stream.frames += 1
            out[f"e{i}.encode_hidden"] = torch.cat(steps)[None]
            continue
        external = event["external"]
        context, hidden = retrieve(model, stream, inputs[f"e{i}.question_ids"], external)
        out[f"e{i}.question_hidden"] = hidden[None]
        most = max(len(frames) for frames in context.frames)
        out[f"e{i}.retrieved"] = torch.tensor([frames + [-1] * (most - len(frames)) for frames in context.frames])
        out[f"e{i}.retrieved_len"] = torch.tensor([keys.shape[1] for keys in context.keys])
        if external is None and stream.frames > rekv["topk"]:
            out[f"e{i}.similarity"] = torch.stack(context.scores)
        out[f"e{i}.l0_retrieved_k"], out[f"e{i}.l0_retrieved_v"] = context.keys[0][None], context.values[0][None]
        hidden = read(model, context, embed(model, inputs[f"e{i}.prompt_ids"]))
        out[f"e{i}.prompt_hidden"] = hidden[None]
        steps, answer = [logits(model, hidden[-1:])], [best_token(model, hidden[-1:])]
        out[f"e{i}.prompt_logits_last"] = steps[0]
        while len(answer) < event["max_new"] and answer[-1] != END:
            hidden = read(model, context, embed(model, torch.tensor(answer[-1:])))
            steps.append(logits(model, hidden))
            answer.append(best_token(model, hidden))
        out[f"e{i}.decode_logits"], out[f"e{i}.answer_ids"] = torch.cat(steps), torch.tensor(answer)
    keys, values = torch.stack(stream.keys)[:, None], torch.stack(stream.values)[:, None]
    filled = stream.length > window
    blocks = keys[:, 0, :, sinks:].unflatten(2, (-1, rekv["tokens_per_frame"])).mean(3)
    blocks = blocks.repeat_interleave(repeat, dim=1).transpose(1, 2).flatten(2)
    out["final.block_k"] = blocks if filled else torch.zeros(0)
    for name, tensor in (("k", keys), ("v", values)):
        out[f"final.init_{name}"] = tensor[..., : sinks if filled else 0, :]
        out[f"final.local_{name}"] = tensor[..., -window:, :]
    out["final.remainder_k"] = keys[..., : 0 if filled else stream.length, :]
    return out
