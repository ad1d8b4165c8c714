"""PromptAttNHP as the official code computes it (``compat="official"``), for golden vectors and comparisons only.

Not for use: the likelihood sees the future. Its faults, each of which a read-out keeps or repairs: prompts are chosen for the
whole batch by vote (``vote``), the causal mask lies over the prompts instead of the events (``shifted``), and in all of them
the query averages over padding and probes, and the time prompt over the gaps of the whole padded row.
"""

# B rows, L events with a probe each, G samples, S = 2L tokens, P prompt tokens, N prompts, M pool, D hidden, T time, Q = D + T

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.prompttpp.attnhp import AttentionLayer, PromptAttNHP
from models.prompttpp.prompts import unit
from models.prompttpp.rates import encode_time

__all__ = [
    "OfficialBatch",
    "OfficialLikelihood",
    "OfficialPass",
    "OfficialThinning",
    "Readout",
    "official_likelihood",
    "official_pass",
    "official_thinning",
]

Readout = Literal["official", "rowwise", "aligned"]

_BLOCKED = -1e9  # a row that sees nothing attends to everything alike, as there
_ALPHA = 0.1  # weight of the key term, hard-coded there


class OfficialBatch(NamedTuple):
    """A padded batch as the official loader makes it; padding has the value K in times and types alike."""

    time_BL: Tensor
    gap_BL: Tensor
    type_BL: Tensor
    real_BL: Tensor
    """bool: no padding."""
    blocked_BLL: Tensor
    """bool: true where a query may not see a key; the diagonal is blocked."""


@dataclass(frozen=True, slots=True)
class OfficialPass:
    """One pass over events and probes."""

    state_BLD: Tensor
    """Of the probes, all heads."""
    index: Mapping[tuple[str, int], Tensor]
    """("k" or "v", layer) → [B, N]."""
    similarity: Mapping[tuple[str, int], Tensor]
    """→ [B, M]."""
    key_term: Mapping[tuple[str, int], Tensor]
    """→ cosine to the chosen keys, summed over N, mean over rows."""
    mixed: Mapping[int, Tensor]
    """Layer → what attention returned, [B, S, D]."""


class _Prompts(NamedTuple):
    token_BPD: Tensor
    index_BN: Tensor
    similarity_BM: Tensor
    key_term: Tensor


def official_pass(model: PromptAttNHP, batch: OfficialBatch, probe_BL: Tensor, readout: Readout) -> OfficialPass:
    """Run events 1..L-1 of each row together with one probe each at the times ``probe_BL`` (relative, as there).

    The mask rows are shifted by one, so that an event sees itself and a probe all events before it.
    """
    config, dtype = model.config, model.types.weight.dtype
    time_BL, type_BL = batch.time_BL[:, :-1], batch.type_BL[:, :-1]
    code_BLT = encode_time(time_BL, config.time_dim, dtype)
    probe_BLT = encode_time(probe_BL, config.time_dim, dtype)
    tau_BT = encode_time(batch.gap_BL[:, 0] + batch.gap_BL[:, :-1].mean(1), config.time_dim, dtype)
    blocked_BSS = _combined_mask(batch.blocked_BLL[:, 1:, :-1])
    event_BLQ = model.token(type_BL, code_BLT)
    found: dict[tuple[str, int], _Prompts] = {}
    mixed: dict[int, Tensor] = {}
    states = []
    for head in range(config.heads):
        state_BLD = probe_BLT.new_zeros(*probe_BL.shape, config.hidden)
        for number in range(head * config.layers, (head + 1) * config.layers):
            token_BSQ = torch.cat([event_BLQ, torch.cat([state_BLD, probe_BLT], dim=-1)], dim=1)
            for side, letter in enumerate("kv"):
                found[letter, number] = _choose(model, 2 * number + side, token_BSQ, tau_BT, vote=readout == "official")
            out_BSD = _attend(
                model.layer(number),
                token_BSQ,
                found["k", number].token_BPD,
                found["v", number].token_BPD,
                blocked_BSS,
                shifted=readout != "aligned",
            )
            mixed[number] = out_BSD
            event_BLD, probe_BLD = out_BSD[:, : probe_BL.shape[1]], out_BSD[:, probe_BL.shape[1] :]
            state_BLD = model.update(state_BLD, probe_BLD)
            event_BLQ = torch.cat([event_BLD, code_BLT], dim=-1)
        states.append(state_BLD)
    return OfficialPass(
        torch.cat(states, dim=-1),
        {name: one.index_BN for name, one in found.items()},
        {name: one.similarity_BM for name, one in found.items()},
        {name: one.key_term for name, one in found.items()},
        mixed,
    )


