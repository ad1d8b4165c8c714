"""The steps of an answer, compiled: a token of every question is one call, on a GPU one CUDA graph.

Shapes must not change from step to step, so contexts lie in buffers that stay where they are, one set per bucket of questions
and of rows; how far each question has read is a tensor. What is hidden is computed, too, and masked.
"""

# B questions, b their bucket, L layers, G key/value heads, H query heads, R heads per group, M rows, D head dim, F frequencies

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.compiled import bucket, compile_alone, padded
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.rotary import Turn
from models.uploads import upload_values

__all__ = ["CompiledSteps", "Reading"]


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """Keys and values of a bucket, per layer [b, G, M, D], and the step that reads and writes them."""

    keys: list[Tensor]
    values: list[Tensor]
    step: Callable[..., Tensor]


class CompiledSteps:
    """Buffers and compiled steps of one decoder. Answers one batch of questions at a time."""

    def __init__(self, decoder: TextDecoder, config: ReKVConfig) -> None:
        self._decoder, self._config = decoder, config
        self._made: dict[tuple[int, int], _Buffers] = {}

    def open(self, questions: int, context: int, room: int) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return zeroed keys and values [B, G, M, D] per layer, for ``context`` rows of frames and ``room`` text tokens.

        None where steps are not compiled: decoders that run through the library, and text that may outgrow the window.
        """
        if not self._decoder.is_plain or context + room > self._config.window_tokens:
            return None
        size = bucket(questions), context + bucket(room)
        if size not in self._made:
            self._made[size] = self._make(*size)
        made = self._made[size]
        for held_bGMD in (*made.keys, *made.values):
            held_bGMD.zero_()
        return [x[:questions] for x in made.keys], [x[:questions] for x in made.values]

    def _make(self, questions: int, rows: int) -> _Buffers:
        decoder = self._decoder
        shape = (questions, decoder.groups, rows, decoder.dim)
        keys, values = (
            [torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in range(decoder.layers)] for _ in range(2)
        )
        for held_bGMD in (*keys, *values):
            torch._dynamo.mark_static_address(held_bGMD)  # without it a graph copies them in and out in every step

        def step(ids_b: Tensor, place_Lb: Tensor, position_Lb: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
            session = _Step(decoder, place_Lb, position_Lb, keys, values)
            return decoder.logits(decoder.run(decoder.embed(ids_b), session))

        return _Buffers(keys, values, compile_alone(step, decoder.device, whole=True))

    def reading(self, keys: Sequence[Tensor], starts: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> Reading:
        """Return what reads token after token in buffers of :meth:`open`, whose ``keys`` these are.

        ``starts``, ``positions``: per layer and question the row and the position of the next token.
        """
        questions, rows = keys[0].shape[0], keys[0].shape[2]
        made = self._made[bucket(questions), rows]
        assert made.keys[0].data_ptr() == keys[0].data_ptr()
        device = self._decoder.device
        return Reading(made, upload_values(starts, device, torch.int64), upload_values(positions, device, torch.float64))


class Reading:
    """A batch of questions that reads on and on."""

    def __init__(self, made: _Buffers, place_LB: Tensor, position_LB: Tensor) -> None:
        self._made, self._questions = made, place_LB.shape[1]
        size = bucket(self._questions)
        # Rows that fill a bucket write to their own part of the buffers, as the last question does to its.
        self._place_Lb = padded(place_LB.t(), size).t().contiguous()
        self._position_Lb = padded(position_LB.t(), size).t().contiguous()

    def __call__(self, next_B: Tensor) -> Tensor:
        """Read a token of each; return the logits [B, V] of the next."""
        made, ids_b = self._made, padded(next_B, self._place_Lb.shape[1])
        logits_bV = made.step(ids_b, self._place_Lb, self._position_Lb, made.keys, made.values)
        self._place_Lb = self._place_Lb + 1
        self._position_Lb = self._position_Lb + 1
        return logits_bV[: self._questions].clone()  # the memory of a graph is used again by its next call


class _Step:
    """One token of every question attends to its context: shapes depend on nothing that changes from step to step."""

    def __init__(
        self, decoder: TextDecoder, place_Lb: Tensor, position_Lb: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> None:
        self._keys, self._values, self._place_Lb = keys, values, place_Lb
        self._factor = decoder.rotary.factor
        angles_LbF = position_Lb[..., None] * decoder.rotary.frequencies_F
        cos_LbF, sin_LbF = angles_LbF.cos().float(), angles_LbF.sin().float()
        self._turn = Turn(torch.cat((cos_LbF, cos_LbF), dim=-1), torch.cat((-sin_LbF, sin_LbF), dim=-1))

    def layer(self, index: int, query_HbD: Tensor, key_GbD: Tensor, value_GbD: Tensor, scale: float) -> Tensor:
        """Return the attention output [H, b, D]."""
        if self._factor != 1:
            query_HbD, key_GbD, scale = query_HbD / self._factor, key_GbD / self._factor, scale * self._factor**2
        keys_bGMD, values_bGMD, place_b = self._keys[index], self._values[index], self._place_Lb[index]
        questions, groups, rows, dim = keys_bGMD.shape
        turn = Turn(self._turn.cos_ND[index], self._turn.sin_ND[index])
        number_b = torch.arange(questions, device=place_b.device)
        keys_bGMD[number_b, :, place_b] = turn(key_GbD).transpose(0, 1)
        values_bGMD[number_b, :, place_b] = value_GbD.transpose(0, 1)
        query_bGRD = turn(query_HbD).transpose(0, 1).reshape(questions, groups, -1, dim)
        # Spelled out: a compiler makes better code of it than the kernels that take a mask are for one query.
        hidden_b11M = (torch.arange(rows, device=place_b.device) > place_b[:, None])[:, None, None]
        logits_bGRM = (query_bGRD @ keys_bGMD.transpose(2, 3)).float() * scale
        weights_bGRM = logits_bGRM.masked_fill(hidden_b11M, -torch.inf).softmax(dim=-1).to(values_bGMD.dtype)
        return (weights_bGRM @ values_bGMD).flatten(1, 2).transpose(0, 1)
