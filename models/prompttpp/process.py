"""What every network of this package offers: a pass over whole sequences, and the same step by step with an explicit state.

Times are float64, in model units since the key's first event. A network holds weights only; a :class:`KeyState` holds what
depends on events. ``run`` and ``step``/``rates`` compute the same numbers. Nothing at an event depends on later events, on
other rows, or on padding.
"""

# B keys, L events of a sequence, G moments per event, W cached events, K types, R types of rows

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.prompttpp.config import TppConfig
from models.prompttpp.prompts import Chosen, PromptPools, PromptReader

__all__ = ["Heard", "KeyState", "PointProcess", "Run", "mean_gap", "pick", "running_mean"]

_BLOWN_UP = 1e3


@dataclass(slots=True)
class KeyState:
    """What is known of B keys after their latest event."""

    cells: dict[str, Tensor]
    """name → [B, *shape]: replaced at every event."""
    rows: dict[str, Tensor]
    """name → [B, W, *shape]: one entry per event of the window, in a ring."""
    visible_BW: Tensor
    """Which entries hold events."""
    time_B: Tensor
    """float64: of the latest event."""
    ordinal_B: Tensor
    """int64: events so far."""
    chosen: list[Chosen] = field(default_factory=list)
    """Prompts that the latest step has chosen, one entry per look-up; empty before it."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rates over whole sequences."""

    rate_BLGK: Tensor
    """After event l, at its G moments, given events up to l."""
    cosine_BL: Tensor
    """Sum over all look-ups at event l of the cosines to the chosen prompt keys; zeros without prompts."""
    chosen: Mapping[int, Tensor]
    """Pool → indices [B, L, N]."""
    hidden_BLGD: Tensor
    """What the rates are computed from."""


def mean_gap(time: Tensor, ordinal: Tensor) -> Tensor:
    """Return the mean gap of a key's events so far, float64; 0 for the first one."""
    return torch.where(ordinal > 1, time / (ordinal - 1).clamp_min(1), 0.0)


class Heard(NamedTuple):
    """Sums of the tokens of keys up to the last real event of their sequences, as the steps of the stream have made them.

    What they hold beyond the sequence is what came before it.
    """

    total_BHQ: Tensor
    """One for each look-up of prompts that has a query of its own."""
    weight_B1: Tensor
    length_B: Tensor
    """Real events of the sequence."""


def running_mean(token_BLQ: Tensor, remember: int, heard: Heard | None = None, look_up: int = 0) -> Tensor:
    """Return the mean of tokens 1..l at each l; with ``remember`` each older token weighs (1 - 1/remember) times the next.

    ``heard``: means are those of the whole history, of which the sequence is the end.
    """
    length = token_BLQ.shape[1]
    if heard is None and not remember:
        count_L1 = torch.arange(1, length + 1, device=token_BLQ.device, dtype=token_BLQ.dtype)[:, None]
        return token_BLQ.cumsum(1) / count_L1
    age_LL = torch.arange(length)[:, None] - torch.arange(length)
    keep = 1.0 - 1.0 / remember if remember else 1.0
    weight_LL = torch.where(age_LL >= 0, keep ** age_LL.clamp_min(0).double(), 0.0)
    if heard is None:
        weight_LL = (weight_LL / weight_LL.sum(1, keepdim=True)).to(token_BLQ)
        return weight_LL @ token_BLQ
    weight_LL = weight_LL.to(token_BLQ.device)
    total_BLQ, weight_L1 = weight_LL @ token_BLQ.double(), weight_LL.sum(1, keepdim=True)
    every_B, last_B = torch.arange(len(token_BLQ), device=token_BLQ.device), heard.length_B - 1
    before_BQ = heard.total_BHQ[:, look_up].double() - total_BLQ[every_B, last_B]
    count_B1 = heard.weight_B1.double() - weight_L1[last_B]
    # At the end of the sequence; at l it weighed more. Far from the end that would be rounding errors blown up.
    since_BL1 = (torch.arange(length, device=token_BLQ.device) - last_B[:, None])[:, :, None]
    share_BL1 = keep ** since_BL1.double()
    share_BL1 = torch.where(share_BL1 < _BLOWN_UP, share_BL1, 0.0)
    total_BLQ = total_BLQ + share_BL1 * before_BQ.detach()[:, None]
    count_BL1 = weight_L1 + share_BL1 * count_B1.clamp_min(0)[:, None]
    return (total_BLQ / count_BL1).to(token_BLQ)


