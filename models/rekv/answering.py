"""Answer side of ReKV: choose frames layer by layer, load them as context, and let text attend to it.

Reads blocks, never writes: a question leaves no trace in the encoding, and may be answered in another process. Several
questions, of one stream or of many, go through the decoder together, behind each other without padding.
"""

# B questions, L layers, G key/value heads, H query heads, R heads per group, M rows of a context, n tokens, D head dim,
# K chosen frames, S prefix tokens, A axes

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from models.rekv.attention import Reach, Sinks, attend
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.layouts import Laid
from models.rekv.one_row import OneRow
from models.rekv.rotary import Turn
from models.rekv.selection import frame_scores, select_frames
from models.rekv.session import StreamView
from models.rekv.steps import CompiledSteps
from models.rekv.store import whole_tokens
from models.uploads import upload

__all__ = ["Context", "Request", "read_text", "reading", "retrieve"]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is asked of one stream: token ids of the bare question, and what it sees or must take."""

    stream: StreamView
    question_ids_n: Tensor
    frames: Tensor | None = None
    """External retrieval: these frames (ascending numbers of blocks in the view) in every layer."""


@dataclass(slots=True, eq=False)
class Context:
    """Per layer what the questions of a batch attend to: prefix, chosen frames, then the text read so far.

    The context of a layer is re-indexed as consecutive tokens: prefix, frames in the order of time, text.
    """

    requests: Sequence[Request]
    room: int
    """Most text tokens of a question."""
    keys: list[Tensor] = field(default_factory=list)
    """Per layer [B, G, M, D], rotated."""
    values: list[Tensor] = field(default_factory=list)
    frames: list[list[Tensor]] = field(default_factory=list)
    """Per layer and question: the chosen frames, ascending."""
    scores: list[list[Tensor | None]] = field(default_factory=list)
    """Per layer and question: the score of every candidate, None if they were given."""
    lengths: list[list[int]] = field(default_factory=list)
    """Per layer and question: tokens of prefix and frames."""
    ends: list[list[int]] = field(default_factory=list)
    """Per layer and question: the position of the first text token."""
    text: list[int] = field(default_factory=list)
    """Per question: text tokens read."""
    turns: dict[int, Turn] = field(default_factory=dict)
    """Rotations of all text tokens from some position on: worked out once for all steps of an answer."""
    compiled: CompiledSteps | None = None
    """Whose buffers keys and values are."""


def reading(decoder: TextDecoder, config: ReKVConfig, context: Context) -> Callable[[Tensor], Tensor]:
    """Return what reads a token of each question [B] after the text so far, and returns the logits [B, V] of the next.

    By the steps that the context was made for; on a CPU one question's tokens by :class:`OneRow`.
    """
    if context.compiled is not None:
        starts, positions = (
            [[number + read for number, read in zip(numbers, context.text, strict=True)] for numbers in numbers_L]
            for numbers_L in (context.lengths, context.ends)
        )
        return context.compiled.reading(context.keys, starts, positions)
    longest = max(lengths[0] for lengths in context.lengths)
    if len(context.requests) == 1 and OneRow.fits(decoder) and longest + context.room <= config.window_tokens:
        text, read = _Text(decoder, config, context, [0], [1]), context.text[0]
        turns = [text._turn(layer, 0, context.room - read) for layer in range(decoder.layers)]
        return OneRow(decoder, context.keys, context.values, [lengths[0] + read for lengths in context.lengths], turns)

    def read_all(next_B: Tensor) -> Tensor:
        return decoder.logits(torch.cat(read_text(decoder, config, context, list(torch.split(next_B, 1)))))

    return read_all


@torch.inference_mode()
def retrieve(
    decoder: TextDecoder, config: ReKVConfig, requests: Sequence[Request], room: int, compiled: CompiledSteps | None = None
) -> tuple[Context, list[Tensor]]:
    """Choose and load the context of every question in every layer (paper section 3.2; spec: retrieval pass).

    ``room``: text tokens that will be read at most, answer included. ``compiled``: the context is for its steps, and ends with
    the next one. Returns the context without text, and the decoder's output for the questions ([n, C] each; empty where frames
    were given, which needs no pass).
    """
    most = max((len(r.question_ids_n) for r in requests if r.frames is None), default=0)
    context = Context(requests, max(room, most), text=[0] * len(requests))
    inner = [row for row, request in enumerate(requests) if request.frames is None]
    session = _Retrieval(decoder, config, context, inner)
    given = _sharing(requests)
    session.open_layers(compiled)
    for layer in range(decoder.layers):
        for rows, frames in given:
            session.load(layer, rows, frames.to(decoder.device), None)
    hidden = [decoder.embed(request.question_ids_n[:0]) for request in requests]
    if inner:
        ids_n = torch.cat([requests[row].question_ids_n for row in inner])
        hidden_nC = decoder.run(decoder.embed(ids_n), session)
        for row, part in zip(inner, torch.split(hidden_nC, list(session.counts)), strict=True):
            hidden[row] = part
    return context, hidden


def _sharing(requests: Sequence[Request]) -> list[tuple[list[int], Tensor]]:
    """Return the rows that were given the same frames of the same reader, which are loaded once, and these frames."""
    groups: dict[Hashable, list[int]] = {}
    for row, request in enumerate(requests):
        if request.frames is not None:
            key = (id(request.stream.blocks), id(request.stream.prefix), tuple(request.frames.tolist()))
            groups.setdefault(key, []).append(row)
    return [(rows, frames) for rows in groups.values() if (frames := requests[rows[0]].frames) is not None]


@torch.inference_mode()
def read_text(decoder: TextDecoder, config: ReKVConfig, context: Context, texts: Sequence[Tensor]) -> list[Tensor]:
    """Let every question read on: token ids [n] each. Returns the decoder's output, [n, C] each."""
    counts = [len(text) for text in texts]
    session = _Text(decoder, config, context, list(range(len(texts))), counts)
    hidden_nC = decoder.run(decoder.embed(torch.cat(list(texts))), session)
    context.text = [seen + count for seen, count in zip(context.text, counts, strict=True)]
    return list(torch.split(hidden_nC, counts))


