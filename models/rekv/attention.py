"""ReKV's attention: one function for transformers' attention interface, and the window-with-sinks arithmetic behind it.

The decoder is called with position ids of zero, which makes its own rotation an identity, and with ``rekv_session=...``, an
object that is handed the raw queries, keys and values of every layer. No module is patched and nothing is kept here.
"""

# G key/value heads, H query heads = G * R, n queries (tokens of one step), M keys, S sinks, D head dim

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from connectors.extras import optional
from models.uploads import upload

transformers = optional("transformers")

__all__ = ["ATTENTION", "AttentionSession", "Reach", "Sinks", "attend", "register", "rekv_attention"]

ATTENTION = "rekv"
"""Name under which the function is registered."""


class AttentionSession(Protocol):
    """What a pass over the decoder does in each layer."""

    def layer(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float) -> Tensor:
        """Return the attention output [H, n, D] for queries and keys before rotation."""


def attended_by(session: AttentionSession, index: int, rows_XnD: Tensor, heads: int, groups: int, scale: float) -> Tensor:
    """Hand one layer's queries, keys and values, behind each other, to a session; return the attention output [H, n, D].

    A session that has ``rows`` takes them in one piece, which it need not put together to rotate them.
    """
    rows = getattr(session, "rows", None)
    if rows is not None:
        joined_HnD: Tensor = rows(index, rows_XnD, scale)
        return joined_HnD
    query_HnD, key_GnD, value_GnD = torch.split(rows_XnD, [heads, groups, groups])
    return session.layer(index, query_HnD, key_GnD, value_GnD, scale)


