"""Encode prompt prefix and frames: every layer's keys and values go to the window and, frame by frame, to the store.

Frames of many streams lie behind each other in one call of the decoder, without padding. Frames of a stream, and streams
that see equally many keys, share one attention per layer: on a GPU the time of a small call is that of its launches. How frames
are cut into calls has no influence on the result.
"""

# C hidden size, F frames of a call, T tokens per frame, L layers, G key/value heads, H query heads, n tokens, D head dim

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.rekv.attention import Reach, Sinks, attend
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.layouts import Run
from models.rekv.rotary import Turn
from models.rekv.session import Prefix, StreamState
from models.rekv.store import JointBlocks

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
    features: Sequence[Tensor | Sequence[Tensor]],
    *,
    outputs: bool = False,
    together: JointBlocks | None = None,
) -> list[Tensor]:
    """Append blocks to streams: ``features[i]``, F of [T, C], to ``streams[i]``; streams are different objects.

    T is what the stream's layout says, C the decoder's width, or a multiple of it: see :meth:`TextDecoder.run`. Features must
    be finite. ``together`` takes the blocks of all streams of a call at once; without it each stream's ``blocks`` takes its
    own. Returns the decoder's output per stream, [F T, C], if ``outputs``; otherwise empty tensors, and the last layer's
    attention, of which nothing is kept, is left out.
    """
    done = [0] * len(streams)
    collected: list[list[Tensor]] = [[] for _ in streams]
    while any(done[i] < len(features[i]) for i in range(len(streams))):
        left = config.encode_frames
        steps: list[_Step] = []
        for i, stream in enumerate(streams):
            waiting = min(len(features[i]) - done[i], left)
            if waiting:
                run = stream.grid.run(stream.frames, waiting)
                count = min(run.frames, _frames_at_once(stream, run.tokens, config.window_tokens))
                steps.append(_Step.of(config, stream, i, run._replace(frames=count)))
                left -= count
        steps.sort(key=lambda step: step.alike)  # those that share an attention lie side by side
        chunks: list[Tensor] = []
        for step in steps:
            blocks = features[step.number][done[step.number] : done[step.number] + step.frames]
            chunks += [blocks.flatten(0, 1)] if isinstance(blocks, Tensor) else blocks
            done[step.number] += step.frames
        embeds_nC = torch.cat(chunks).to(decoder.device, decoder.dtype)
        session = _FramePass(decoder, config, steps, together, skip_last=not outputs)
        hidden_nC = decoder.run(embeds_nC, session, keys_only=not outputs)
        for step, hidden in zip(steps, torch.split(hidden_nC, [step.tokens for step in steps]), strict=True):
            step.stream.window.filled += step.tokens
            step.stream.frames += step.frames
            if outputs:
                collected[step.number].append(hidden)
    empty = torch.empty(0, 0, dtype=decoder.dtype, device=decoder.device)
    return [torch.cat(parts) if parts else empty for parts in collected]


