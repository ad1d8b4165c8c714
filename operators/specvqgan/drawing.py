"""Tokens of many streams, column by column: the ring of tokens, keys and values of each stream's window, and noise of its own.

Streams join and leave a batch freely: each is at its own position. A number that a token is drawn with is a pure function of
the stream's name, the user's seed and the token's place, so that a batch changes nothing. Where a window moves, its features
and the columns that it keeps are read once; else only the newest token is.
"""

# S slots, B streams, K codes, N tokens, E feature width, F features

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.bounds import largest_of
from models.specvqgan.config import ROWS
from models.specvqgan.steps import CompiledSteps, compiled_draws, drawn, eager_step
from models.specvqgan.transformer import KVCache, SoundTransformer
from models.uploads import upload, upload_values
from operators.banks import RowSpec, SlotBank, random_numbers, ring
from operators.specvqgan.looking import LARGEST
from operators.specvqgan.streams import FrameStream
from operators.state import State

__all__ = ["Drawing", "Turn", "token_noise"]

_NOTHING = -1


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A stream whose next column is to be made."""

    stream: FrameStream
    start: int
    """First column of its window."""
    feats_EF: Tensor | None
    """Features of the window; None: it has not moved, and has been read."""
    greedy: bool = False


def token_noise(seed_B: Tensor, place_B: Tensor, codes: int) -> Tensor:
    """Return exponential noise [B, K] float64 of tokens at these places of streams."""
    numbers_BK = random_numbers(seed_B, place_B, 0, codes)
    return -((numbers_BK.double() + 0.5) / 2.0**63).log().clamp_max(-1e-300)


class Drawing:
    """The transformer, and what it remembers of each stream."""

    def __init__(
        self,
        network: SoundTransformer,
        *,
        slots: int,
        columns: int,
        temperature: float,
        top_k: int | None,
        batch: int,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        """``columns``: that the ring keeps of a stream. ``compiled``: steps of one token are compiled."""
        self._network, self._temperature, self._batch = network, temperature, batch
        self._device = device
        self._dtype = next(network.parameters()).dtype
        self.tokens = SlotBank("tokens", self.token_specs(), slots=slots, capacity=columns, device=device)
        self.cache = KVCache.empty(network.config, slots, dtype=self._dtype, device=device)
        self._step = (CompiledSteps if compiled else eager_step)(network, self.cache)
        draw = partial(drawn, temperature=temperature, top_k=top_k)
        self._draw_one = compiled_draws(draw, device) if compiled else draw
        # Tokens of its window that the cache holds of a stream. What it holds follows from the ring, so no snapshot has it.
        self._held_S = np.full(slots, _NOTHING)
        self._proved: bool | None = None

    @staticmethod
    def token_specs() -> Mapping[str, RowSpec]:
        """Return what the ring keeps of a column."""
        return {"column": RowSpec((ROWS,), torch.int16)}

    def open(self, slot: int, seed: int) -> None:
        """Make a slot ready for a new stream."""
        self.tokens.open(self._slots([slot]), torch.tensor([seed]))
        self.forget(slot)

    def release(self, slot: int) -> None:
        """Forget a slot's tokens."""
        self.tokens.release(self._slots([slot]))
        self.forget(slot)

    def restart(self, slot: int) -> None:
        """Forget the tokens; the stream goes on."""
        self.tokens.clear(self._slots([slot]))
        self.forget(slot)

    def forget(self, slot: int | None = None) -> None:
        """Read the window again before the next token: of a slot, or of all."""
        self._held_S[slice(None) if slot is None else slot] = _NOTHING

    def must_read(self, stream: FrameStream) -> bool:
        """Tell whether the cache holds nothing of a stream's window."""
        return bool(self._held_S[stream.slot] == _NOTHING)

    def last(self, stream: FrameStream, columns: int) -> Tensor:
        """Return the tokens [5 x columns] of the newest columns of a stream."""
        numbers = torch.arange(stream.column - columns, stream.column, device=self._device)[None] % self.tokens.capacity
        readout = self.tokens.gather(self._slots([stream.slot]), numbers, torch.ones_like(numbers, dtype=torch.bool))
        return readout.rows["column"][0].reshape(-1).long()

    @torch.inference_mode()
    def draw(self, turns: Sequence[Turn], largest: float = math.inf) -> list[bool]:
        """Make the next column of streams; return which were made: for the others the transformer gave no number.

        On a device it is not asked for that where it is proved to give numbers: for features of up to ``largest``.
        """
        proved = self._device.type != "cpu" and largest <= LARGEST and self._gives_numbers()
        made = [False] * len(turns)
        order = sorted(range(len(turns)), key=lambda i: turns[i].stream.slot)  # slots side by side are read without a copy
        for start in range(0, len(turns), self._batch):
            chosen = order[start : start + self._batch]
            for i, good in zip(chosen, self._draw([turns[i] for i in chosen], proved), strict=True):
                made[i] = good
        return made

    def _gives_numbers(self) -> bool:
        """Tell whether the logits are finite whatever the features, up to a bound, and the tokens are.

        Followed through the pass without a cache, whose every number is one of those with it up to rounding.
        """
        if self._proved is None:
            network, config = self._network, self._network.config
            feats_1EF = torch.zeros(1, config.feature_width, config.features, dtype=self._dtype, device=self._device)
            tokens_1N = torch.zeros(1, config.positions - config.features, dtype=torch.int64, device=self._device)
            self._proved = math.isfinite(largest_of(network, (feats_1EF, LARGEST), (tokens_1N, 0.0)))
        return self._proved

    def _draw(self, turns: Sequence[Turn], proved: bool) -> list[bool]:
        config = self._network.config
        slots_B = torch.tensor([turn.stream.slot for turn in turns])
        known_B = torch.tensor([ROWS * (turn.stream.column - turn.start) for turn in turns])
        seed_B = upload_values([turn.stream.seed for turn in turns], self._device)
        place_B = upload_values([ROWS * (turn.stream.base + turn.stream.column) for turn in turns], self._device)
        greedy_B = upload_values([turn.greedy for turn in turns], self._device)
        column_BN = torch.zeros(len(turns), ROWS, dtype=torch.int64, device=self._device)
        good_B = torch.ones(len(turns), dtype=torch.bool, device=self._device)
        logits_BK = self._first(turns, slots_B, known_B)
        noise_NBK = self._noise(seed_B, place_B) if self._temperature else [None] * ROWS
        for n, noise_BK in enumerate(noise_NBK):
            if n:
                logits_BK = self._step(column_BN[:, n - 1], slots_B, known_B + (config.features + n - 1))
            column_BN[:, n], good_B = self._draw_one(logits_BK, good_B, greedy_B, noise_BK)
        good = [True] * len(turns) if proved else good_B.tolist()
        there_B = upload(slots_B, self._device)
        self.tokens.write(there_B, {"column": column_BN[:, None].to(torch.int16)}, good_B.long(), ring)
        for turn, is_good, known in zip(turns, good, known_B.tolist(), strict=True):
            # The last token of a column is read with the first of the next one.
            self._held_S[turn.stream.slot] = known + ROWS - 1 if is_good else _NOTHING
            if is_good:
                turn.stream.column += 1
            else:
                self.cache.clear(turn.stream.slot)
        return list(map(bool, good))

    def _noise(self, seed_B: Tensor, place_B: Tensor) -> Sequence[Tensor]:
        """Return the noise [B, K] of each token of a column that begins at these places."""
        place_NB = place_B + torch.arange(ROWS, device=self._device)[:, None]
        noise_XK = token_noise(seed_B.repeat(ROWS), place_NB.flatten(), self._network.config.codes)
        return noise_XK.view(ROWS, len(seed_B), -1).unbind()

    def _first(self, turns: Sequence[Turn], slots_B: Tensor, known_B: Tensor) -> Tensor:
        """Return the logits of the first token of each stream's column."""
        config = self._network.config
        logits_BK = torch.empty(len(turns), config.codes, device=self._device)
        reading = [i for i, turn in enumerate(turns) if turn.feats_EF is not None]
        going_on = [i for i, turn in enumerate(turns) if turn.feats_EF is None]
        for i in reading:
            turn = turns[i]
            assert turn.feats_EF is not None
            kept_1N = self.last(turn.stream, turn.stream.column - turn.start)[None]
            feats_1EF = turn.feats_EF[None].to(self._device, self._dtype)
            x_1NC = self._network.embed(feats_1EF, kept_1N if kept_1N.shape[1] else None)
            logits_BK[i] = self._network.read(x_1NC, self.cache, slots_B[i : i + 1], slots_B.new_zeros(1))[0]
        if going_on:
            chosen_G = torch.tensor(going_on)
            newest_G = torch.stack([self.last(turns[i].stream, 1) for i in going_on])[:, -1]
            start_G = known_B[chosen_G] + (config.features - 1)
            logits_BK[upload(chosen_G, self._device)] = self._step(newest_G, slots_B[chosen_G], start_G)
        return logits_BK

    def export(self, slots: Sequence[int], state: State, *, incremental: bool) -> None:
        """Add these streams to ``state``."""
        self.tokens.export(self._slots(slots), state, incremental=incremental)

    def load(self, slots: Sequence[int], state: State) -> None:
        """Take these streams from a full ``state``; forget all others."""
        self.tokens.release(self._slots(range(self.tokens.slots)))
        self.forget()
        if slots:
            self.tokens.load(self._slots(slots), state)

    def bytes(self) -> int:
        """Return the bytes of ring and cache."""
        return self.tokens.bytes()["device"] + self.cache.bytes()

    def _slots(self, slots: Sequence[int]) -> Tensor:
        return upload_values(list(slots), self._device, torch.int64)
