"""Tiny random decoders of several families, streams on them, and a literal reference of the encoding rule."""

# L layers, H query heads, G key/value heads, S prefix tokens, F frames, T tokens per frame, n tokens, D head dim, C hidden size

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.layouts import Grid
from models.rekv.session import StreamState, StreamView, open_stream
from models.rekv.store import TensorStore

VOCABULARY, HIDDEN, TOKENS = 61, 32, 6
SMALL = ReKVConfig(window_tokens=40, retrieve_frames=4)
PREFIX = torch.tensor([5, 9, 2, 7, 11])
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}


def text_model(family: str = "Qwen2", layers: int = 3, seed: int = 0, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """Return a random decoder and head. ``family`` is the stem of transformers' class names."""
    import transformers

    config = getattr(transformers, f"{family}Config" if "VL" not in family else f"{family}TextConfig")(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 4096,
            "sliding_window": None,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
            **settings,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = getattr(transformers, f"{family}Model" if "VL" not in family else f"{family}TextModel")(config)
        for parameter in module.parameters():
            parameter.data = torch.randn_like(parameter) * (0.25 if parameter.dim() > 1 else 0.1) + (parameter.dim() == 1)
        head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    return module.eval().requires_grad_(False), head.requires_grad_(False)


def tiny_decoder(config: ReKVConfig = SMALL, family: str = "Qwen2", **settings: Any) -> TextDecoder:
    """Return a random decoder with ReKV's attention."""
    return TextDecoder.of(*text_model(family, **settings), config)


def features(frames: int, seed: int = 1, tokens: int = TOKENS) -> Tensor:
    """Return random frame tokens [F, T, C]."""
    return torch.randn(frames, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def new_stream(
    decoder: TextDecoder, config: ReKVConfig = SMALL, prefix: Tensor = PREFIX, grid: Grid | None = None
) -> StreamState:
    """Return a stream without frames over a plain store."""
    store = TensorStore(decoder.layers)
    return open_stream(decoder, config, encode_prefix(decoder, prefix), grid or decoder.grid(TOKENS), store)


def encoded(decoder: TextDecoder, config: ReKVConfig, frames_FTC: Tensor, prefix: Tensor = PREFIX) -> StreamState:
    """Return a stream of these frames."""
    stream = new_stream(decoder, config, prefix)
    encode_frames(decoder, config, [stream], [frames_FTC])
    return stream


def store_of(stream: StreamState) -> TensorStore:
    """Return the plain store of a stream."""
    assert isinstance(stream.blocks, TensorStore)
    return stream.blocks


def seen(stream: StreamState, below: int | None = None) -> StreamView:
    """Return what a question sees of a stream: all, or the frames before ``below``."""
    return StreamView(stream.prefix, stream.grid, store_of(stream).reader(below))


class LiteralEncoding:
    """The encoding rule word for word: two logits per sink and query, every pair of tokens looked at (spec: section 3)."""

    def __init__(self, decoder: TextDecoder, config: ReKVConfig, sinks: int, tokens: int) -> None:
        self.rotary, self.config, self.sinks, self.tokens = decoder.rotary, config, sinks, tokens

    def layer(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float) -> Tensor:
        heads, n, _ = query_HnD.shape
        window, prefix = self.config.window_tokens, self.sinks
        keys_HnD = key_GnD.repeat_interleave(heads // len(key_GnD), dim=0)
        values_HnD = value_GnD.repeat_interleave(heads // len(key_GnD), dim=0)
        turn = self.rotary.turn(torch.arange(n)[None])
        far = self.rotary.turn(torch.tensor([[window - 1]]))
        local_Hnn = turn(query_HnD) @ turn(keys_HnD).transpose(1, 2) * scale
        sink_HnS = far(query_HnD) @ keys_HnD[:, :prefix].transpose(1, 2) * scale
        for i in range(n):
            frame = (i - prefix) // self.tokens
            stop = prefix if i < prefix else prefix + (frame + 1) * self.tokens
            visible = min(max(stop - window, 0), prefix)
            for j in range(n):
                if not i - window < j <= i:
                    local_Hnn[:, i, j] = -torch.inf
            for j in range(prefix):
                if j >= visible or (self.config.sink_overlap == "exact" and i - j < window):
                    sink_HnS[:, i, j] = -torch.inf
        weights = torch.cat((local_Hnn, sink_HnS), dim=-1).softmax(dim=-1)
        return weights @ torch.cat((values_HnD, values_HnD[:, :prefix]), dim=1)
