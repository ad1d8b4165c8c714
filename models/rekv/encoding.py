"""Encode prompt prefix and frames: every layer's keys and values go to the window and, frame by frame, to the store.

Frames of many streams lie behind each other in one call of the decoder, without padding; only attention, whose windows
differ, goes through them one by one. How frames are cut into calls has no influence on the result.
"""

# C hidden size, F frames of a call, T tokens per frame, L layers, G key/value heads, H query heads, n tokens, D head dim

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.rekv.attention import Reach, Sinks, attend
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.rotary import Turn
from models.rekv.session import Prefix, StreamState

__all__ = ["encode_frames", "encode_prefix"]


@torch.inference_mode()
def encode_prefix(decoder: TextDecoder, ids_S: Tensor) -> Prefix:
    """Return keys and values of the prompt prefix (token ids [S], may be empty). Depends on nothing else."""
    session = _PrefixPass(decoder, ids_S.shape[0])
    if ids_S.shape[0] == 0:
        empty = torch.empty(decoder.layers, decoder.groups, 0, decoder.dim, dtype=decoder.dtype, device=decoder.device)
        return Prefix(empty, empty, decoder.embed(ids_S))
    hidden_SC = decoder.run(decoder.embed(ids_S), session)
    return Prefix(torch.stack(session.keys), torch.stack(session.values), hidden_SC)


@torch.inference_mode()
def encode_frames(
    decoder: TextDecoder,
    config: ReKVConfig,
    streams: Sequence[StreamState],
    features: Sequence[Tensor],
    *,
    outputs: bool = False,
) -> list[Tensor]:
    """Append frames to streams: ``features[i]``, [F, T, C] with any F, to ``streams[i]``; streams are different objects.

    Features must be finite. Returns the decoder's output per stream, [F T, C], if ``outputs``;
    otherwise empty tensors, and the last layer's attention, of which nothing is kept, is left out.
    """
    done = [0] * len(streams)
    collected: list[list[Tensor]] = [[] for _ in streams]
    while any(done[i] < features[i].shape[0] for i in range(len(streams))):
        left = config.encode_frames
        steps: list[_Step] = []
        chunks: list[Tensor] = []
        for i, stream in enumerate(streams):
            spare = (stream.window.rows - config.window_tokens) // stream.grid.tokens
            count = min(features[i].shape[0] - done[i], spare, left)
            if count:
                offset = sum(step.tokens for step in steps)
                steps.append(_Step.of(decoder, config, stream, i, offset, count))
                chunks.append(features[i][done[i] : done[i] + count].flatten(0, 1))
                done[i] += count
                left -= count
        embeds_nC = torch.cat(chunks).to(decoder.device, decoder.dtype)
        session = _FramePass(decoder, config, steps, skip_last=not outputs)
        hidden_nC = decoder.run(embeds_nC, session, keys_only=not outputs)
        for step in steps:
            step.stream.window.filled += step.tokens
            step.stream.frames += step.frames
            if outputs:
                collected[step.number].append(hidden_nC[step.offset : step.offset + step.tokens])
    empty = torch.empty(0, 0, dtype=decoder.dtype, device=decoder.device)
    return [torch.cat(parts) if parts else empty for parts in collected]


class _PrefixPass:
    """Causal attention over the prefix, keeping raw keys and values."""

    def __init__(self, decoder: TextDecoder, tokens: int) -> None:
        self.turn = decoder.rotary.turn(torch.arange(tokens).unsqueeze(0))
        self.factor = decoder.rotary.factor
        self.reach = Reach.of(0, tokens, tokens, tokens, device=decoder.device)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def layer(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float) -> Tensor:
        self.keys.append(key_GnD / self.factor if self.factor != 1 else key_GnD)
        self.values.append(value_GnD)
        # The decoder has multiplied queries and keys by the factor already, and rotation does not change lengths.
        return attend(self.turn(query_HnD), self.turn(key_GnD), value_GnD, self.reach, scale)