def register() -> None:
    """Make the function known to transformers as ``attn_implementation="rekv"``. May be called often."""
    # No mask function of this name: the library then builds no mask, which the session would not use.
    transformers.AttentionInterface.register(ATTENTION, rekv_attention)


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

    Most keys are seen by all queries: [shared, own). The queries' own, [own, M), are seen up to each query's place. Those at
    the window's edge, [edge, shared), need a mask, unless query i sees exactly those from the i-th on (``falling``). Where a
    step is longer than the window ``shared`` is M.
    """

    edge: int
    shared: int
    own: int
    falling: bool
    hidden_nE: Tensor | None
    """True where a query must not look, over the edge; None where no mask is needed."""
    hidden_nS: Tensor | None
    """The same over the sinks."""

    @staticmethod
    def of(
        start: int,
        n: int,
        keys: int,
        window: int,
        *,
        sinks: Sequence[int] = (),
        overlap: bool = False,
        device: Any = None,
    ) -> Reach:
        """Work out who sees what.

        ``start`` is the position of the first query; the last of the ``keys`` belongs to the last query. Query i sees key j
        if i - window < j <= i, and of the sinks from behind the window, or always with ``overlap`` (published code), the first
        ``sinks[f]``, where the queries are as many frames, of equal length, as there are numbers in ``sinks``.
        """
        own, first = keys - n, start + n - keys
        edge = min(max(start - window + 1 - first, 0), own)
        shared = min(max(start + n - window - first, edge), own) if n <= window else keys
        falling = shared - edge == n - 1 and shared < own
        shared += falling  # one more, which all queries see, makes a triangle of it
        hidden_nE = hidden_nS = None
        most = max(sinks, default=0)
        if (shared > edge and not falling) or most:
            position_n1 = torch.arange(start, start + n, device=device).unsqueeze(1)
        if shared > edge and not falling:
            distance_nE = position_n1 - torch.arange(first + edge, first + shared, device=device)
            hidden_nE = (distance_nE < 0) | (distance_nE >= window)
        if most and not (overlap or start - most + 1 >= window):
            hidden_nS = position_n1 - torch.arange(most, device=device) < window
        if most and min(sinks) < most:
            visible_n1 = torch.tensor(sinks).repeat_interleave(n // len(sinks), output_size=n).unsqueeze(1)
            unseen_nS = torch.arange(most, device=device) >= upload(visible_n1, position_n1.device)
            hidden_nS = unseen_nS if hidden_nS is None else hidden_nS | unseen_nS
        return Reach(edge, shared, own, falling, hidden_nE, hidden_nS)


def attend(
    query_HnD: Tensor, keys_GMD: Tensor, values_GMD: Tensor, reach: Reach, scale: float, sinks: Sinks | None = None
) -> Tensor:
    """Return the output [H, n, D] over window and sinks under one softmax (spec: encoding rules 1 to 3).

    Queries and keys are rotated to their positions. Keys that every query sees, and the queries' own, go to fused kernels; the
    others are few; the parts are merged by their log-sum-exp.
    """
    heads, n, dim = query_HnD.shape
    query_GRnD = query_HnD.reshape(keys_GMD.shape[0], -1, n, dim)
    edge, shared, own = reach.edge, reach.shared, reach.own
    parts = []
    if own > shared:
        parts.append(_unmasked(query_GRnD, keys_GMD[:, shared:own], values_GMD[:, shared:own], scale))
    if shared <= own:
        parts.append(_causal(query_GRnD, keys_GMD[:, own:], values_GMD[:, own:], scale))
    if reach.falling:  # seen from the other end it is causal
        turned_GRnD, keys, values = query_GRnD.flip(2), keys_GMD[:, edge:shared].flip(1), values_GMD[:, edge:shared].flip(1)
        output_GRnD, sums_GRn1 = _causal(turned_GRnD, keys, values, scale)
        parts.append((output_GRnD.flip(2), sums_GRn1.flip(2)))
    elif shared > edge:
        parts.append(_masked(query_GRnD, keys_GMD[:, edge:shared], values_GMD[:, edge:shared], reach.hidden_nE, scale))
    if sinks is not None:
        far_GRnD = sinks.query_HnD.reshape(query_GRnD.shape)
        parts.append(_masked(far_GRnD, sinks.keys_GSD, sinks.values_GSD, reach.hidden_nS, scale))
    return _merged(parts).reshape(heads, n, dim).to(query_HnD.dtype)


_LEAST, _TINY = torch.finfo(torch.float32).min, torch.finfo(torch.float32).tiny

Part = tuple[Tensor, Tensor]
"""Output [G, R, n, D] and log-sum-exp [G, R, n, 1], float32, over some of the keys."""


def _merged(parts: list[Part]) -> Tensor:
    """Return the output over the keys of all parts."""
    output_GRnD, sums_GRn1 = parts[0]
    for more_GRnD, more_sums_GRn1 in parts[1:]:
        share_GRn1 = torch.sigmoid(more_sums_GRn1 - sums_GRn1)
        output_GRnD = torch.lerp(output_GRnD.float(), more_GRnD.float(), share_GRn1)
        sums_GRn1 = torch.logaddexp(sums_GRn1, more_sums_GRn1)
    return output_GRnD


def _masked(query_GRnD: Tensor, keys_GMD: Tensor, values_GMD: Tensor, hidden_nM: Tensor | None, scale: float) -> Part:
    """Attend under a mask. Where it hides all keys from a query, the log-sum-exp is minus infinity, near enough."""
    groups, heads, n, dim = query_GRnD.shape
    query = query_GRnD.reshape(groups, heads * n, dim)  # query heads that share keys are rows of one product
    logits = torch.baddbmm(query.new_zeros(1), query, keys_GMD.transpose(1, 2), beta=0, alpha=scale).float()
    weights_GRnM = logits.view(groups, heads, n, -1)
    if hidden_nM is not None:
        weights_GRnM.masked_fill_(hidden_nM, -torch.inf)
    largest_GRn1 = weights_GRnM.amax(dim=-1, keepdim=True).clamp_(min=_LEAST)
    total_GRn1 = weights_GRnM.sub_(largest_GRn1).exp_().sum(dim=-1, keepdim=True)
    output = torch.bmm(weights_GRnM.view(logits.shape).to(values_GMD.dtype), values_GMD).view(query_GRnD.shape)
    return output.float() / total_GRn1.clamp(min=_TINY), total_GRn1.log() + largest_GRn1


def _unmasked(query_GRnD: Tensor, keys_GMD: Tensor, values_GMD: Tensor, scale: float) -> Part:
    """Attend where every query sees every key: query heads that share keys are rows of one head."""
    groups, heads, n, dim = query_GRnD.shape
    output, sums = _fused(query_GRnD.reshape(groups, heads * n, dim), keys_GMD, values_GMD, scale, causal=False)
    return output.reshape(groups, heads, n, dim), sums.reshape(groups, heads, n, 1)


def _causal(query_GRnD: Tensor, keys_GnD: Tensor, values_GnD: Tensor, scale: float) -> Part:
    """Attend where query i sees the keys up to i."""
    groups, heads, n, dim = query_GRnD.shape
    keys, values = (x[:, None].expand(-1, heads, -1, -1).reshape(-1, n, dim) for x in (keys_GnD, values_GnD))
    output, sums = _fused(query_GRnD.reshape(-1, n, dim), keys, values, scale, causal=True)
    return output.reshape(groups, heads, n, dim), sums.reshape(groups, heads, n, 1)


def _fused(query_HnD: Tensor, keys_HMD: Tensor, values_HMD: Tensor, scale: float, *, causal: bool) -> Part:
    """Return output [H, n, D] and log-sum-exp [H, n]: what ``scaled_dot_product_attention`` does not return."""
    query, keys, values = (x.unsqueeze(0) for x in (query_HnD, keys_HMD, values_HMD))
    kernels = torch.ops.aten
    if query.device.type == "cpu":
        output, sums = kernels._scaled_dot_product_flash_attention_for_cpu(query, keys, values, 0.0, causal, scale=scale)[:2]
    elif query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16):
        output, sums = kernels._scaled_dot_product_flash_attention(query, keys, values, 0.0, causal, scale=scale)[:2]
    elif query.device.type == "cuda":
        output, sums = kernels._scaled_dot_product_efficient_attention(
            query, keys, values, None, True, 0.0, causal, scale=scale
        )[:2]
    else:
        hidden = torch.ones(query_HnD.shape[1], keys_HMD.shape[1], dtype=torch.bool, device=query.device)
        output_H1nD, sums_H1n1 = _masked(query_HnD[:, None], keys_HMD, values_HMD, hidden.triu_(1) & causal, scale)
        return output_H1nD[:, 0], sums_H1n1[:, 0, :, 0]
    return output[0], sums[0, :, : query_HnD.shape[1]].float()  # padded to whole tiles by some kernels
