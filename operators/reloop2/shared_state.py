"""A state of one nameless lane as tensors that belong to no stream, and back. For operators with one memory for all streams."""

from __future__ import annotations

import torch

from operators.state import Patch, Rows, State

__all__ = ["from_shared", "to_shared"]

_DENSE, _ROWS = "lane.dense.", "lane.rows."


def to_shared(state: State) -> None:
    """Move ``dense`` and ``rows`` of a state of one lane into ``shared``; rows that do not all stand here into ``patches``."""
    for name, tensor in state.dense.items():
        state.shared[_DENSE + name] = tensor
    for name, rows in state.rows.items():
        if int(rows.count_N[0]) == int(rows.length_N[0]):
            state.shared[_ROWS + name] = rows.values_R
        else:
            state.patches[_ROWS + name] = Patch(rows.index_R, rows.values_R)
    state.dense, state.rows = {}, {}


def from_shared(state: State) -> State:
    """Return what ``to_shared`` was given, from a full state. Shares its tensors."""
    lane = State(meta=state.meta, additive=state.additive)
    for name, tensor in state.shared.items():
        if name.startswith(_DENSE):
            lane.dense[name.removeprefix(_DENSE)] = tensor
        elif name.startswith(_ROWS):
            lane.rows[name.removeprefix(_ROWS)] = Rows.full(torch.tensor([len(tensor)]), tensor)
        else:
            lane.shared[name] = tensor
    return lane