def _frames_at_once(stream: StreamState, tokens: int, window: int) -> int:
    """Return how many frames of so many tokens share one attention in a stream.

    As many as its buffer takes, but none across the filling of the window: before that every query sees all keys before it,
    afterwards the last ones; in between each has an edge of its own.
    """
    spare = (stream.window.rows - window) // tokens
    if stream.tokens >= window - 1:
        return spare
    return min(spare, max((window - stream.tokens) // tokens, 1))


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
    frames: int
    tokens: int
    start: int
    """Position of its first token in the stream."""
    seen: slice
    """Rows of the window that the frames see, their own included."""
    sinks: tuple[int, ...]
    """How many sinks each frame sees."""
    positions_AN: Tensor
    shown: slice
    """The tokens of a frame that are of its image."""
    alike: tuple[int, ...]
    """Steps that are equal here see the same, so that one attention serves them all."""

    @staticmethod
    def of(config: ReKVConfig, stream: StreamState, number: int, run: Run) -> _Step:
        """Make room in the stream's window and work out what its frames see."""
        frames, each, shown = run
        prefix, window = stream.prefix.tokens, config.window_tokens
        tokens = frames * each
        stream.window.make_room(tokens, window - 1)
        start, base = stream.tokens, stream.window.base
        stop = start + tokens
        low = max(start - window + 1, base)
        sinks = tuple(min(max(start + (f + 1) * each - window, 0), prefix) for f in range(frames))
        positions_AN = stream.grid.lay(stream.grid.written(stream.frames, stream.frames + frames), prefix).positions_AM
        alike = (tokens, stop - low, min(start, window + prefix), *sinks)
        return _Step(stream, number, frames, tokens, start, slice(low - base, stop - base), sinks, positions_AN, shown, alike)


@dataclass(frozen=True, slots=True)
class _Group:
    """Steps side by side that share an attention."""

    steps: Sequence[_Step]
    part: slice
    """Their tokens in the call."""
    reach: Reach


class _FramePass:
    """Write every layer's keys and values of new frames, and attend to window and sinks."""

    def __init__(
        self,
        decoder: TextDecoder,
        config: ReKVConfig,
        steps: Sequence[_Step],
        together: JointBlocks | None,
        skip_last: bool,
    ) -> None:
        self.steps = steps
        self.factor = decoder.rotary.factor
        self.heads, self.groups_of_heads = decoder.heads, decoder.groups
        self.last = decoder.layers - 1 if skip_last else -1
        self.counts = [step.tokens for step in steps]
        self.turn = decoder.rotary.turn(torch.cat([step.positions_AN for step in steps], dim=1))
        self.sink_turn: Turn | None = None
        self.groups: list[_Group] = []
        begin, overlap = 0, config.sink_overlap == "official"
        for _, members in itertools.groupby(steps, key=lambda step: (step.alike, id(step.stream.prefix))):
            group = list(members)
            one, stop = group[0], begin + sum(step.tokens for step in group)
            keys = one.seen.stop - one.seen.start
            reach = Reach.of(
                one.start, one.tokens, keys, config.window_tokens, sinks=one.sinks, overlap=overlap, device=decoder.device
            )
            self.groups.append(_Group(group, slice(begin, stop), reach))
            begin = stop
        if any(max(step.sinks) for step in steps):
            self.sink_turn = decoder.rotary.turn(torch.tensor([[config.window_tokens - 1]]))
        shapes = {(step.tokens // step.frames, step.shown.start, step.shown.stop) for step in steps}
        equal = len(shapes) == 1 and all(s.stream.observe is None for s in steps)
        self.write = together.begin([(s.number, s.frames) for s in steps]) if together is not None and equal else None

    def layer(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float) -> Tensor:
        return self.rows(index, torch.cat((query_HnD, key_GnD, value_GnD)), scale)

    def rows(self, index: int, rows_XnD: Tensor, scale: float) -> Tensor:
        heads, groups = self.heads, self.groups_of_heads
        both_YnD, value_GnD = torch.split(rows_XnD, [heads + groups, groups])
        if self.factor != 1:
            both_YnD, scale = both_YnD / self.factor, scale * self.factor**2
        query_HnD, key_GnD = torch.split(both_YnD, [heads, groups])
        self._store(index, query_HnD, key_GnD, value_GnD)
        skip = index == self.last
        turned = self.turn(key_GnD if skip else both_YnD)
        keys = torch.split(turned[0 if skip else len(query_HnD) :], self.counts, dim=1)
        for step, key, value in zip(self.steps, keys, torch.split(value_GnD, self.counts, dim=1), strict=True):
            window = step.stream.window
            rows = slice(window.filled, window.filled + step.tokens)
            window.keys_LGCD[index][:, rows] = key
            window.values_LGCD[index][:, rows] = value
        if skip:
            return query_HnD
        turned_HnD = turned[: len(query_HnD)]
        outputs = [self._attend(index, group, query_HnD, turned_HnD, scale) for group in self.groups]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _store(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor) -> None:
        """Hand the layer's blocks to the bank, before rotation."""
        if self.write is not None:
            frames = sum(step.frames for step in self.steps)
            keys_NGTD, values_NGTD = _by_frame(key_GnD, frames), _by_frame(value_GnD, frames)
            self.write(index, keys_NGTD, values_NGTD, keys_NGTD[:, :, self.steps[0].shown].float().mean(dim=2))
            return
        parts = (torch.split(x, self.counts, dim=1) for x in (query_HnD, key_GnD, value_GnD))
        for step, query, key, value in zip(self.steps, *parts, strict=True):
            keys_FGTD, values_FGTD = _by_frame(key, step.frames), _by_frame(value, step.frames)
            if step.stream.observe is not None:
                step.stream.observe(index, _by_frame(query, step.frames))
            step.stream.blocks.append(index, keys_FGTD, values_FGTD, keys_FGTD[:, :, step.shown].float().mean(dim=2))

    def _attend(self, index: int, group: _Group, query_HnD: Tensor, turned_HnD: Tensor, scale: float) -> Tensor:
        """Attend with all frames of a group at once: its streams lie behind each other as further heads."""
        steps, sinks = group.steps, None
        windows = [(step.stream.window, step.seen) for step in steps]
        keys_GMD = _joined([window.keys_LGCD[index][:, seen] for window, seen in windows])
        values_GMD = _joined([window.values_LGCD[index][:, seen] for window, seen in windows])
        visible = max(steps[0].sinks)
        if visible:
            assert self.sink_turn is not None
            prefix = steps[0].stream.prefix
            far_HnD = self.sink_turn(query_HnD[:, group.part])
            keys_GSD, values_GSD = (x[index, :, :visible] for x in (prefix.keys_LGSD, prefix.values_LGSD))
            repeated = (_joined([x] * len(steps)) for x in (keys_GSD, values_GSD))
            sinks = Sinks(_streams_apart(far_HnD, len(steps)), *repeated)
        apart = _streams_apart(turned_HnD[:, group.part], len(steps))
        output = attend(apart, keys_GMD, values_GMD, group.reach, scale, sinks)
        if len(steps) == 1:
            return output
        return output.view(len(steps), -1, *output.shape[1:]).transpose(0, 1).flatten(1, 2)


def _by_frame(x_HnD: Tensor, frames: int) -> Tensor:
    """Return [F, H, T, D]."""
    return x_HnD.reshape(len(x_HnD), frames, -1, x_HnD.shape[-1]).transpose(0, 1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _streams_apart(x_HnD: Tensor, streams: int) -> Tensor:
    """Return the heads of the first stream, of the second, ..: [B H, n / B, D]."""
    return x_HnD if streams == 1 else _by_frame(x_HnD, streams).flatten(0, 1)
