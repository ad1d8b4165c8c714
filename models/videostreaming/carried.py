"""What a memory is told to carry on in training: the colors of what was last seen, so that a past that no frame shows survives.

An answer is a weak teacher for it: it comes many clips after what it is about, through a selection and another network. So
while streams are learned, the facts that a memory must hold are read off each of its tokens by linear heads of their own, clip
by clip. What is learned is one step, from a memory that holds the past to the next that does; any number of steps follow
from it. The heads are no part of the model.
"""

# B streams, K clips, M memory tokens, D width, A facts, V values of a fact

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.films import COLORS, Event

__all__ = ["FACTS", "carried_facts", "carried_loss", "fact_heads"]

FACTS = ("newest", "newest_at_start")
"""Of a clip: the color of the newest event at its end, and of the newest one when it began."""

_VALUES = {color: value for value, color in enumerate(COLORS, start=1)}  # 0: there was none


def carried_facts(events: Sequence[Event], clips: int, frames: int) -> Tensor:
    """Return the facts of each clip of ``frames`` frames, [K, A]: a color's place counted from 1, or 0 for none.

    ``events`` come in the order of time, with frames counted from the stream's first one.
    """
    colors_E = torch.tensor([0, *(_VALUES[event.color] for event in events)])
    starts_E = torch.tensor([event.start for event in events])
    edges_K = torch.arange(clips + 1) * frames
    begun_K = (starts_E < edges_K[:, None]).sum(dim=1)
    return torch.stack((colors_E[begun_K[1:]], colors_E[begun_K[:-1]]), dim=1)


def fact_heads(width: int) -> nn.ModuleDict:
    """Return a linear head per fact for a memory's tokens."""
    return nn.ModuleDict({name: nn.Linear(width, 1 + len(COLORS)) for name in FACTS})


def carried_loss(heads: nn.ModuleDict, memories: Sequence[Sequence[Tensor]], facts_BKA: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over facts, clips and tokens, and the share of right values per fact [A].

    ``memories[k][b]``: [M, D] of clip k of stream b, equally many tokens in all; ``facts_BKA``: of the same clips.
    """
    memory_BKMD = torch.stack([torch.stack(list(row)) for row in memories], dim=1)
    losses, right = [], []
    for place, name in enumerate(FACTS):
        logits_BKMV = heads[name](memory_BKMD)
        wanted_BKM = facts_BKA[..., place, None].expand(logits_BKMV.shape[:-1])
        losses.append(cross_entropy(logits_BKMV.flatten(0, 2), wanted_BKM.flatten()))
        right.append((logits_BKMV.detach().argmax(dim=-1) == wanted_BKM).float().mean())
    return torch.stack(losses).mean(), torch.stack(right)
