"""What ReKV keeps for one stream: the prompt prefix, the sliding window and the number of frames; the blocks lie in a store.

Plain state, changed by ``encoding`` only; ``answering`` gets a view of prefix and blocks. The window is a rotated copy
of the last tokens' keys and can be rebuilt from the blocks bit for bit, so a snapshot needs the blocks and ``frames`` only.
"""

# L layers, G key/value heads, S prefix tokens, C rows of the window buffer, T tokens per frame, D head dim

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.layouts import Layout
from models.rekv.store import ReadableBlocks, WritableBlocks, whole_tokens

__all__ = ["Prefix", "StreamState", "StreamView", "Window", "open_stream", "rebuild_window"]

_SPARE = 4  # the window buffer has 1/4 more rows than the window, so that rows move to its front only every W/4 tokens
_AT_ONCE = 16
"""Frames for which the buffer has spare rows at least where calls cost more than what they compute: on a GPU."""


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys (before rotation) and values of the prompt prefix, [L, G, S, D]; the same for all streams, which share it."""

    keys_LGSD: Tensor
    values_LGSD: Tensor
    hidden_SC: Tensor
    """The decoder's output for the prefix."""

    @property
    def tokens(self) -> int:
        """S: the number of sinks."""
        return self.keys_LGSD.shape[2]


@dataclass(slots=True, eq=False)
class Window:
    """The last tokens of a stream, prefix included: rotated keys, and values; rows [0, filled) are valid."""

    keys_LGCD: Tensor
    values_LGCD: Tensor
    base: int = 0
    """Index in the stream of the token in row 0."""
    filled: int = 0

    @property
    def rows(self) -> int:
        """C."""
        return self.keys_LGCD.shape[2]

    def make_room(self, rows: int, keep: int) -> None:
        """Move the last ``keep`` rows to the front if ``rows`` more do not fit behind them."""
        keep = min(keep, self.filled)
        if self.filled + rows <= self.rows or keep == self.filled:
            return
        for kept_GCD in (*self.keys_LGCD, *self.values_LGCD):  # layer by layer: what is copied aside stays small
            kept_GCD[:, :keep] = kept_GCD[:, self.filled - keep : self.filled].clone()
        self.base += self.filled - keep
        self.filled = keep


@dataclass(frozen=True, slots=True, eq=False)
class StreamView:
    """What a question needs of a stream; may live in another process than the encoding."""

    prefix: Prefix
    grid: Layout
    """Of the tokens of a block as it is read, which a bank may have made fewer than those of a frame."""
    blocks: ReadableBlocks
    select: Callable[[int, Tensor], Tensor] | None = None
    """Layer and scores [N] → frames to read, ascending, at most ``retrieve_frames``; default: ``selection.select_frames``."""


@dataclass(slots=True, eq=False)
class StreamState:
    """One stream while it is encoded. ``frames`` counts the frames whose blocks are complete."""

    prefix: Prefix
    grid: Layout
    """Knows the shapes of blocks before they are encoded."""
    blocks: WritableBlocks
    window: Window
    frames: int = 0
    observe: Callable[[int, Tensor], None] | None = None
    """Gets each layer's queries [F, H, T, D], before rotation, right before its blocks: for banks that judge tokens by them."""

    @property
    def tokens(self) -> int:
        """Tokens seen, prefix included."""
        return self.prefix.tokens + self.grid.start(self.frames)

    def bytes(self) -> int:
        """Size of the window buffer; the store counts the blocks."""
        return 2 * self.window.keys_LGCD.numel() * self.window.keys_LGCD.element_size()


def open_stream(decoder: TextDecoder, config: ReKVConfig, prefix: Prefix, grid: Layout, blocks: WritableBlocks) -> StreamState:
    """Return a stream without frames, on the decoder's device. ``blocks`` must have none.

    Raises ``ConfigError`` if the retrieved frames or the prefix do not fit into the window.
    """
    config.check_block(grid.tokens)
    if prefix.tokens > config.window_tokens:
        raise ConfigError(
            f"rekv: the prompt prefix has {prefix.tokens} tokens, more than window_tokens={config.window_tokens}; "
            "shorten the prefix or enlarge the window"
        )
    frames = 1 if decoder.device.type == "cpu" else min(config.encode_frames, _AT_ONCE)
    rows = config.window_tokens + max(config.window_tokens // _SPARE, frames * grid.tokens)
    shape = (decoder.layers, decoder.groups, rows, decoder.dim)
    keys = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
    stream = StreamState(prefix, grid, blocks, Window(keys, torch.zeros_like(keys)))
    _refill(decoder, config, stream, None)
    return stream


def rebuild_window(decoder: TextDecoder, config: ReKVConfig, stream: StreamState, blocks: ReadableBlocks) -> None:
    """Make the window of a stream that has these blocks, as after encoding them: bit for bit if they are kept as they were.

    Raises ``RecoveryError`` if blocks of the window are gone.
    """
    stream.frames = blocks.below
    _refill(decoder, config, stream, blocks)


def _refill(decoder: TextDecoder, config: ReKVConfig, stream: StreamState, blocks: ReadableBlocks | None) -> None:
    """Fill the window with the last W tokens, or all, from prefix and blocks."""
    window, prefix, grid = stream.window, stream.prefix, stream.grid
    base = max(stream.tokens - config.window_tokens, 0)
    token = max(base - prefix.tokens, 0)  # of the video, and the first in the window
    first = grid.holding(token, stream.frames)
    laid = grid.lay(grid.written(first, stream.frames), prefix.tokens)
    skip = token - grid.start(first)
    before_N = torch.arange(min(base, prefix.tokens), prefix.tokens)
    turn = decoder.rotary.turn(torch.cat((before_N.expand(len(laid.positions_AM), -1), laid.positions_AM[:, skip:]), dim=1))
    if blocks is not None and first < blocks.first:
        raise RecoveryError(
            f"rekv: the window reaches back to frame {first} but the bank begins with {blocks.first}; give the bank room for "
            f"the {stream.frames - first} frames of a window"
        )
    numbers = torch.arange(first, stream.frames, device=decoder.device)
    for layer in range(decoder.layers):
        rows = []
        for sinks_GSD, row in ((prefix.keys_LGSD[layer], 0), (prefix.values_LGSD[layer], 1)):
            parts = [sinks_GSD[:, base:]]
            if blocks is not None and stream.frames:
                parts.append(whole_tokens(blocks.gather(layer, numbers)[row], laid)[:, skip:])
            rows.append(torch.cat(parts, dim=1))
        window.filled = rows[0].shape[1]
        window.keys_LGCD[layer, :, : window.filled] = turn(rows[0])
        window.values_LGCD[layer, :, : window.filled] = rows[1]
    window.base = base
