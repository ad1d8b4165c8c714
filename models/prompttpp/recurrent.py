"""What networks with a state of fixed size share: one prompt vector per history, and sequences as steps.

The prompts chosen are averaged and go with the time prompt (the encoded gaps, averaged as the query is: a mean over the whole
history would still speak of the pace of long ago) through one linear map. All of it is a design of this project: the official
code has prompts for attention only. A history asks for prompts by the running mean of what its events look like: each
is a fixed random code of its type and of the type before it, the same once more times the logarithm of the gap, and the encoded
gap. Codes of pairs tell a cycle of types from the same cycle backwards; none of it is learned, so that a query means the same
whatever a stream teaches. Raw means all lie in one narrow cone and differ by noise above all; so a query is compared with keys
as a difference from the mean of the training, in units of the noise (``query_center``, ``query_map``).
"""

# B keys, L events, G moments, D hidden, T time dimensions, Q = 2 D + T, Z tokens of a prompt, X what prompts steer

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.prompttpp.config import TppConfig
from models.prompttpp.process import Heard, KeyState, PointProcess, Run, pick, running_mean
from models.prompttpp.prompts import Chosen, PromptReader
from models.prompttpp.rates import RateHead, encode_time

__all__ = ["RecurrentProcess"]

_HEAD_STEP = 0.2  # of a prompt's change of the rate head, beside its other numbers: few steps fit it to few events
_SHORT = 0.01  # gaps are told apart by their logarithm above this, model units