def pick(values_BL: Tensor, after_BC: Tensor | None) -> Tensor:
    """Return the entries [B, C, ...] at these places; all of them where there are none."""
    return values_BL if after_BC is None else values_BL[torch.arange(len(after_BC))[:, None], after_BC]


class PointProcess(nn.Module, ABC):
    """Rates of K types of events given the history of a key."""

    def __init__(self, config: TppConfig) -> None:
        super().__init__()
        self.config = config
        self.prompts: PromptPools | None = None
        if config.pool:
            self.prompts = PromptPools(
                config.pools, config.pool, config.query_dim, config.prompt_rows, config.hidden, config.top_k,
                counted=config.prompt_head,
            )  # fmt: skip
            if config.prompt_head and not self.prompts.value.is_meta:  # the rate head begins as it is for all
                with torch.no_grad():
                    self.prompts.value[:, :, config.prompt_length :] = 0

    @property
    @abstractmethod
    def embedding(self) -> nn.Embedding:
        """The table of types, with a row for padding."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """What turns hidden states into rates."""

    @abstractmethod
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
        """Return the rates ``lag_BLG`` after each event of sequences.

        Padding has type ``config.types``. ``window``: attend to so many events at most; 0 is all. ``after_BC``: only after the
        events at these places; lags and results then have C in place of L, but for the prompts chosen. ``before_B``: events of
        the key before the sequence, which count for the mean gap only; times go on from the key's first event then. ``heard``:
        prompts are looked up by the whole history of the keys, not by that of the sequences.
        """

    @abstractmethod
    def step(self, key: KeyState, time_B: Tensor, type_B: Tensor, prompts: PromptReader | None = None) -> dict[str, Tensor]:
        """Take one event of each key: ``key`` is updated in place, rows at ring position ``ordinal % W``.

        Return what was put into the rows, name → [B, *shape].
        """

    @abstractmethod
    def rates(self, key: KeyState, lag_BG: Tensor, prompts: PromptReader | None = None) -> Tensor:
        """Return the rates [B, G, K] so long after each key's latest event."""

    def step_where(
        self, key: KeyState, active_B: Tensor, time_B: Tensor, type_B: Tensor, prompts: PromptReader | None = None
    ) -> None:
        """Take one event of those keys where ``active_B`` is true; the others stay as they are, bit for bit."""
        every_B = torch.arange(len(time_B), device=time_B.device)
        place_B = key.ordinal_B % max(1, key.visible_BW.shape[1])
        cells, time, ordinal = dict(key.cells), key.time_B, key.ordinal_B
        cells = {name: cell.clone() for name, cell in cells.items()}
        rows = {name: row[every_B, place_B] for name, row in key.rows.items()}
        visible_B = key.visible_BW[every_B, place_B] if rows else None
        self.step(key, time_B, type_B, prompts)
        for name, cell in cells.items():
            key.cells[name] = torch.where(active_B.view(-1, *[1] * (cell.dim() - 1)), key.cells[name], cell)
        for name, row in rows.items():
            kept = torch.where(active_B.view(-1, *[1] * (row.dim() - 1)), key.rows[name][every_B, place_B], row)
            key.rows[name][every_B, place_B] = kept
        if visible_B is not None:
            key.visible_BW[every_B, place_B] = visible_B | active_B
        key.time_B, key.ordinal_B = torch.where(active_B, key.time_B, time), torch.where(active_B, key.ordinal_B, ordinal)

    def reader(self) -> PromptReader | None:
        """Return the network's own prompts."""
        return None if self.prompts is None else self.prompts.reader()

    def start(self, keys: int, window: int = 1) -> KeyState:
        """Return the state of keys without events."""
        weight = self.embedding.weight
        device, dtype = weight.device, weight.dtype
        width = window if self.config.row_shapes() else 0
        return KeyState(
            {name: torch.zeros(keys, *shape, device=device, dtype=dtype) for name, shape in self.config.cell_shapes().items()},
            {
                name: torch.zeros(keys, width, *shape, device=device, dtype=dtype)
                for name, shape in self.config.row_shapes().items()
            },
            torch.zeros(keys, width, dtype=torch.bool, device=device),
            torch.zeros(keys, dtype=torch.float64, device=device),
            torch.zeros(keys, dtype=torch.int64, device=device),
        )

    def remember(self, total_BQ: Tensor, count_B1: Tensor, token_BQ: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum and weight of the prompt query after one more token."""
        events = self.config.query_events
        keep = 1.0 - 1.0 / events if events else 1.0
        return total_BQ * keep + token_BQ, count_B1 * keep + 1.0
