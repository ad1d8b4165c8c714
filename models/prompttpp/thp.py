"""THP, the transformer Hawkes process (Zuo et al., ICML 2020) as EasyTPP computes it: rates linear in time before the softplus.

A peer for comparisons on whole sequences; it has no prompts, and its step-by-step form keeps keys and values as AttNHP does.
"""

# B rows, L events, G moments, D hidden, A heads, E = D / A, K types, W cached events

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.prompttpp.attnhp import AttentionLayer
from models.prompttpp.config import TppConfig
from models.prompttpp.process import Heard, KeyState, PointProcess, Run, pick
from models.prompttpp.prompts import PromptReader
from models.prompttpp.rates import encode_time, scaled_softplus

__all__ = ["THP"]


class THP(PointProcess):
    """Attention over events without output projection; one MLP for all layers."""

    def __init__(self, config: TppConfig) -> None:
        super().__init__(config)
        self.types = nn.Embedding(config.types + 1, config.hidden, padding_idx=config.types)
        self.attention = nn.ModuleList(AttentionLayer(config.hidden, config.hidden) for _ in range(config.layers))
        self.inner = nn.Linear(config.hidden, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.hidden)
        self.hidden_rate = nn.Linear(config.hidden, config.types)
        self.base = nn.Parameter(torch.randn(1, config.types) / math.sqrt(config.types))
        self.decay = nn.Parameter(torch.randn(1, config.types) / math.sqrt(config.types))
        self.log_beta = nn.Parameter(torch.zeros(config.types)) if config.scaled else None

    @property
    def embedding(self) -> nn.Embedding:
        """The table of types."""
        return self.types

    @property
    def head(self) -> nn.Module:
        """The map from hidden states to rates at the event."""
        return self.hidden_rate

    def _rate(self, hidden: Tensor, lag: Tensor) -> Tensor:
        return scaled_softplus(
            self.decay * lag.to(hidden.dtype)[..., None] + self.hidden_rate(hidden) + self.base, self.log_beta
        )

    def _mix(self, query_BXD: Tensor, key_BWD: Tensor, value_BWD: Tensor, visible: Tensor) -> Tensor:
        """Attend with all heads, then the MLP; ``visible`` is [B or 1, X, W]."""
        heads = self.config.heads
        query, key, value = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query_BXD, key_BWD, value_BWD))
        score = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        mixed = score.masked_fill(~visible[:, None], -torch.inf).softmax(-1) @ value
        out: Tensor = self.outer(self.inner(mixed.transpose(1, 2).flatten(2)).relu())
        return out

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
        length = time_BL.shape[1]
        code_BLD = encode_time(time_BL, self.config.hidden, self.types.weight.dtype)
        place_L = torch.arange(length, device=time_BL.device)
        age_LL = place_L[:, None] - place_L
        visible = ((age_LL >= 0) & (age_LL < (window or length)))[None]
        x_BLD = self.types(type_BL)
        for layer in self.attention:
            assert isinstance(layer, AttentionLayer)
            x_BLD = x_BLD + code_BLD
            x_BLD = self._mix(layer.query(x_BLD), layer.key(x_BLD), layer.value(x_BLD), visible)
        x_BLD = pick(x_BLD, after_BC)
        hidden = x_BLD[:, :, None].expand(-1, -1, lag_BLG.shape[2], -1)
        return Run(self._rate(hidden, lag_BLG), x_BLD.new_zeros(x_BLD.shape[:2]), {}, hidden)

    def step(self, key: KeyState, time_B: Tensor, type_B: Tensor, prompts: PromptReader | None = None) -> dict[str, Tensor]:
        """Take one event of each key."""
        every_B = torch.arange(len(time_B), device=time_B.device)
        place_B = key.ordinal_B % key.visible_BW.shape[1]
        key.ordinal_B, key.time_B = key.ordinal_B + 1, time_B
        key.visible_BW[every_B, place_B] = True
        code_BD = encode_time(time_B, self.config.hidden, self.types.weight.dtype)
        x_BD = self.types(type_B)
        keys, values = [], []
        for number, layer in enumerate(self.attention):
            assert isinstance(layer, AttentionLayer)
            x_BD = x_BD + code_BD
            keys.append(layer.key(x_BD))
            values.append(layer.value(x_BD))
            key.rows["key"][every_B, place_B, number] = keys[-1]
            key.rows["value"][every_B, place_B, number] = values[-1]
            rows_key, rows_value = key.rows["key"][:, :, number], key.rows["value"][:, :, number]
            x_BD = self._mix(layer.query(x_BD)[:, None], rows_key, rows_value, key.visible_BW[:, None])[:, 0]
        key.cells["hidden"] = x_BD
        return {"key": torch.stack(keys, dim=1), "value": torch.stack(values, dim=1)}

    def rates(self, key: KeyState, lag_BG: Tensor, prompts: PromptReader | None = None) -> Tensor:
        """Return the rates so long after each key's latest event."""
        return self._rate(key.cells["hidden"][:, None].expand(-1, lag_BG.shape[1], -1), lag_BG)