class _Text:
    """Text of some questions attends to their context and to itself."""

    def __init__(
        self, decoder: TextDecoder, config: ReKVConfig, context: Context, rows: Sequence[int], counts: Sequence[int]
    ) -> None:
        self.decoder, self.config, self.context = decoder, config, context
        self.numbers, self.counts = rows, counts
        self.single = type(self) is _Text and len(rows) == len(context.requests) and set(counts) == {1}
        self.factor = decoder.rotary.factor
        self._sink_turn: Turn | None = None
        # Most layers and questions have contexts of equal length and share these.
        self._laid: dict[Hashable, tuple[Laid, Turn]] = {}
        self._reaches: dict[tuple[int, int, int], Reach] = {}
        self._steps: dict[tuple[int, ...], _OneToken] = {}

    def layer(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float) -> Tensor:
        return self.rows(index, torch.cat((query_HnD, key_GnD, value_GnD)), scale)

    def rows(self, index: int, rows_XnD: Tensor, scale: float) -> Tensor:
        heads, groups = self.decoder.heads, self.decoder.groups
        if self.factor != 1:
            turned = heads + groups
            rows_XnD = torch.cat((rows_XnD[:turned] / self.factor, rows_XnD[turned:]))
            scale *= self.factor**2
        if self.single:
            starts = [length + read for length, read in zip(self.context.lengths[index], self.context.text, strict=True)]
            if max(starts) < self.config.window_tokens:
                return self._one_token(index, starts, rows_XnD, scale)
        query_HnD, key_GnD, value_GnD = torch.split(rows_XnD, [heads, groups, groups])
        self.prepare(index, query_HnD)
        starts = [self.context.lengths[index][row] + self.context.text[row] for row in self.numbers]
        runs = self._runs(index, starts)
        lengths = [sum(self.counts[i] for i in run) for run in runs]
        queries, keys, values = (torch.split(x, lengths, dim=1) for x in (query_HnD, key_GnD, value_GnD))
        parts = [
            self._some(index, self.numbers[run.start], len(run), starts[run.start], query, key, value, scale)
            for run, query, key, value in zip(runs, queries, keys, values, strict=True)
        ]
        return _cat(parts, dim=1)

    def prepare(self, index: int, query_HnD: Tensor) -> None:
        """Get the layer's context ready before its text is read."""

    def _runs(self, index: int, starts: Sequence[int]) -> list[range]:
        """Return which neighbors attend together: those with as much context and text, all of which they see."""
        ends, window, runs = self.context.ends[index], self.config.window_tokens, [range(1)]
        for i in range(1, len(self.numbers)):
            row, before = self.numbers[i], self.numbers[i - 1]
            alike = (starts[i], self.counts[i], ends[row]) == (starts[i - 1], self.counts[i - 1], ends[before])
            if alike and row == before + 1 and starts[i] + self.counts[i] <= window:
                runs[-1] = range(runs[-1].start, i + 1)
            else:
                runs.append(range(i, i + 1))
        return runs

    def _some(
        self, index: int, row: int, count: int, start: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float
    ) -> Tensor:
        """Attend with the tokens of ``count`` questions from ``row`` on, n of each behind each other; each sees its own."""
        stream, window = self.context.requests[row].stream, self.config.window_tokens
        n = query_HnD.shape[1] // count
        stop = start + n
        turn = self._turn(index, row, n)
        held = (self.context.keys[index], self.context.values[index])
        keys_BGMD, values_BGMD = (every[row : row + count, :, :stop] for every in held)
        keys_BGMD[:, :, start:] = turn(_apart(key_GnD, count)).transpose(0, 1)
        values_BGMD[:, :, start:] = _apart(value_GnD, count).transpose(0, 1)
        sinks, visible = None, stream.prefix.tokens if stop > window else 0
        if visible:
            prefix = stream.prefix
            if self._sink_turn is None:
                self._sink_turn = self.decoder.rotary.turn(torch.tensor([[window - 1]]))
            sinks = Sinks(self._sink_turn(query_HnD), prefix.keys_LGSD[index], prefix.values_LGSD[index])  # of one question
        key = (start, stop, visible)
        if key not in self._reaches:
            self._reaches[key] = Reach.of(start, n, stop, window, sinks=(visible,), device=query_HnD.device)
        # Questions are further groups of heads, which the kernels keep apart.
        query_XnD = turn(_apart(query_HnD, count)).transpose(0, 1).flatten(0, 1)
        output_XnD = attend(query_XnD, keys_BGMD.flatten(0, 1), values_BGMD.flatten(0, 1), self._reaches[key], scale, sinks)
        return output_XnD.reshape(count, -1, n, output_XnD.shape[-1]).transpose(0, 1).flatten(1, 2)

    def _one_token(self, index: int, starts: Sequence[int], rows_XBD: Tensor, scale: float) -> Tensor:
        """Attend with one token of every question at once."""
        heads, groups = self.decoder.heads, self.decoder.groups
        step = self._step(index, starts)
        # One rotation for queries and keys: the step is bound by the number of calls.
        turned_YBD = step.turn(rows_XBD[: heads + groups])
        new_BGD, value_BGD = turned_YBD[heads:].transpose(0, 1), rows_XBD[heads + groups :].transpose(0, 1)
        query_BGRD = turned_YBD[:heads].transpose(0, 1).reshape(len(starts), groups, -1, turned_YBD.shape[-1])
        keys_BGMD, values_BGMD = self.context.keys[index], self.context.values[index]
        seen, places = step.seen, step.places
        if places is None:
            keys_BGMD.select(2, seen - 1).copy_(new_BGD)
            values_BGMD.select(2, seen - 1).copy_(value_BGD)
        else:
            keys_BGMD[places.row_B, :, places.start_B] = new_BGD
            values_BGMD[places.row_B, :, places.start_B] = value_BGD
        # Query heads that share keys are queries of one head.
        output_BGRD = F.scaled_dot_product_attention(
            query_BGRD,
            keys_BGMD.narrow(2, 0, seen),
            values_BGMD.narrow(2, 0, seen),
            attn_mask=None if places is None else places.seen_B11M,
            scale=scale,
        )
        return output_BGRD.flatten(1, 2).transpose(0, 1)

    def _step(self, index: int, starts: Sequence[int]) -> _OneToken:
        """Return what layers that have as long contexts share in a step of one token."""
        key = (*starts, *self.context.ends[index])
        if key not in self._steps:
            turns = [self._turn(index, row, 1) for row in self.numbers]
            turn = Turn(_cat([t.cos_ND for t in turns]), _cat([t.sin_ND for t in turns]))
            places = None if min(starts) == max(starts) else _Places.of(starts, turn.cos_ND.device)
            self._steps[key] = _OneToken(turn, max(starts) + 1, places)
        return self._steps[key]

    def _turn(self, index: int, row: int, count: int) -> Turn:
        """Rotation of the next ``count`` text tokens of a question."""
        end, read = self.context.ends[index][row], self.context.text[row]
        if end not in self.context.turns:
            positions_AN = torch.arange(end, end + self.context.room).unsqueeze(0)
            self.context.turns[end] = self.decoder.rotary.turn(positions_AN)
        return self.context.turns[end][read : read + count]

    def _lay(self, row: int, frames_K: Tensor) -> tuple[Laid, Turn]:
        """Places of the tokens of frames in a context, and the rotation of prefix and frames to theirs."""
        stream = self.context.requests[row].stream
        plan, sinks = stream.grid.chosen(frames_K), stream.prefix.tokens
        key = (type(stream.grid), plan, sinks)
        if key not in self._laid:
            laid = stream.grid.lay(plan, sinks)
            prefix_AS = torch.arange(sinks).expand(len(laid.positions_AM), -1)
            self._laid[key] = laid, self.decoder.rotary.turn(torch.cat((prefix_AS, laid.positions_AM), dim=1))
        return self._laid[key]


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the next token of each question stands, where these differ."""

    row_B: Tensor
    start_B: Tensor
    seen_B11M: Tensor

    @staticmethod
    def of(starts: Sequence[int], device: torch.device) -> _Places:
        start_B = upload(torch.tensor(starts), device)
        seen_BM = torch.arange(max(starts) + 1, device=device) <= start_B[:, None]
        return _Places(torch.arange(len(starts), device=device), start_B, seen_BM[:, None, None])


@dataclass(frozen=True, slots=True)
class _OneToken:
    """A step in which every question reads one token, in some layers."""

    turn: Turn
    """To the token's position, of each question."""
    seen: int
    """Most rows that a question sees, its token included."""
    places: _Places | None
    """None where all see as many."""


