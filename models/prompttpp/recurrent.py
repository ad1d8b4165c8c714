"""What networks with a state of fixed size share: one prompt vector per history, and sequences as steps.

The prompt query of an event is the running mean of [tanh embedding; encoded gap]; the prompts chosen are averaged and go with
the time prompt through one linear map (a design of this project: the official code has prompts for attention only).
"""

# B keys, L events, G moments, D hidden, T time dimensions, Q = D + T, C flattened cells

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from models.prompttpp.config import TppConfig
from models.prompttpp.process import KeyState, PointProcess, Run, mean_gap, pick, running_mean
from models.prompttpp.prompts import Chosen, PromptReader
from models.prompttpp.rates import RateHead, encode_time

__all__ = ["RecurrentProcess"]


class RecurrentProcess(PointProcess):
    """A network whose state after an event is a function of the state before it."""

    def __init__(self, config: TppConfig) -> None:
        super().__init__(config)
        self.types = nn.Embedding(config.types + 1, config.hidden, padding_idx=config.types)
        self.rate = RateHead(config.hidden, config.types, scaled=config.scaled)
        self.prompt = nn.Linear(config.token_dim, config.hidden) if config.pool else None

    @property
    def embedding(self) -> nn.Embedding:
        """The table of types."""
        return self.types

    @property
    def head(self) -> nn.Module:
        """The rate head."""
        return self.rate

    @abstractmethod
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape of the network's own cells."""

    @abstractmethod
    def absorb(self, cells: dict[str, Tensor], gap_B: Tensor, event_BD: Tensor, prompt_BD: Tensor | None) -> dict[str, Tensor]:
        """Return the cells after an event ``gap_B`` (of the network's type) after the last one."""

    @abstractmethod
    def hidden(self, cells: dict[str, Tensor], lag_BG: Tensor) -> Tensor:
        """Return the hidden states [B, G, D] so long after the last event."""

    def cell_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the network's cells, and the sum from which prompts are chosen."""
        query = {"query": (self.config.token_dim,), "weight": (1,)} if self.config.pool else {}
        return self.state_shapes() | query

    def _take(
        self,
        cells: dict[str, Tensor],
        time_B: Tensor,
        gap_B: Tensor,
        ordinal_B: Tensor,
        type_B: Tensor,
        prompts: PromptReader | None,
    ) -> tuple[dict[str, Tensor], Chosen | None]:
        """Return the cells after an event, and the prompts that are chosen from then on."""
        event_BD = self.types(type_B)
        after: dict[str, Tensor] = {}
        prompt_BD, chosen = None, None
        if self.prompt is not None and prompts is not None:
            code_BT = encode_time(gap_B, self.config.time_dim, event_BD.dtype)
            token_BQ = torch.cat([event_BD.tanh(), code_BT], dim=-1)
            after["query"], after["weight"] = self.remember(cells["query"], cells["weight"], token_BQ)
            chosen = prompts.choose(0, after["query"] / after["weight"])
            value_BD = prompts.values(0).mean(1)[chosen.index].mean(1)
            tau_BT = encode_time(mean_gap(time_B, ordinal_B), self.config.time_dim, event_BD.dtype)
            prompt_BD = self.prompt(torch.cat([value_BD, tau_BT], dim=-1))
        return after | self.absorb(cells, gap_B.to(event_BD.dtype), event_BD, prompt_BD), chosen

    def _prompts_of(
        self,
        time_BL: Tensor,
        gap_BL: Tensor,
        event_BLD: Tensor,
        prompts: PromptReader | None,
        before_B: Tensor | None,
    ) -> tuple[Tensor | None, Chosen | None]:
        """Return the prompt vector of each history of whole sequences, and what was chosen for it."""
        if self.prompt is None or prompts is None:
            return None, None
        code_BLT = encode_time(gap_BL, self.config.time_dim, event_BLD.dtype)
        token_BLQ = torch.cat([event_BLD.tanh(), code_BLT], dim=-1)
        chosen = prompts.choose(0, running_mean(token_BLQ, self.config.query_events))
        value_BLD = prompts.values(0).mean(1)[chosen.index].mean(-2)
        ordinal_BL = torch.arange(1, time_BL.shape[1] + 1, device=time_BL.device).expand(time_BL.shape)
        ordinal_BL = ordinal_BL if before_B is None else ordinal_BL + before_B[:, None]
        tau_BLT = encode_time(mean_gap(time_BL, ordinal_BL), self.config.time_dim, event_BLD.dtype)
        return self.prompt(torch.cat([value_BLD, tau_BLT], dim=-1)), chosen

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
    ) -> Run:
        """Return the rates after each event of whole sequences; ``window`` does not matter."""
        prompts = prompts or self.reader()
        rows, length = time_BL.shape
        cells = self.start(rows).cells
        states, cosines, indices = [], [], []
        gap_BL = time_BL.diff(dim=1, prepend=time_BL[:, :1])
        for place in range(length):
            ordinal_B = torch.full((rows,), place + 1, device=time_BL.device)
            ordinal_B = ordinal_B if before_B is None else ordinal_B + before_B
            cells, chosen = self._take(cells, time_BL[:, place], gap_BL[:, place], ordinal_B, type_BL[:, place], prompts)
            states.append({name: cells[name] for name in self.state_shapes()})
            if chosen is not None:
                cosines.append(chosen.cosine.sum(-1))
                indices.append(chosen.index)
        # All moments of all events at once: the rates after an event depend on the cells after it only.
        stacked = {name: pick(torch.stack([one[name] for one in states], dim=1), after_BC).flatten(0, 1) for name in states[0]}
        lag = lag_BLG.flatten(0, 1).to(self.types.weight.dtype)
        hidden = self.hidden(stacked, lag).view(*lag_BLG.shape, -1)
        cosine_BL = pick(torch.stack(cosines, dim=1), after_BC) if cosines else hidden.new_zeros(lag_BLG.shape[:2])
        return Run(self.rate(hidden), cosine_BL, {0: torch.stack(indices, dim=1)} if indices else {}, hidden)

    def step(self, key: KeyState, time_B: Tensor, type_B: Tensor, prompts: PromptReader | None = None) -> dict[str, Tensor]:
        """Take one event of each key; there are no rows."""
        first_B = key.ordinal_B == 0
        gap_B = torch.where(first_B, 0.0, time_B - key.time_B)
        key.ordinal_B = key.ordinal_B + 1
        key.time_B = time_B
        key.cells, chosen = self._take(key.cells, time_B, gap_B, key.ordinal_B, type_B, prompts or self.reader())
        key.chosen = [] if chosen is None else [chosen]
        return {}

    def rates(self, key: KeyState, lag_BG: Tensor, prompts: PromptReader | None = None) -> Tensor:
        """Return the rates so long after each key's latest event; its prompts were read at the step."""
        rate_BGK: Tensor = self.rate(self.hidden(key.cells, lag_BG.to(self.types.weight.dtype)))
        return rate_BGK
