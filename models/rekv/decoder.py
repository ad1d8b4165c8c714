"""The text decoder of a video-language model as ReKV sees it: embeddings in, hidden states out, attention by a session.

Wraps a decoder of transformers (Qwen2, Qwen3, Llama, Mistral, the Qwen-VL text models) without changing it beyond selecting
the attention function. Holds no stream.
"""

# n tokens of all segments, C hidden size, V vocabulary, J levels of deepstack features

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from models.rekv.attention import ATTENTION, AttentionSession, attended_by, register
from models.rekv.config import ReKVConfig
from models.rekv.layers import LooseLayer, PackedLayer, normalized, pack_layer
from models.rekv.layouts import Grid
from models.rekv.rotary import Rotary
from models.uploads import upload
from models.weight_order import order_for_one_row

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
    packs: list[LooseLayer | PackedLayer] = field(default_factory=list)
    """The layers by :meth:`pack`."""

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

    @property
    def is_plain(self) -> bool:
        """Whether its layers are run here, one module after the other, and not by the library."""
        return type(self.module).__name__ in _PLAIN

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
        if self.is_plain:
            return self._run_plain(embeds_nC, deep_JnC, session, keys_only)
        if deep_JnC:
            raise ConfigError(f"rekv: {type(self.module).__name__} takes no features behind its first layers; give its width")
        zeros = torch.zeros(1, embeds_nC.shape[0], dtype=torch.long, device=embeds_nC.device)
        hidden = self.module(
            inputs_embeds=embeds_nC.unsqueeze(0), position_ids=zeros, use_cache=False, rekv_session=session, return_dict=True
        )
        last: Tensor = hidden.last_hidden_state[0]
        return last

    def pack(self) -> None:
        """Lay out the weights for inference, in place: layers that take the same input side by side, as one product.

        Parameters keep their names, shapes and values. Where they are moved afterwards they are products of their own again.
        """
        self.packs.clear()
        if self.is_plain:
            self.packs.extend(pack_layer(layer) for layer in self.module.layers)  # type: ignore[union-attr]
        for part in (self.module, self.head) if not self.is_plain else (self.head,):
            order_for_one_row(part)

    def _run_plain(self, embeds_nC: Tensor, deep_JnC: Sequence[Tensor], session: AttentionSession, keys_only: bool) -> Tensor:
        """The same numbers from the modules of the layers, without the library's masks, caches and rotation by zero.

        Answers are generated token by token, and there those take longer than the attention.
        """
        module: Any = self.module
        hidden_nC, factor, turned = embeds_nC, self.rotary.factor, self.heads + self.groups
        packed = self.packs and all(layer.holds() for layer in self.packs)
        layers = self.packs if packed else [LooseLayer(layer) for layer in module.layers]
        for index, layer in enumerate(layers):
            rows_nXD = layer.attended(hidden_nC).view(len(hidden_nC), -1, self.dim)
            if layer.norms is not None:
                parts = torch.split(rows_nXD, [self.heads, self.groups, self.groups], dim=1)
                normal = [normalized(norm, part) for norm, part in zip(layer.norms, parts, strict=False)]
                rows_nXD = torch.cat((*normal, parts[2]), dim=1)
            if factor != 1:
                rows_nXD = torch.cat((rows_nXD[:, :turned] * factor, rows_nXD[:, turned:]), dim=1)
            output_HnD = attended_by(session, index, rows_nXD.transpose(0, 1), self.heads, self.groups, layer.scaling)
            if keys_only and index == self.layers - 1:
                return hidden_nC
            hidden_nC = layer.rest(hidden_nC, output_HnD.transpose(0, 1).flatten(1))
            if index < len(deep_JnC):
                hidden_nC = hidden_nC + deep_JnC[index]
        return normalized(module.norm, hidden_nC)

    def logits(self, hidden_nC: Tensor) -> Tensor:
        """Return the vocabulary logits [n, V] in float32."""
        logits: Tensor = self.head(hidden_nC)
        return logits.float()