def _apart(x_XnD: Tensor, count: int) -> Tensor:
    """Return the tokens of ``count`` questions, behind each other, as [X, count, n, D]."""
    return x_XnD.view(len(x_XnD), count, -1, x_XnD.shape[-1])


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


class _Retrieval(_Text):
    """The bare questions, which choose each layer's frames before they attend to them."""

    def __init__(self, decoder: TextDecoder, config: ReKVConfig, context: Context, rows: Sequence[int]) -> None:
        counts = [len(context.requests[row].question_ids_n) for row in rows]
        super().__init__(decoder, config, context, rows, counts)

    def open_layers(self, compiled: CompiledSteps | None) -> None:
        """Make all layers, without any frame."""
        context, decoder = self.context, self.decoder
        count = len(context.requests)
        rows = max(
            request.stream.prefix.tokens
            + max(self.config.retrieve_frames, 0 if request.frames is None else len(request.frames))
            * request.stream.grid.tokens
            for request in context.requests
        )
        buffers = None if compiled is None else compiled.open(count, rows, context.room)
        if buffers is not None:
            context.compiled = compiled
            context.keys, context.values = buffers
        else:
            shape = (count, decoder.groups, rows + context.room, decoder.dim)
            # A mask is added to the scores of rows that a question has not reached: what stands there must be a number.
            context.keys, context.values = (
                [torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in range(decoder.layers)]
                for _ in range(2)
            )
        none = torch.empty(0, dtype=torch.long, device=decoder.device)
        for _ in range(decoder.layers):
            context.frames.append([none] * count)
            context.lengths.append([0] * count)
            context.ends.append([0] * count)
            context.scores.append([None] * count)

    def prepare(self, index: int, query_HnD: Tensor) -> None:
        """Score, choose and load. The picks of this layer are the best guess at the next one's."""
        config, requests = self.config, self.context.requests
        for row, part_HnD in zip(self.numbers, torch.split(query_HnD, list(self.counts), dim=1), strict=True):
            blocks = requests[row].stream.blocks
            chosen, scores_N = self.context.frames[index][row], None
            if blocks.below > blocks.first:
                scores_N = frame_scores(part_HnD, blocks.representatives(index), config.score)
                select = requests[row].stream.select
                if select is None:
                    chosen = select_frames(scores_N, config.retrieve_frames, config.chunk_frames, blocks.first)
                else:
                    chosen = select(index, scores_N)
                if index + 1 < self.decoder.layers:
                    blocks.prefetch(index + 1, chosen)
            self.load(index, [row], chosen, scores_N)

    def load(self, index: int, rows: Sequence[int], frames: Tensor, scores_N: Tensor | None) -> None:
        """Write prefix and frames, rotated to their new places, into a layer's context: that of questions which share it."""
        row, *others = rows
        context, stream = self.context, self.context.requests[row].stream
        laid, turn = self._lay(row, frames)
        sinks = stream.prefix.tokens
        length = sinks + laid.positions_AM.shape[1]
        for one in rows:
            context.frames[index][one], context.scores[index][one] = frames, scores_N
            context.lengths[index][one], context.ends[index][one] = length, laid.end
        keys_GMD, values_GMD = context.keys[index][row], context.values[index][row]
        keys_GMD[:, :sinks] = turn[:sinks](stream.prefix.keys_LGSD[index])
        values_GMD[:, :sinks] = stream.prefix.values_LGSD[index]
        if len(frames):
            keys_KGTD, values_KGTD = stream.blocks.gather(index, frames)
            keys_GMD[:, sinks:length] = turn[sinks:](whole_tokens(keys_KGTD, laid))
            values_GMD[:, sinks:length] = whole_tokens(values_KGTD, laid)
        if others:
            places = upload(torch.tensor(others), self.decoder.device)
            for held_BGMD in (context.keys[index], context.values[index]):
                held_BGMD[places, :, :length] = held_BGMD[row, :, :length]