@dataclass(slots=True)
class _Step:
    """Frames of one stream in one call."""

    stream: StreamState
    number: int
    """Of the stream in the caller's list."""
    offset: int
    """Of its first token in the call."""
    frames: int
    tokens: int
    turn: Turn
    views: list[tuple[slice, slice, int, Reach]]
    """Per frame: its tokens in the step, rows of the window, visible sinks, who sees what."""

    @staticmethod
    def of(decoder: TextDecoder, config: ReKVConfig, stream: StreamState, number: int, offset: int, frames: int) -> _Step:
        """Make room in the stream's window and work out what each frame sees."""
        tokens, sinks, window = stream.grid.tokens, stream.prefix.tokens, config.window_tokens
        stream.window.make_room(frames * tokens, window - 1)
        begin, base = stream.tokens, stream.window.base
        positions_AN = stream.grid.positions(begin, begin + frames * tokens, sinks, stream.frames + frames)
        views = []
        for frame in range(frames):
            start = begin + frame * tokens
            low = max(start - window + 1, base)
            visible = min(max(start + tokens - window, 0), sinks)
            overlap = config.sink_overlap == "official"
            reach = Reach.of(start, tokens, start + tokens - low, window, sinks=visible, overlap=overlap, device=decoder.device)
            inside = slice(frame * tokens, (frame + 1) * tokens)
            views.append((inside, slice(low - base, start + tokens - base), visible, reach))
        return _Step(stream, number, offset, frames, frames * tokens, decoder.rotary.turn(positions_AN), views)


class _FramePass:
    """Write every layer's keys and values of new frames, and attend to window and sinks."""

    def __init__(self, decoder: TextDecoder, config: ReKVConfig, steps: Sequence[_Step], skip_last: bool) -> None:
        self.steps = steps
        self.factor = decoder.rotary.factor
        self.last = decoder.layers - 1 if skip_last else -1
        self.sink_turn = decoder.rotary.turn(torch.tensor([[config.window_tokens - 1]]))

    def layer(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float) -> Tensor:
        if self.factor != 1:
            query_HnD, key_GnD, scale = query_HnD / self.factor, key_GnD / self.factor, scale * self.factor**2
        skip = index == self.last
        outputs = [self._step(index, step, query_HnD, key_GnD, value_GnD, scale, skip) for step in self.steps]
        return query_HnD if skip else torch.cat(outputs, dim=1)

    def _step(
        self, index: int, step: _Step, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float, skip: bool
    ) -> Tensor:
        part, window, prefix = slice(step.offset, step.offset + step.tokens), step.stream.window, step.stream.prefix
        query_HnD, key_GnD, value_GnD = query_HnD[:, part], key_GnD[:, part], value_GnD[:, part]
        keys_GCD, values_GCD = window.keys_LGCD[index], window.values_LGCD[index]
        rows = slice(window.filled, window.filled + step.tokens)
        keys_GCD[:, rows] = step.turn(key_GnD)
        values_GCD[:, rows] = value_GnD
        keys_FGTD = key_GnD.reshape(len(key_GnD), step.frames, -1, key_GnD.shape[-1]).transpose(0, 1)
        values_FGTD = value_GnD.reshape(keys_FGTD.transpose(0, 1).shape).transpose(0, 1)
        if step.stream.observe is not None:
            queries_HFTD = query_HnD.reshape(len(query_HnD), step.frames, -1, query_HnD.shape[-1])
            step.stream.observe(index, queries_HFTD.transpose(0, 1))
        step.stream.blocks.append(index, keys_FGTD, values_FGTD, keys_FGTD.float().mean(dim=2))
        if skip:
            return query_HnD
        turned_HnD, outputs = step.turn(query_HnD), []
        for inside, seen, visible, reach in step.views:
            sinks = None
            if visible:
                far_HnD = self.sink_turn(query_HnD[:, inside])
                sinks = Sinks(far_HnD, prefix.keys_LGSD[index, :, :visible], prefix.values_LGSD[index, :, :visible])
            outputs.append(attend(turned_HnD[:, inside], keys_GCD[:, seen], values_GCD[:, seen], reach, scale, sinks))
        return torch.cat(outputs, dim=1)
