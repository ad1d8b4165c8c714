"""The text decoder of a video-language model as ReKV sees it: embeddings in, hidden states out, attention by a session.

Wraps a decoder of transformers (Qwen2, Qwen3, Llama, Mistral, the Qwen-VL text models) without changing it beyond selecting
the attention function. Holds no stream.
"""

# n tokens of all segments, C hidden size, V vocabulary, J levels of deepstack features

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from models.rekv.attention import ATTENTION, AttentionSession, register
from models.rekv.config import ReKVConfig
from models.rekv.layouts import Grid
from models.rekv.rotary import Rotary
from models.uploads import upload

__all__ = ["TextDecoder"]

_PLAIN = (
    "LlamaModel",
    "MistralModel",
    "Qwen2Model",
    "Qwen3Model",
    "Qwen2VLTextModel",
    "Qwen2_5_VLTextModel",
    "Qwen3VLTextModel",
)
"""Decoders whose layers are: norm, attention, sum, norm, MLP, sum. All others run through the library."""


@dataclass(frozen=True, slots=True, eq=False)
class TextDecoder:
    """A decoder ready for ReKV; make it with :meth:`of`."""

    module: nn.Module
    head: nn.Module
    """The vocabulary head."""
    rotary: Rotary
    layers: int
    heads: int
    groups: int
    """Key/value heads."""
    dim: int
    """Width of a head."""

    @staticmethod
    def of(module: Any, head: nn.Module, config: ReKVConfig) -> TextDecoder:
        """Wrap a decoder module of transformers and its head.

        Selects ReKV's attention on the module (its config's ``_attn_implementation``); take it back with
        ``module.set_attn_implementation("sdpa")``. Raises ``ConfigError`` for decoders whose own attention is windowed more
        narrowly or whose rotation depends on the length.
        """
        text = module.config
        sliding = getattr(text, "sliding_window", None)
        kinds = set(getattr(text, "layer_types", None) or ())
        if sliding is not None and ("sliding_attention" in kinds or not kinds) and sliding < config.window_tokens:
            raise ConfigError(
                f"rekv: the decoder attends to {sliding} tokens only (sliding_window), less than window_tokens="
                f"{config.window_tokens}; set window_tokens to at most {sliding}"
            )
        if kinds - {"full_attention", "sliding_attention"}:
            raise ConfigError(f"rekv: layers of type {sorted(kinds - {'full_attention'})} keep no keys; choose another decoder")
        register()
        module.set_attn_implementation(ATTENTION)
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return TextDecoder(
            module=module.eval(),
            head=head.eval(),
            rotary=Rotary.of(module.rotary_emb, getattr(text, "rope_parameters", None) or {}, config.rope_mode),
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            groups=text.num_key_value_heads,
            dim=dim,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of keys and values."""
        return next(self.module.parameters()).dtype

    def grid(self, tokens: int, volume: tuple[int, int, int] | None = None) -> Grid:
        """Return the positions of a frame's tokens: a (time, rows, columns) volume for three axes, else a line.

        Raises ``ConfigError`` when a decoder with three axes is not told the volume, or it does not hold ``tokens``.
        """
        if self.rotary.axes == 1:
            return Grid.line(tokens)
        if volume is None or volume[0] * volume[1] * volume[2] != tokens:
            raise ConfigError(
                f"rekv: this decoder needs the (time, rows, columns) of a frame's {tokens} tokens, got {volume}; give a "
                "volume of that many tokens, or set rope_mode='1d'"
            )
        return Grid.volume(*volume)

    def embed(self, ids_n: Tensor) -> Tensor:
        """Return the embeddings [n, C] of token ids."""
        embedded: Tensor = self.module.get_input_embeddings()(upload(ids_n, self.device))  # type: ignore[operator]
        return embedded

    def run(self, embeds_nC: Tensor, session: AttentionSession, *, keys_only: bool = False) -> Tensor:
        """Return the hidden states [n, C] after the final norm; ``session`` does the attention of every layer.

        ``embeds_nC`` may be [n, (1 + J) C]: beside the embeddings lies what is added to the hidden states behind each of the
        first J layers (Qwen3-VL's deepstack; zeros for words). ``keys_only``: nothing is wanted but what the session is handed;
        what is returned then is undefined.
        """
        module: Any = self.module
        embeds_nC, *deep_JnC = torch.split(embeds_nC, module.config.hidden_size, dim=1)
        if type(self.module).__name__ in _PLAIN:
            return self._run_plain(embeds_nC, deep_JnC, session, keys_only)
        if deep_JnC:
            raise ConfigError(f"rekv: {type(self.module).__name__} takes no features behind its first layers; give its width")
        zeros = torch.zeros(1, embeds_nC.shape[0], dtype=torch.long, device=embeds_nC.device)
        hidden = self.module(
            inputs_embeds=embeds_nC.unsqueeze(0), position_ids=zeros, use_cache=False, rekv_session=session, return_dict=True
        )
        last: Tensor = hidden.last_hidden_state[0]
        return last

    def _run_plain(self, embeds_nC: Tensor, deep_JnC: Sequence[Tensor], session: AttentionSession, keys_only: bool) -> Tensor:
        """The same numbers from the modules of the layers, without the library's masks, caches and rotation by zero.

        Answers are generated token by token, and there those take longer than the attention.
        """
        module: Any = self.module
        hidden_nC, factor = embeds_nC, self.rotary.factor
        for index, layer in enumerate(module.layers):
            attention: Any = layer.self_attn
            normal_nC = _normalized(layer.input_layernorm, hidden_nC)
            query_nHD, key_nGD, value_nGD = (
                project(normal_nC).unflatten(-1, (-1, self.dim))
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if hasattr(attention, "q_norm"):
                query_nHD = _normalized(attention.q_norm, query_nHD)
                key_nGD = _normalized(attention.k_norm, key_nGD)
            if factor != 1:
                query_nHD, key_nGD = query_nHD * factor, key_nGD * factor
            query_HnD, key_GnD, value_GnD = (x.transpose(0, 1) for x in (query_nHD, key_nGD, value_nGD))
            output_HnD = session.layer(index, query_HnD, key_GnD, value_GnD, attention.scaling)
            if keys_only and index == self.layers - 1:
                return hidden_nC
            hidden_nC = _added(hidden_nC, attention.o_proj, output_HnD.transpose(0, 1).flatten(1))
            normal_nC, mlp = _normalized(layer.post_attention_layernorm, hidden_nC), layer.mlp
            inner_nI = mlp.act_fn(mlp.gate_proj(normal_nC)) * mlp.up_proj(normal_nC)
            hidden_nC = _added(hidden_nC, mlp.down_proj, inner_nI)
            if index < len(deep_JnC):
                hidden_nC = hidden_nC + deep_JnC[index]
        return _normalized(module.norm, hidden_nC)

    def logits(self, hidden_nC: Tensor) -> Tensor:
        """Return the vocabulary logits [n, V] in float32."""
        logits: Tensor = self.head(hidden_nC)
        return logits.float()


def _normalized(norm: Any, x: Tensor) -> Tensor:
    """Return what an RMS norm of the library returns, by one kernel where there is one.

    PyTorch makes six passes of it on a CPU; for one row, as in every step of an answer, three do.
    """
    one = len(x) == 1 and x.dim() == 2 and not torch.is_grad_enabled()
    if one and x.dtype == norm.weight.dtype == torch.float32 and x.device.type == "cpu":
        row_C = x[0]
        mean = float(torch.dot(row_C, row_C)) / len(row_C)
        scaled_1C: Tensor = x * norm.weight
        return scaled_1C.mul_((mean + norm.variance_epsilon) ** -0.5)
    return nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _added(sum_nC: Tensor, linear: Any, x: Tensor) -> Tensor:
    """Return ``sum_nC + linear(x)``, the sum done by the product's kernel where that is all that ``linear`` does."""
    if type(linear) is nn.Linear and getattr(linear, "bias", None) is None:
        return torch.addmm(sum_nC, x, linear.weight.t())
    total_nC: Tensor = sum_nC + linear(x)
    return total_nC