def _combined_mask(blocked_BLL: Tensor) -> Tensor:
    """Return [B, S, S]: events see events, probes see events and themselves."""
    others_BLL = ~torch.eye(blocked_BLL.shape[1], dtype=torch.bool).expand_as(blocked_BLL)
    events = torch.cat([blocked_BLL, torch.ones_like(others_BLL)], dim=2)
    return torch.cat([events, torch.cat([blocked_BLL, others_BLL], dim=2)], dim=1)


def _choose(model: PromptAttNHP, pool: int, token_BSQ: Tensor, tau_BT: Tensor, *, vote: bool) -> _Prompts:
    assert model.prompts is not None
    top_k, size = model.config.top_k, model.config.pool
    query_BQ, key_MQ = unit(token_BSQ.mean(1)), unit(model.prompts.key[pool])
    similarity_BM = query_BQ @ key_MQ.T
    index_BN = similarity_BM.topk(top_k, dim=1).indices
    if vote:
        ids, counts = torch.unique(index_BN, sorted=True, return_counts=True)
        missing = size - len(ids)
        ids = torch.cat([ids, ids[:1].expand(missing)])
        counts = torch.cat([counts, counts.new_zeros(missing)])
        index_BN = ids[counts.topk(top_k).indices].expand(len(query_BQ), -1)
    value_BPD = model.prompts.value[pool][index_BN].flatten(1, 2)
    token_BPQ = torch.cat([value_BPD, tau_BT[:, None].expand(-1, value_BPD.shape[1], -1)], dim=-1)
    key_term = (key_MQ[index_BN] * query_BQ[:, None]).sum() / len(query_BQ)
    return _Prompts(token_BPQ, index_BN, similarity_BM, key_term)


def _attend(
    layer: AttentionLayer, token_BSQ: Tensor, key_BPQ: Tensor, value_BPQ: Tensor, blocked_BSS: Tensor, *, shifted: bool
) -> Tensor:
    query_BSD = layer.query(token_BSQ)
    key_BXD, value_BXD = layer.key(torch.cat([key_BPQ, token_BSQ], 1)), layer.value(torch.cat([value_BPQ, token_BSQ], 1))
    score_BSX = query_BSD @ key_BXD.transpose(1, 2) / math.sqrt(query_BSD.shape[2])
    prompts = key_BPQ.shape[1]
    mask_BSX = F.pad(blocked_BSS, (0, prompts) if shifted else (prompts, 0))
    mixed_BSD: Tensor = score_BSX.masked_fill(mask_BSX, _BLOCKED).softmax(-1) @ value_BXD
    return mixed_BSD


@dataclass(frozen=True, slots=True)
class OfficialLikelihood:
    """The published loss and its parts."""

    passed: OfficialPass
    rate_BLK: Tensor
    sample_BLG: Tensor
    """Absolute times of the integral's samples."""
    rate_BLGK: Tensor
    event_BL: Tensor
    integral_BL: Tensor
    events: int
    key_term: Tensor
    loss: Tensor


