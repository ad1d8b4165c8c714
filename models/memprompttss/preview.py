"""Signals with their states, as they are and as the network tells them so far: what a training leaves beside its checkpoint."""

# L samples, C channels

from __future__ import annotations

import numpy as np
from torch import Tensor

from connectors.charts import Lane, strip_chart
from models.memprompttss.model import MemPromptTSS
from models.memprompttss.offline import label_prompts, segment
from models.training import Picture, at_rest

__all__ = ["show_states"]

_PROMPTS, _SEED = 4, 0
_MOST_CHANNELS, _MOST_SAMPLES = 3, 4000


def show_states(model: MemPromptTSS, x_LC: Tensor, state_L: Tensor, channels: tuple[str, ...]) -> Picture:
    """Show a series of at least one window: signals, true states, states without prompts, and with a few (red) at drawn places.

    ``x_LC`` as it was measured; ``state_L``: -1 where the state is none that is learned.
    """
    x_LC, state_L = x_LC[:_MOST_SAMPLES], state_L[:_MOST_SAMPLES]
    lanes = [Lane(name=name, values_N=x_LC[:, place].numpy()) for place, name in enumerate(channels[:_MOST_CHANNELS])]
    lanes.append(Lane(name="true", states_N=state_L.numpy()))
    with at_rest(model):
        silent_L = segment(model, x_LC).state_L
        lanes.append(Lane(name=f"no prompt {_right(silent_L, state_L)}", states_N=silent_L.numpy()))
        if int(state_L.min()) >= 0:
            bank_ND, center_P = label_prompts(model, x_LC, state_L, _PROMPTS, _SEED)
            told_L = segment(model, x_LC, bank_ND).state_L
            name = f"{_PROMPTS} prompts {_right(told_L, state_L)}"
            lanes.append(Lane(name=name, states_N=told_L.numpy(), ticks=sorted(center_P.tolist())))
    return strip_chart(f"{len(x_LC)} samples, {len(np.unique(state_L[state_L >= 0]))} states", lanes)


def _right(said_L: Tensor, state_L: Tensor) -> str:
    known_L = state_L >= 0
    return f"({float((said_L == state_L)[known_L].float().mean()):.0%} right)" if bool(known_L.any()) else ""
