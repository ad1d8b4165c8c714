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
        value: Tensor = self.norm(F.silu(self.read(state) + self.skip * given) + given)
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
        real, imaginary = (state_BP - target_BP)[:, None].chunk(2, dim=-1)
        cosine, sine = left * turn.cos(), left * turn.sin()
        moved = torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
        return target_BP[:, None] + moved
