"""ReKV's attention: one function for transformers' attention interface, and the window-with-sinks arithmetic behind it.

The decoder is called with position ids of zero, which makes its own rotation an identity, and with ``rekv_session=...``, an
object that is handed the raw queries, keys and values of every layer. No module is patched and nothing is kept here.
"""

# G key/value heads, H query heads = G * R, n queries (tokens of one step), M keys, S sinks, D head dim

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError

__all__ = ["ATTENTION", "AttentionSession", "Reach", "Sinks", "attend", "register", "rekv_attention"]

ATTENTION = "rekv"
"""Name under which the function is registered."""


class AttentionSession(Protocol):
    """What a pass over the decoder does in each layer."""

    def layer(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float) -> Tensor:
        """Return the attention output [H, n, D] for queries and keys before rotation."""


def register() -> None:
    """Make the function known to transformers as ``attn_implementation="rekv"``. May be called often."""
    from transformers import AttentionInterface

    # No mask function of this name: the library then builds no mask, which the session would not use.
    AttentionInterface.register(ATTENTION, rekv_attention)


def rekv_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    rekv_session: AttentionSession | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Hand one layer's queries [1, H, n, D], keys and values [1, G, n, D] to the session; return [1, n, H, D].

    Streams and questions lie behind each other in the one row; the session knows where each begins.
    """
    if rekv_session is None:
        raise ConfigError(
            'rekv: this decoder runs with attn_implementation="rekv" but was called without rekv_session; call it through '
            'models.rekv, or choose another implementation with set_attn_implementation("sdpa")'
        )
    if attention_mask is not None or query.shape[0] != 1:
        raise ConfigError("rekv: streams are packed behind each other in one row without an attention mask; remove the mask")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output_HnD = rekv_session.layer(int(module.layer_idx), query[0], key[0], value[0], scale)  # type: ignore[arg-type]
    return output_HnD.transpose(0, 1).unsqueeze(0).contiguous(), None


@dataclass(frozen=True, slots=True)
class Sinks:
    """The prompt tokens that stay visible from behind the window, seen as if they were W - 1 tokens away."""

    query_HnD: Tensor
    """Queries turned to the position W - 1."""
    keys_GSD: Tensor
    """Not rotated."""
    values_GSD: Tensor


@dataclass(frozen=True, slots=True)
class Reach:
    """Which of M keys n consecutive queries see; the same for all layers, so it is worked out once per step.

    Most keys are seen by all queries: [shared, own). Those at the window's edge, [edge, shared), and the queries' own,
    [own, M), need a mask.
    """

    edge: int
    shared: int
    own: int
    hidden_nM: Tensor
    """True where a query must not look, over edge, own and sinks."""

    @staticmethod
    def of(start: int, n: int, keys: int, window: int, *, sinks: int = 0, overlap: bool = False, device: Any = None) -> Reach:
        """Work out who sees what.

        ``start`` is the position of the first query; the last of the ``keys`` belongs to the last query. Query i sees key j
        if i - window < j <= i, and sink j of ``sinks`` from behind the window, or always with ``overlap`` (published code).
        """
        own, first = keys - n, start + n - keys
        edge = max(start - window + 1 - first, 0)
        shared = min(max(start + n - window - first, edge), own)
        position_n1 = torch.arange(start, start + n, device=device).unsqueeze(1)
        index_M = torch.arange(first, first + keys, device=device)
        distance_nM = position_n1 - torch.cat((index_M[edge:shared], index_M[own:]))
        behind_nS = position_n1 - torch.arange(sinks, device=device) >= window
        hidden_nM = torch.cat(((distance_nM < 0) | (distance_nM >= window), ~(behind_nS | overlap)), dim=1)
        return Reach(edge, shared, own, hidden_nM)


def attend(
    query_HnD: Tensor, keys_GMD: Tensor, values_GMD: Tensor, reach: Reach, scale: float, sinks: Sinks | None = None
) -> Tensor:
    """Return the output [H, n, D] over window and sinks under one softmax (spec: encoding rules 1 to 3).

    Queries and keys are rotated to their positions. Keys that every query sees need no mask and go to a fused kernel; the
    others are few; both parts are merged by their log-sum-exp.
    """
    heads, n, dim = query_HnD.shape
    query_GRnD = query_HnD.reshape(keys_GMD.shape[0], -1, n, dim)
    edge, shared, own = reach.edge, reach.shared, reach.own
    few_keys_GMD = torch.cat((keys_GMD[:, edge:shared], keys_GMD[:, own:]), dim=1)
    few_values = [values_GMD[:, edge:shared], values_GMD[:, own:]]
    logits_GRnM = _logits(query_GRnD, few_keys_GMD, scale)
    if sinks is not None:
        sink_GRnS = _logits(sinks.query_HnD.reshape(query_GRnD.shape), sinks.keys_GSD, scale)
        logits_GRnM = torch.cat((logits_GRnM, sink_GRnS), dim=-1)
        few_values.append(sinks.values_GSD)
    logits_GRnM = logits_GRnM.masked_fill(reach.hidden_nM, -torch.inf)
    output_GRnD = _weighted(logits_GRnM.softmax(dim=-1), torch.cat(few_values, dim=1))
    if own > shared:
        main_GRnD, main_sum_GRn1 = _unmasked(query_GRnD, keys_GMD[:, shared:own], values_GMD[:, shared:own], scale)
        share_GRn1 = torch.sigmoid(logits_GRnM.logsumexp(dim=-1, keepdim=True) - main_sum_GRn1)
        output_GRnD = torch.lerp(main_GRnD.float(), output_GRnD.float(), share_GRn1)
    return output_GRnD.reshape(heads, n, dim).to(query_HnD.dtype)


def _logits(query_GRnD: Tensor, keys_GMD: Tensor, scale: float) -> Tensor:
    """Return logits [G, R, n, M] in float32; query heads that share keys are rows of one product."""
    groups, heads, n, dim = query_GRnD.shape
    logits = torch.bmm(query_GRnD.reshape(groups, heads * n, dim), keys_GMD.transpose(1, 2))
    return (logits.float() * scale).view(groups, heads, n, -1)


def _weighted(weights_GRnM: Tensor, values_GMD: Tensor) -> Tensor:
    groups, heads, n, many = weights_GRnM.shape
    rows = weights_GRnM.reshape(groups, heads * n, many).to(values_GMD.dtype)
    return torch.bmm(rows, values_GMD).view(groups, heads, n, -1)


def _unmasked(query_GRnD: Tensor, keys_GMD: Tensor, values_GMD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return output [G, R, n, D] and log-sum-exp [G, R, n, 1] where every query sees every key."""
    groups, heads, n, dim = query_GRnD.shape
    query = query_GRnD.reshape(1, groups, heads * n, dim)
    keys, values = keys_GMD.unsqueeze(0), values_GMD.unsqueeze(0)
    # scaled_dot_product_attention does not return its log-sum-exp; the kernels below it do.
    kernels = torch.ops.aten
    if query.device.type == "cpu":
        output, sums = kernels._scaled_dot_product_flash_attention_for_cpu(query, keys, values, scale=scale)[:2]
    elif query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16):
        output, sums = kernels._scaled_dot_product_flash_attention(query, keys, values, scale=scale)[:2]
    elif query.device.type == "cuda":
        output, sums = kernels._scaled_dot_product_efficient_attention(query, keys, values, None, True, scale=scale)[:2]
    else:
        logits = _logits(query_GRnD, keys_GMD, scale)
        return _weighted(logits.softmax(dim=-1), values_GMD), logits.logsumexp(dim=-1, keepdim=True)
    sums = sums[..., : heads * n]  # padded to whole tiles by some kernels
    return output.reshape(groups, heads, n, dim), sums.reshape(groups, heads, n, 1).float()
