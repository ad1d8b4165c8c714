"""S2P2-style point process: layers of linear state spaces in continuous time with jumps at events (after Chang et al., 2024,
"Deep continuous-time state-space models for marked event sequences"). O(1) state per key, O(1) work per event and moment.

Layer l holds P complex numbers x. Between events x relaxes to w at complex rates λ (held input, so the solution is exact);
an event adds to x. The layer above sees silu(C x + d u) + u, normalized, where u is this layer's input. The first input is the
prompt vector of the history: prompts steer what the states relax to. Held inputs are the right limits at the last event, so
nothing depends on the future.
"""

# B keys, G moments, D hidden, P complex numbers per layer, N layers

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.prompttpp.config import TppConfig
from models.prompttpp.process import Run, pick
from models.prompttpp.prompts import PromptReader
from models.prompttpp.recurrent import RecurrentProcess

__all__ = ["S2P2"]

_SLOWEST, _FASTEST = 0.02, 20.0  # rates at the start, per unit of model time


class _Layer(nn.Module):
    def __init__(self, hidden: int, state: int) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.linspace(math.log(_SLOWEST), math.log(_FASTEST), state))
        self.frequency = nn.Parameter(torch.rand(state) * self.log_rate.detach().exp())
        self.jump = nn.Linear(hidden, 2 * state, bias=False)
        self.drive = nn.Linear(hidden, 2 * state)
        self.read = nn.Linear(2 * state, hidden)
        self.skip = nn.Parameter(torch.ones(hidden))
        self.norm = nn.LayerNorm(hidden)

    def out(self, state: Tensor, given: Tensor) -> Tensor:
        """Return what the layer above sees."""
        value: Tensor = self.norm(F.silu(torch.addcmul(self.read(state), self.skip, given)) + given)
        return value


class S2P2(RecurrentProcess):
    """Stacked linear state spaces with jumps."""

    def __init__(self, config: TppConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(_Layer(config.hidden, config.state) for _ in range(config.layers))
        self.first = nn.Parameter(torch.zeros(config.hidden))

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the states and what they relax to (real parts, then imaginary ones), and the first input."""
        width = (self.config.layers, 2 * self.config.state)
        return {"state": width, "target": width, "input": (self.config.hidden,)}

    def absorb(self, cells: dict[str, Tensor], gap_B: Tensor, event_BD: Tensor, prompt_BD: Tensor | None) -> dict[str, Tensor]:
        """Return the cells after an event."""
        given = (self.first if prompt_BD is None else self.first + prompt_BD).expand_as(event_BD)
        first = given
        states, targets = [], []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            before = self._relaxed(layer, cells["state"][:, number], cells["target"][:, number], gap_B[:, None])[:, 0]
            states.append(before + layer.jump(event_BD))
            targets.append(layer.drive(given))
            given = layer.out(states[-1], given)
        return {"state": torch.stack(states, dim=1), "target": torch.stack(targets, dim=1), "input": first}

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
        """Return the rates after each event of whole sequences: layer by layer, all events of a layer by a parallel scan."""
        prompts = prompts or self.reader()
        gap_BL = time_BL.diff(dim=1, prepend=time_BL[:, :1])
        event_BLD = self.types(type_BL)
        prompt_BLD, chosen = self._prompts_of(time_BL, gap_BL, event_BLD, prompts, before_B)
        given = (self.first if prompt_BLD is None else self.first + prompt_BLD).expand_as(event_BLD)
        first, states, targets = given, [], []
        gap = gap_BL.to(event_BLD.dtype)[..., None]
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            targets.append(layer.drive(given))
            states.append(_scan(layer, gap, targets[-1], layer.jump(event_BLD)))
            given = layer.out(states[-1], given)
        cells = {"state": torch.stack(states, dim=2), "target": torch.stack(targets, dim=2), "input": first}
        cells = {name: pick(cell, after_BC).flatten(0, 1) for name, cell in cells.items()}
        hidden = self.hidden(cells, lag_BLG.flatten(0, 1).to(event_BLD.dtype)).view(*lag_BLG.shape, -1)
        if chosen is None:
            return Run(self.rate(hidden), hidden.new_zeros(lag_BLG.shape[:2]), {}, hidden)
        return Run(self.rate(hidden), pick(chosen.cosine.sum(-1), after_BC), {0: chosen.index}, hidden)

    def hidden(self, cells: dict[str, Tensor], lag_BG: Tensor) -> Tensor:
        """Return the hidden states so long after the last event."""
        given = cells["input"][:, None].expand(-1, lag_BG.shape[1], -1)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            given = layer.out(self._relaxed(layer, cells["state"][:, number], cells["target"][:, number], lag_BG), given)
        return given

    @staticmethod
    def _relaxed(layer: _Layer, state_BP: Tensor, target_BP: Tensor, lag_BG: Tensor) -> Tensor:
        """Return w + (x - w) exp(λ s), [B, G, 2P]."""
        lag = lag_BG[..., None]
        left = (-layer.log_rate.exp() * lag).exp()
        turn = layer.frequency * lag
        w_re, w_im = target_BP[:, None].chunk(2, dim=-1)
        x_re, x_im = (state_BP - target_BP)[:, None].chunk(2, dim=-1)
        cosine, sine = left * turn.cos(), left * turn.sin()
        moved_re = torch.addcmul(torch.addcmul(w_re, x_re, cosine), x_im, sine, value=-1)
        moved_im = torch.addcmul(torch.addcmul(w_im, x_re, sine), x_im, cosine)
        return torch.cat([moved_re, moved_im], dim=-1)


def _scan(layer: _Layer, gap_BL1: Tensor, target_BLP: Tensor, jump_BLP: Tensor) -> Tensor:
    """Return the states right after each event, [B, L, 2P], which begin at zero.

    x_i = a_i x_(i-1) + b_i with complex a_i = exp(λ gap_i), b_i = (1 - a_i) w_(i-1) + jump_i; pairs (a, b) are combined over
    distances 1, 2, 4, …, so that the depth is log L.
    """
    left = (-layer.log_rate.exp() * gap_BL1).exp()
    turn = layer.frequency * gap_BL1
    a_re, a_im = left * turn.cos(), left * turn.sin()
    before = F.pad(target_BLP[:, :-1], (0, 0, 1, 0))  # the first event finds w = 0
    w_re, w_im = before.chunk(2, dim=-1)
    jump_re, jump_im = jump_BLP.chunk(2, dim=-1)
    b_re, b_im = jump_re + w_re - (a_re * w_re - a_im * w_im), jump_im + w_im - (a_re * w_im + a_im * w_re)
    distance = 1
    while distance < gap_BL1.shape[1]:
        c_re, c_im, d_re, d_im = (F.pad(part[:, :-distance], (0, 0, distance, 0)) for part in (a_re, a_im, b_re, b_im))
        b_re, b_im = b_re + a_re * d_re - a_im * d_im, b_im + a_re * d_im + a_im * d_re
        a_re, a_im = a_re * c_re - a_im * c_im, a_re * c_im + a_im * c_re
        distance *= 2
    return torch.cat([b_re, b_im], dim=-1)
