"""PromptAttNHP in its causal form (spec of the project, 3.3): attention over past events, with prompts before keys and values.

Event tokens leaving the last layer of one head feed the first layer of the next, as in the official code; only the state of
the probes starts at zero for each head. Queries of prompts, prompts and attention at event i see events up to i only. Without
prompts this is AttNHP.
"""

# B rows, L events, G probes per event, W keys, X queries, D hidden, T time dimensions, Q = D + T, P prompt tokens

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.prompttpp.config import TppConfig
from models.prompttpp.process import Heard, KeyState, PointProcess, Run, mean_gap, pick, running_mean
from models.prompttpp.prompts import Chosen, PromptReader
from models.prompttpp.rates import RateHead, encode_time

__all__ = ["AttentionLayer", "PromptAttNHP", "PromptTokens"]

_RECENCY = 1.5  # the best of 0.6, 1, 1.5, 3 and 6 after 80 updates on a Hawkes process, other seeds than those of the test


class PromptTokens(NamedTuple):
    """Projected prompt tokens of one layer."""

    key: Tensor
    """[..., P, D]"""
    value: Tensor
    chosen: tuple[Chosen, Chosen] | None
    """From the pool of keys and from that of values."""


class AttentionLayer(nn.Module):
    """Projections of one layer of one head."""

    def __init__(self, token_dim: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(token_dim, hidden)
        self.key = nn.Linear(token_dim, hidden)
        self.value = nn.Linear(token_dim, hidden)
        self._begin_with_recent_events()

    @torch.no_grad()
    def _begin_with_recent_events(self) -> None:
        """Set the weights of the time codes so that an event that lies s back gets _RECENCY · Σ cos(ω s) more in its score.

        As drawn they add next to nothing, all events weigh alike, and finding the recent ones takes most of a training: on a
        Hawkes process some 120 updates ended 0.16 to 0.22 nats per event from the truth, like this 0.02.
        """
        if self.query.weight.is_meta:  # only shapes are wanted
            return
        hidden = self.query.out_features
        number = min(hidden, self.query.in_features - hidden) // 2 * 2  # the sine and the cosine of a frequency go together
        for linear in (self.query, self.key):
            time_DT = linear.weight[:, hidden:]
            time_DT.zero_()
            time_DT[:number, :number].fill_diagonal_((_RECENCY * math.sqrt(hidden)) ** 0.5)

    def prompt_tokens(self, number: int, query: Tensor, tau: Tensor, prompts: PromptReader | None) -> PromptTokens:
        """Return the prompts for queries [..., Q], each token with the time prompt ``tau`` [..., T] beside it.

        Projecting the table of all prompts and the time apart gives the same as projecting each token.
        """
        if prompts is None:
            none = query.new_zeros(*query.shape[:-1], 0, self.key.out_features)
            return PromptTokens(none, none, None)
        sides, chosen = [], []
        for side, linear in enumerate((self.key, self.value)):
            table_MZD = prompts.values(2 * number + side)
            found = prompts.choose(2 * number + side, query)
            weight_DD, weight_DT = linear.weight[:, : table_MZD.shape[2]], linear.weight[:, table_MZD.shape[2] :]
            projected_MZD = F.linear(table_MZD, weight_DD, linear.bias)
            token = projected_MZD[found.index].flatten(-3, -2)
            sides.append(token + F.linear(tau, weight_DT)[..., None, :])
            chosen.append(found)
        return PromptTokens(sides[0], sides[1], (chosen[0], chosen[1]))

    @staticmethod
    def attend(
        query_BLXD: Tensor,
        prompt: PromptTokens,
        key_BWD: Tensor,
        value_BWD: Tensor,
        visible_BL1W: Tensor,
        own: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend to the prompts of each l, the visible events, and what is each query's ``own`` key and value, [B, L, X, D]."""
        rows, length, number, dim = query_BLXD.shape
        query_BLXD = query_BLXD / math.sqrt(dim)
        to_prompts = query_BLXD @ prompt.key.transpose(-1, -2)
        to_events = (query_BLXD.reshape(rows, length * number, dim) @ key_BWD.transpose(1, 2)).view(rows, length, number, -1)
        scores = [to_prompts, to_events.masked_fill(~visible_BL1W, -torch.inf)]
        if own is not None:
            scores.append((query_BLXD * own[0]).sum(-1, keepdim=True))
        weight = torch.cat(scores, dim=-1).softmax(-1)
        prompts, events = to_prompts.shape[-1], to_events.shape[-1]
        out = (weight[..., prompts : prompts + events].reshape(rows, length * number, events) @ value_BWD).view_as(query_BLXD)
        if prompts:
            out = out + weight[..., :prompts] @ prompt.value
        return out if own is None else out + weight[..., -1:] * own[1]


class PromptAttNHP(PointProcess):
    """Attention over events with prompts (PromptTPP, NeurIPS 2023)."""

    def __init__(self, config: TppConfig) -> None:
        super().__init__(config)
        self.types = nn.Embedding(config.types + 1, config.hidden, padding_idx=config.types)
        self.attention = nn.ModuleList(
            AttentionLayer(config.token_dim, config.hidden) for _ in range(config.heads * config.layers)
        )
        self.norm = nn.LayerNorm(config.hidden) if config.layer_norm else None
        self.rate = RateHead(config.heads * config.hidden, config.types, scaled=config.scaled)

    @property
    def embedding(self) -> nn.Embedding:
        """The table of types."""
        return self.types

    @property
    def head(self) -> nn.Module:
        """The rate head."""
        return self.rate

    def layer(self, number: int) -> AttentionLayer:
        """Return the layer ``number`` = head · layers + layer."""
        layer = self.attention[number]
        assert isinstance(layer, AttentionLayer)
        return layer

    def update(self, probe: Tensor, mixed: Tensor) -> Tensor:
        """Return the probe state after a layer."""
        state = probe + mixed.tanh()
        return state if self.norm is None else self.norm(state)

    def token(self, type_: Tensor, time_code: Tensor) -> Tensor:
        """Return event tokens [..., Q]."""
        return torch.cat([self.types(type_).tanh(), time_code], dim=-1)

    # Whole sequences

    def run(
        self,
        time_BL: Tensor,
        type_BL: Tensor,
        lag_BLG: Tensor,
        *,
        prompts: PromptReader | None = None,
        window: int = 0,
        after_BC: Tensor | None = None,
        before_B: Tensor | None = None,
        heard: Heard | None = None,
    ) -> Run:
        """Return the rates after each event of whole sequences."""
        config, dtype = self.config, self.types.weight.dtype
        prompts = prompts or self.reader()
        length = time_BL.shape[1]
        code_BLT = encode_time(time_BL, config.time_dim, dtype)
        probe_BLGT = encode_time(pick(time_BL, after_BC)[:, :, None] + lag_BLG, config.time_dim, dtype)
        ordinal_BL = torch.arange(1, length + 1, device=time_BL.device)[None]
        age_LL = ordinal_BL[0][:, None] - ordinal_BL[0]
        ordinal_BL = ordinal_BL if before_B is None else ordinal_BL + before_B[:, None]
        tau_BLT = encode_time(time_BL + mean_gap(time_BL, ordinal_BL), config.time_dim, dtype)
        visible = ((age_LL >= 0) & (age_LL < (window or length)))[None, :, None]
        seen = visible if after_BC is None else visible[0][after_BC]
        event_BLQ = self.token(type_BL, code_BLT)
        chosen: dict[int, Tensor] = {}
        cosine_BL = torch.zeros(time_BL.shape, dtype=dtype, device=time_BL.device)
        states = []
        for head in range(config.heads):
            state = probe_BLGT.new_zeros(*lag_BLG.shape, config.hidden)
            for number in range(head * config.layers, (head + 1) * config.layers):
                layer = self.layer(number)
                query_BLQ = running_mean(event_BLQ, config.query_events, heard, number)
                prompt = layer.prompt_tokens(number, query_BLQ, tau_BLT, prompts)
                if prompt.chosen is not None:
                    for side, found in enumerate(prompt.chosen):
                        chosen[2 * number + side] = found.index
                        cosine_BL = cosine_BL + found.cosine.sum(-1)
                key_BLD, value_BLD = layer.key(event_BLQ), layer.value(event_BLQ)
                token_BLGQ = torch.cat([state, probe_BLGT], dim=-1)
                own = layer.key(token_BLGQ), layer.value(token_BLGQ)
                here = PromptTokens(pick(prompt.key, after_BC), pick(prompt.value, after_BC), None)
                mixed = layer.attend(layer.query(token_BLGQ), here, key_BLD, value_BLD, seen, own)
                state = self.update(state, mixed)
                mixed_BLD = layer.attend(layer.query(event_BLQ)[:, :, None], prompt, key_BLD, value_BLD, visible)[:, :, 0]
                event_BLQ = torch.cat([mixed_BLD, code_BLT], dim=-1)
            states.append(state)
        hidden = torch.cat(states, dim=-1)
        return Run(self.rate(hidden), pick(cosine_BL, after_BC), chosen, hidden)

    # Step by step

    def step(self, key: KeyState, time_B: Tensor, type_B: Tensor, prompts: PromptReader | None = None) -> dict[str, Tensor]:
        """Take one event of each key."""
        config, dtype = self.config, self.types.weight.dtype
        prompts = prompts or self.reader()
        every_B = torch.arange(len(time_B), device=time_B.device)
        place_B = key.ordinal_B % key.visible_BW.shape[1]
        key.ordinal_B = key.ordinal_B + 1
        key.time_B = time_B
        key.visible_BW[every_B, place_B] = True
        code_BT = encode_time(time_B, config.time_dim, dtype)
        tau_BT = self._time_prompt(key)
        event_BQ = self.token(type_B, code_BT)
        weight_B1 = key.cells["weight"] if config.pool else event_BQ[:, :1]
        keys, values, heard_B1 = [], [], weight_B1
        key.chosen = []
        for number in range(len(self.attention)):
            layer = self.layer(number)
            query_BQ = event_BQ
            if config.pool:
                total_BQ, heard_B1 = self.remember(key.cells["query"][:, number], weight_B1, event_BQ)
                key.cells["query"][:, number] = total_BQ
                query_BQ = total_BQ / heard_B1
            prompt = layer.prompt_tokens(number, query_BQ[:, None], tau_BT[:, None], prompts)
            key.chosen += prompt.chosen or ()
            keys.append(layer.key(event_BQ))
            values.append(layer.value(event_BQ))
            key.rows["key"][every_B, place_B, number] = keys[-1]
            key.rows["value"][every_B, place_B, number] = values[-1]
            mixed = layer.attend(
                layer.query(event_BQ)[:, None, None],
                prompt,
                key.rows["key"][:, :, number],
                key.rows["value"][:, :, number],
                key.visible_BW[:, None, None],
            )
            event_BQ = torch.cat([mixed[:, 0, 0], code_BT], dim=-1)
        if config.pool:
            key.cells["weight"] = heard_B1
        return {"key": torch.stack(keys, dim=1), "value": torch.stack(values, dim=1)}

    def rates(self, key: KeyState, lag_BG: Tensor, prompts: PromptReader | None = None) -> Tensor:
        """Return the rates so long after each key's latest event."""
        config, dtype = self.config, self.types.weight.dtype
        prompts = prompts or self.reader()
        probe_BGT = encode_time(key.time_B[:, None] + lag_BG, config.time_dim, dtype)
        tau_BT = self._time_prompt(key)
        states = []
        for head in range(config.heads):
            state = probe_BGT.new_zeros(*lag_BG.shape, config.hidden)
            for number in range(head * config.layers, (head + 1) * config.layers):
                layer = self.layer(number)
                query_BQ = key.cells["query"][:, number] / key.cells["weight"].clamp_min(1e-6) if config.pool else tau_BT
                prompt = layer.prompt_tokens(number, query_BQ[:, None], tau_BT[:, None], prompts)
                token = torch.cat([state, probe_BGT], dim=-1)[:, None]
                mixed = layer.attend(
                    layer.query(token),
                    prompt,
                    key.rows["key"][:, :, number],
                    key.rows["value"][:, :, number],
                    key.visible_BW[:, None, None],
                    (layer.key(token), layer.value(token)),
                )
                state = self.update(state, mixed[:, 0])
            states.append(state)
        rate_BGK: Tensor = self.rate(torch.cat(states, dim=-1))
        return rate_BGK

    def _time_prompt(self, key: KeyState) -> Tensor:
        guess_B = key.time_B + mean_gap(key.time_B, key.ordinal_B)
        return encode_time(guess_B, self.config.time_dim, self.types.weight.dtype)
