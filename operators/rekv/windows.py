"""Attention windows in snapshots, for policies whose blocks are not read as they were written: no window can be made of those.

A window is a ring of the last W tokens, token t at position t modulo W, so that an increment holds the new tokens only.
"""

# N streams of a snapshot, R tokens over all streams, L layers, G key/value heads, C rows of a window buffer, D head dim

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.rekv.session import StreamState
from operators.state import Rows, State

__all__ = ["export_windows", "load_windows"]

_NAME = "windows"


def export_windows(
    streams: Sequence[StreamState], clean_frames: Sequence[int], state: State, window: int, *, incremental: bool
) -> None:
    """Add the last ``window`` tokens of these streams (in the order of ``state.streams``) to ``state``, [R, 2, L, G, D].

    Where incremental, only those of frames that are not among the first ``clean_frames`` of their stream.
    """
    lengths, counts, positions, values = [], [], [], []
    for stream, clean in zip(streams, clean_frames, strict=True):
        first = max(stream.tokens - window, 0)
        if incremental and clean:
            first = max(first, stream.prefix.tokens + stream.grid.start(clean))
        token_R = torch.arange(first, stream.tokens)
        position_R, order_R = (token_R % window).sort()
        row_R = (token_R[order_R] - stream.window.base).to(stream.window.keys_LGCD.device)
        both = [part_LGCD.index_select(2, row_R) for part_LGCD in (stream.window.keys_LGCD, stream.window.values_LGCD)]
        lengths.append(min(stream.tokens, window))
        counts.append(len(token_R))
        positions.append(position_R)
        values.append(torch.stack(both).permute(3, 0, 1, 2, 4).cpu())
    if streams:
        rows = torch.cat(positions), torch.cat(values)
        state.rows[_NAME] = Rows(torch.tensor(lengths), torch.tensor(counts), *rows)


def load_windows(streams: Sequence[StreamState], state: State, window: int) -> None:
    """Make the windows of these streams, which know their frames, from a full ``state``."""
    parts = torch.split(state.rows[_NAME].values_R, state.rows[_NAME].length_N.tolist())
    for stream, tokens_R2LGD in zip(streams, parts, strict=True):
        own, base = stream.window, max(stream.tokens - window, 0)
        place_R = torch.arange(base, stream.tokens) % window
        keys_LGRD, values_LGRD = _layers_first(tokens_R2LGD[place_R])
        own.base, own.filled = base, len(place_R)
        own.keys_LGCD[:, :, : own.filled] = keys_LGRD.to(own.keys_LGCD.device)
        own.values_LGCD[:, :, : own.filled] = values_LGRD.to(own.values_LGCD.device)


def _layers_first(tokens_R2LGD: Tensor) -> Tensor:
    return tokens_R2LGD.permute(1, 2, 3, 0, 4)
