"""S2P2-style point process: layers of linear state spaces in continuous time with jumps at events (after Chang et al., 2024,
"Deep continuous-time state-space models for marked event sequences"). O(1) state per key, O(1) work per event and moment.

Layer l holds P complex numbers x. Between events x relaxes to w at complex rates λ (held input, so the solution is exact);
an event adds to x. The layer above sees silu(C x + d u) + u, normalized, where u is this layer's input. Prompts steer three
things: the first input, so what the states relax to; what an event adds (gain and shift of its embedding); and how the last
layer is read (gain and shift). All of it costs once per event. Held inputs are the right limits at the last event, so nothing
depends on the future.
"""

# B keys, G moments, D hidden, P complex numbers per layer, N layers

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.prompttpp.config import TppConfig
from models.prompttpp.process import Heard, Run, pick
from models.prompttpp.prompts import PromptReader
from models.prompttpp.recurrent import RecurrentProcess

__all__ = ["S2P2"]

_FASTEST = 20.0  # rate at the start, per unit of model time


class _Layer(nn.Module):
    def __init__(self, hidden: int, state: int, slowest: float) -> None:
        super().__init__()
        self.slowest = slowest
        self.log_rate, self.frequency = nn.Parameter(torch.empty(state)), nn.Parameter(torch.empty(state))
        self._draw_rates()
        self.jump = nn.Linear(hidden, 2 * state, bias=False)
        self.drive = nn.Linear(hidden, 2 * state)
        self.read = nn.Linear(2 * state, hidden)
        self.skip = nn.Parameter(torch.ones(hidden))
        self.norm = nn.LayerNorm(hidden)

    @torch.no_grad()
    def _draw_rates(self) -> None:
        """Spread the rates evenly in the logarithm, and draw frequencies below them.

        Nothing is computed on the device ``meta``, where only shapes are wanted: its kernels are Python, and one that combines
        tensors has failed there while other threads built networks on the CPU.
        """
        if self.log_rate.is_meta:
            return
        device, state = self.log_rate.device, len(self.log_rate)
        self.log_rate.copy_(torch.linspace(math.log(self.slowest), math.log(_FASTEST), state, device=device))
        self.frequency.copy_(torch.rand(state, device=device) * self.log_rate.exp())

    def rate(self) -> Tensor:
        """Return how fast the numbers forget, [P]: never at less than half the slowest rate of the start."""
        return self.log_rate.exp().clamp_min(0.5 * self.slowest)

    def out(self, state: Tensor, given: Tensor) -> Tensor:
        """Return what the layer above sees."""
        value: Tensor = self.norm(F.silu(torch.addcmul(self.read(state), self.skip, given)) + given)
        return value


class S2P2(RecurrentProcess):
    """Stacked linear state spaces with jumps."""

    steered = 5  # first input, gain and shift of embeddings, gain and shift of the last layer

    def __init__(self, config: TppConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(_Layer(config.hidden, config.state, config.slowest) for _ in range(config.layers))
        self.first = nn.Parameter(torch.zeros(config.hidden))

    def absorb(self, cells: dict[str, Tensor], gap_B: Tensor, event_BD: Tensor, prompt_BX: Tensor | None) -> dict[str, Tensor]:
        """Return the cells after an event."""
        given, event_BD, read = self._steered(event_BD, prompt_BX)
        after = {"input": given} | read
        states, targets = [], []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            before = self._relaxed(layer, cells["state"][:, number], cells["target"][:, number], gap_B[:, None])[:, 0]
            states.append(before + layer.jump(event_BD))
            targets.append(layer.drive(given))
            given = layer.out(states[-1], given)
        return {"state": torch.stack(states, dim=1), "target": torch.stack(targets, dim=1)} | after

    def _steered(self, event: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the first input, the embedding and how the last layer is read, as the prompts [..., X] want them."""
        if prompt is None:
            return self.first.expand_as(event), event, {}
        drive, gain, shift, *read = prompt.chunk(self.steered, dim=-1)
        return self.first + drive, torch.addcmul(event + shift, event, gain), {"read": torch.stack(read, dim=-2)}

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
        """Return the rates after each event of whole sequences: layer by layer, all events of a layer by a parallel scan."""
        prompts = prompts or self.reader()
        gap_BL = time_BL.diff(dim=1, prepend=time_BL[:, :1])
        event_BLD = self.types(type_BL)
        prompt_BLX, head, chosen = self._prompts_of(time_BL, type_BL, prompts, heard)
        given, event_BLD, cells = self._steered(event_BLD, prompt_BLX)
        cells |= {"input": given} | ({} if head is None else {"head": head})
        states, targets = [], []
        gap = gap_BL.to(event_BLD.dtype)[..., None]
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            targets.append(layer.drive(given))
            states.append(_scan(layer, gap, targets[-1], layer.jump(event_BLD)))
            given = layer.out(states[-1], given)
        cells |= {"state": torch.stack(states, dim=2), "target": torch.stack(targets, dim=2)}
        cells = {name: pick(cell, after_BC).flatten(0, 1) for name, cell in cells.items()}
        hidden = self.hidden(cells, lag_BLG.flatten(0, 1).to(event_BLD.dtype)).view(*lag_BLG.shape, -1)
        if chosen is None:
            return Run(self.read(cells, hidden), hidden.new_zeros(lag_BLG.shape[:2]), {}, hidden)
        return Run(self.read(cells, hidden), pick(chosen.cosine.sum(-1), after_BC), {0: chosen.index}, hidden)

    def hidden(self, cells: dict[str, Tensor], lag_BG: Tensor) -> Tensor:
        """Return the hidden states so long after the last event."""
        given = cells["input"][:, None].expand(-1, lag_BG.shape[1], -1)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            given = layer.out(self._relaxed(layer, cells["state"][:, number], cells["target"][:, number], lag_BG), given)
        if "read" not in cells:
            return given
        gain, shift = cells["read"][:, :1], cells["read"][:, 1:]
        return torch.addcmul(given + shift, given, gain)

    @staticmethod
    def _relaxed(layer: _Layer, state_BP: Tensor, target_BP: Tensor, lag_BG: Tensor) -> Tensor:
        """Return w + (x - w) exp(λ s), [B, G, 2P]."""
        lag = lag_BG[..., None]
        left = (-layer.rate() * lag).exp()
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
    left = (-layer.rate() * gap_BL1).exp()
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