class RecurrentProcess(PointProcess):
    """A network whose state after an event is a function of the state before it."""

    steered = 1
    """How many vectors [D] a network takes from its prompts."""
    query_code: Tensor
    """[K + 1, D]: random, zeros for padding and for no event."""
    query_center: Tensor
    """[Q]: mean query of the training; zeros in a new network."""
    query_map: Tensor
    """[Q, Q]: what differences from it are multiplied by; in a new network they stay as they are."""

    def __init__(self, config: TppConfig) -> None:
        super().__init__(config)
        self.types = nn.Embedding(config.types + 1, config.hidden, padding_idx=config.types)
        self.rate = RateHead(config.hidden, config.types, scaled=config.scaled)
        self.prompt: nn.Linear | None = None
        if config.pool:
            self.prompt = nn.Linear(config.prompt_length * config.hidden + config.time_dim, self.steered * config.hidden)
            code = torch.randn(config.types + 1, config.hidden)
            code[config.types] = 0
            self.register_buffer("query_code", code)
            self.register_buffer("query_center", torch.zeros(config.query_dim))
            self.register_buffer("query_map", torch.eye(config.query_dim))

    @property
    def embedding(self) -> nn.Embedding:
        """The table of types."""
        return self.types

    @property
    def head(self) -> nn.Module:
        """The rate head."""
        return self.rate

    @abstractmethod
    def absorb(self, cells: dict[str, Tensor], gap_B: Tensor, event_BD: Tensor, prompt_BX: Tensor | None) -> dict[str, Tensor]:
        """Return the cells after an event ``gap_B`` (of the network's type) after the last one; X is ``steered`` · D."""

    @abstractmethod
    def hidden(self, cells: dict[str, Tensor], lag_BG: Tensor) -> Tensor:
        """Return the hidden states [B, G, D] so long after the last event."""

    def _take(
        self,
        cells: dict[str, Tensor],
        gap_B: Tensor,
        type_B: Tensor,
        prompts: PromptReader | None,
        mean_BQ: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Chosen | None]:
        """Return the cells after an event, and the prompts that are chosen from then on (by this query, where it is given)."""
        event_BD = self.types(type_B)
        after: dict[str, Tensor] = {}
        prompt_BX, head, chosen = None, None, None
        if self.prompt is not None and prompts is not None:
            after["last"] = self.query_code[type_B]
            token_BQ = self._query_token(after["last"], cells["last"], gap_B)
            after["query"], after["weight"] = self.remember(cells["query"], cells["weight"], token_BQ)
            mean_BQ = after["query"] / after["weight"] if mean_BQ is None else mean_BQ
            prompt_BX, head, chosen = self._steer(mean_BQ, prompts)
            after |= {} if head is None else {"head": head}
        return after | self.absorb(cells, gap_B.to(event_BD.dtype), event_BD, prompt_BX), chosen

    def query_tokens(self, time_BL: Tensor, type_BL: Tensor) -> Tensor:
        """Return what the queries of whole sequences are running means of, [B, L, Q]."""
        code_BLD = self.query_code[type_BL]
        gap_BL = time_BL.diff(dim=1, prepend=time_BL[:, :1])
        return self._query_token(code_BLD, F.pad(code_BLD[:, :-1], (0, 0, 1, 0)), gap_BL)

    def _query_token(self, code: Tensor, last: Tensor, gap: Tensor) -> Tensor:
        """Return what one event looks like, [..., Q]; a shift tells the event before from the event."""
        pair = (code + last.roll(1, dims=-1)).tanh()
        pace = (gap + _SHORT).log().tanh().to(code.dtype)[..., None]
        return torch.cat([pair, pair * pace, encode_time(gap, self.config.time_dim, code.dtype)], dim=-1)

    def query(self, mean: Tensor) -> Tensor:
        """Return what prompts are looked up by for means of tokens, [..., Q]."""
        return (mean - self.query_center) @ self.query_map

    def _steer(self, mean: Tensor, prompts: PromptReader) -> tuple[Tensor, Tensor | None, Chosen]:
        """Return what the prompts say to a history with this mean of tokens [..., Q], and which were chosen.

        They say what the network is steered by, [..., X], and what changes the weights of the rate head, [..., K, D].
        """
        assert self.prompt is not None
        chosen = prompts.choose(0, self.query(mean))
        value = prompts.values(0).flatten(1)[chosen.index].mean(-2)
        head = None
        if self.config.prompt_head:
            size = self.config.prompt_length * self.config.hidden
            change = value[..., size:].reshape(*value.shape[:-1], self.config.types, self.config.hidden)
            value, head = value[..., :size], _HEAD_STEP * change
        return self.prompt(torch.cat([value, mean[..., -self.config.time_dim :]], dim=-1)), head, chosen

    def read(self, cells: dict[str, Tensor], hidden: Tensor) -> Tensor:
        """Return the rates [..., G, K] of hidden states [..., G, D], by the head as the prompts in the cells change it."""
        head = cells.get("head")
        rates: Tensor = self.rate(hidden, None if head is None else head.view(*hidden.shape[:-2], *head.shape[1:]))
        return rates

    def _prompts_of(
        self, time_BL: Tensor, type_BL: Tensor, prompts: PromptReader | None, heard: Heard | None
    ) -> tuple[Tensor | None, Tensor | None, Chosen | None]:
        """Return what prompts say after each event of whole sequences (see ``_steer``), and what was chosen for it."""
        if self.prompt is None or prompts is None:
            return None, None, None
        return self._steer(running_mean(self.query_tokens(time_BL, type_BL), self.config.query_events, heard), prompts)

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
        """Return the rates after each event of whole sequences; ``window`` and ``before_B`` do not matter."""
        prompts = prompts or self.reader()
        rows, length = time_BL.shape
        cells = self.start(rows).cells
        states, cosines, indices = [], [], []
        gap_BL = time_BL.diff(dim=1, prepend=time_BL[:, :1])
        means: Sequence[Tensor | None] = [None] * length
        if heard is not None and self.prompt is not None:
            means = running_mean(self.query_tokens(time_BL, type_BL), self.config.query_events, heard).unbind(1)
        for place in range(length):
            cells, chosen = self._take(cells, gap_BL[:, place], type_BL[:, place], prompts, means[place])
            states.append({name: cells[name] for name in self.config.state_shapes()})
            if chosen is not None:
                cosines.append(chosen.cosine.sum(-1))
                indices.append(chosen.index)
        # All moments of all events at once: the rates after an event depend on the cells after it only.
        stacked = {name: pick(torch.stack([one[name] for one in states], dim=1), after_BC).flatten(0, 1) for name in states[0]}
        lag = lag_BLG.flatten(0, 1).to(self.types.weight.dtype)
        hidden = self.hidden(stacked, lag).view(*lag_BLG.shape, -1)
        cosine_BL = pick(torch.stack(cosines, dim=1), after_BC) if cosines else hidden.new_zeros(lag_BLG.shape[:2])
        return Run(self.read(stacked, hidden), cosine_BL, {0: torch.stack(indices, dim=1)} if indices else {}, hidden)

    def step(self, key: KeyState, time_B: Tensor, type_B: Tensor, prompts: PromptReader | None = None) -> dict[str, Tensor]:
        """Take one event of each key; there are no rows."""
        first_B = key.ordinal_B == 0
        gap_B = torch.where(first_B, 0.0, time_B - key.time_B)
        key.ordinal_B = key.ordinal_B + 1
        key.time_B = time_B
        key.cells, chosen = self._take(key.cells, gap_B, type_B, prompts or self.reader())
        key.chosen = [] if chosen is None else [chosen]
        return {}

    def rates(self, key: KeyState, lag_BG: Tensor, prompts: PromptReader | None = None) -> Tensor:
        """Return the rates so long after each key's latest event; its prompts were read at the step."""
        return self.read(key.cells, self.hidden(key.cells, lag_BG.to(self.types.weight.dtype)))