def official_likelihood(model: PromptAttNHP, batch: OfficialBatch, readout: Readout, samples: int) -> OfficialLikelihood:
    """Compute the published training loss: mean rule on ``samples`` grid points, no survival tail, the key term once."""
    at_event = official_pass(model, batch, batch.time_BL[:, 1:], readout)
    rate_BLK = model.rate(at_event.state_BLD)
    share_G = torch.linspace(0, 1, samples, dtype=batch.time_BL.dtype)
    sample_BLG = batch.time_BL[:, :-1, None] + batch.gap_BL[:, 1:, None] * share_G
    rate_BLGK = _rates(model, batch, sample_BLG, readout)
    target_BL, real_BL = batch.type_BL[:, 1:], batch.real_BL[:, 1:]
    own_BL = rate_BLK.gather(2, target_BL.clamp_max(model.config.types - 1)[:, :, None])[:, :, 0]
    event_BL = own_BL.log().where(real_BL, 0.0)
    integral_BL = (rate_BLGK.sum(3).mean(2) * batch.gap_BL[:, 1:]).where(real_BL, 0.0)
    key_term = torch.stack(list(at_event.key_term.values())).sum()
    loss = integral_BL.sum() - event_BL.sum() - _ALPHA * key_term
    return OfficialLikelihood(
        at_event, rate_BLK, sample_BLG, rate_BLGK, event_BL, integral_BL, int((event_BL != 0).sum()), key_term, loss
    )


class OfficialThinning(NamedTuple):
    """What the published prediction returns, for the event after each event."""

    bound_BL: Tensor
    """Taken for a bound of the total rate; it is none."""
    total_BLX: Tensor
    """Total rate at each draw."""
    accepted_BLV: Tensor
    """Gap of each sample."""
    gap_BL: Tensor
    type_BL: Tensor


def official_thinning(
    model: PromptAttNHP,
    batch: OfficialBatch,
    readout: Readout,
    *,
    unit_exp_BLX: Tensor,
    uniform_BLVX: Tensor,
    over_sample_rate: float = 5.0,
    boundary: int = 5,
    dtime_max: float = 5.0,
) -> OfficialThinning:
    """Predict as published: V samples from X unit-exponential draws, which are used one by one instead of summed.

    The smallest accepted draw is returned, gaps go in where absolute times are expected, and what is taken for a bound is
    ``over_sample_rate`` times the largest rate at ``boundary`` lags within the *previous* gap.
    """
    length = batch.time_BL.shape[1]
    blocked_LL = torch.ones(length, length, dtype=torch.bool).triu()  # padding is forgotten
    batch = batch._replace(blocked_BLL=blocked_LL.expand(len(batch.time_BL), -1, -1))
    gap_BL = batch.gap_BL[:, :-1]
    lag_BLG = gap_BL[:, :, None] * torch.linspace(0, 1, boundary, dtype=gap_BL.dtype)
    bound_BL = over_sample_rate * _rates(model, batch, lag_BLG, readout).sum(3).amax(2)
    draw_BLX = unit_exp_BLX / bound_BL[:, :, None]
    total_BLX = _rates(model, batch, draw_BLX, readout).sum(3)
    rejected_BLVX = uniform_BLVX * bound_BL[:, :, None, None] / total_BLX[:, :, None] >= 1.0
    smallest_BLV = draw_BLX[:, :, None].expand_as(rejected_BLVX).masked_fill(rejected_BLVX, torch.inf).amin(3)
    fallback_BL = torch.maximum(gap_BL + dtime_max, draw_BLX[:, :, -1])
    accepted_BLV = torch.where(smallest_BLV.isinf(), fallback_BL[:, :, None], smallest_BLV)
    next_BL = accepted_BLV.mean(2)
    type_BL = _rates(model, batch, next_BL[:, :, None], readout)[:, :, 0].argmax(2)
    return OfficialThinning(bound_BL, total_BLX, accepted_BLV, next_BL, type_BL)


def _rates(model: PromptAttNHP, batch: OfficialBatch, time_BLG: Tensor, readout: Readout) -> Tensor:
    """Return [B, L, G, K]: the batch is repeated once per moment, and prompts are chosen for all rows together."""
    rows, length, samples = time_BLG.shape
    repeated = OfficialBatch(*(part.repeat(samples, *[1] * (part.dim() - 1)) for part in batch))
    state = official_pass(model, repeated, time_BLG.permute(2, 0, 1).reshape(-1, length), readout).state_BLD
    rate: Tensor = model.rate(state)
    return rate.view(samples, rows, length, -1).permute(1, 2, 0, 3)
