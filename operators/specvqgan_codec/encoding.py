"""Sound of streams to blocks of mel frames: resampled, cut, with what each stream still needs in preallocated banks.

Knows slots and samples, no rows and no codebook. A *piece* is sound without a break: it begins with a stream, after a long
pause, or where the sample rate changes, and its last block may be shorter.
"""

# N samples, T frames, M bands

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.specvqgan.codec import BlockStream, SoundBlock
from models.specvqgan.config import BANDS, COLUMN_FRAMES, RATE
from models.specvqgan.mel import MelStream
from models.specvqgan.resample import ResampleStream
from operators.banks import RowSpec, TailBank
from operators.pcm import HIGHEST_RATE, PcmRow
from operators.streams import Stream

__all__ = ["JITTER_US", "EncodeStream", "EncodedPiece", "SoundCutter"]

JITTER_US = 20_000
"""A row that begins so close to the end of the one before follows it."""

_MEL_TAIL = 1536
"""Samples that a mel front end keeps at most: a window and a hop."""
_FILTER_TAIL = 2 * math.ceil(64 * HIGHEST_RATE / (2 * RATE)) + 64
"""Samples that a resampler keeps at most."""
_SILENCE_AT_ONCE = 1 << 18


@dataclass(slots=True)
class EncodeStream(Stream):
    """Where a stream of sound is. Samples are counted at 22,050 Hz unless said otherwise."""

    rate: int = 0
    """Of the piece that is open; 0: none is."""
    begins: int = 0
    """Number of the piece's first sample in the stream."""
    total: int = 0
    """Samples in pieces that have ended."""
    taken: int = 0
    """Of the piece, at ``rate``."""
    given: int = 0
    filter_begins: int = 0
    samples: int = 0
    """Of the piece."""
    frames: int = 0
    """Mel frames of the piece."""
    cut: int = 0
    """Frames that went out in blocks."""
    anchor: int = 0
    """A sample of the piece, and its event time."""
    anchor_us: int = 0
    next_us: int = 0
    """Event time at the end of the last row."""
    gap: bool = False
    """The next block is the first after a break."""
    repaired: int = 0
    """The first sample of the piece that was no number and is in no block yet, and the one behind the last; none: equal."""
    repaired_end: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPiece:
    """A block, and what its row says."""

    block: SoundBlock
    sequence: int
    time_us: int
    status: str


class SoundCutter:
    """The sound of all streams of a shard on its way to blocks of ``columns`` columns."""

    def __init__(self, columns: int, max_gap_us: int, slots: int) -> None:
        self._columns, self._max_gap_us = columns, max_gap_us
        self._filter = TailBank("filter", RowSpec((), torch.float64), slots=slots, capacity=_FILTER_TAIL)
        self._windows = TailBank("windows", RowSpec(()), slots=slots, capacity=_MEL_TAIL)
        self._frames = TailBank("frames", RowSpec((BANDS,)), slots=slots, capacity=columns * COLUMN_FRAMES)

    @property
    def banks(self) -> tuple[TailBank, ...]:
        """All banks."""
        return self._filter, self._windows, self._frames

    def push(self, stream: EncodeStream, row: PcmRow, time_us: int) -> list[EncodedPiece]:
        """Take the sound of a row and return the blocks that are complete now."""
        done: list[EncodedPiece] = []
        if stream.rate:
            pause_us = time_us - stream.next_us
            if pause_us > self._max_gap_us or row.rate != stream.rate:
                done += self.finish(stream)
                stream.gap = True
            elif pause_us > JITTER_US:
                missing = round(pause_us * stream.rate / 1e6)
                while missing:
                    some = min(missing, _SILENCE_AT_ONCE)
                    done += self._take(stream, np.zeros(some))
                    missing -= some
                stream.next_us = time_us
            elif pause_us < -JITTER_US:  # the source's clock is slower than its samples
                stream.anchor, stream.anchor_us = round(stream.taken * RATE / stream.rate), time_us
                stream.next_us = time_us
        if not stream.rate:
            stream.rate, stream.begins = row.rate, stream.total
            stream.anchor, stream.anchor_us, stream.next_us = 0, time_us, time_us
        if row.repaired:
            first, end = ((stream.taken + moment) * RATE // row.rate for moment in (row.first_repaired, row.end_repaired))
            stream.repaired = stream.repaired if stream.repaired_end > stream.repaired else first
            stream.repaired_end = end + 1
        stream.next_us += round(len(row.samples_N) * 1_000_000 / row.rate)
        return done + self._take(stream, row.samples_N)

    def finish(self, stream: EncodeStream) -> list[EncodedPiece]:
        """End the piece that is open and return its last blocks."""
        if not stream.rate:
            return []
        resampler, blocks = self._load(stream)
        found = blocks.push(resampler.finish()) + blocks.finish()
        done = self._told(stream, found)
        stream.total = stream.begins + blocks.mel.samples
        stream.rate = stream.taken = stream.given = stream.filter_begins = 0
        stream.samples = stream.frames = stream.cut = stream.repaired = stream.repaired_end = 0
        for bank in self.banks:
            bank.release([stream.slot])
        return done

    def _take(self, stream: EncodeStream, samples_N: npt.NDArray[np.float64]) -> list[EncodedPiece]:
        if not len(samples_N):
            return []
        resampler, blocks = self._load(stream)
        found = blocks.push(resampler.push(torch.from_numpy(samples_N)))
        self._store(stream, resampler, blocks)
        return self._told(stream, found)

    def _told(self, stream: EncodeStream, blocks: Sequence[SoundBlock]) -> list[EncodedPiece]:
        done = []
        for block in blocks:
            end = block.start + block.samples
            is_repaired = stream.repaired < min(end, stream.repaired_end) and stream.repaired_end > block.start
            status = "repaired" if is_repaired else "gap" if stream.gap else "ok"
            stream.gap = False
            if end >= stream.repaired_end:
                stream.repaired = stream.repaired_end = 0
            time_us = stream.anchor_us + round((block.start - stream.anchor) * 1_000_000 / RATE)
            done.append(EncodedPiece(block, stream.begins + block.start, time_us, status))
        return done

    def _load(self, stream: EncodeStream) -> tuple[ResampleStream, BlockStream]:
        slot = stream.slot
        resampler = ResampleStream(stream.rate, self._filter.read(slot), stream.taken, stream.given, stream.filter_begins)
        mel = MelStream(self._windows.read(slot), stream.samples, stream.frames)
        return resampler, BlockStream(self._columns, mel, self._frames.read(slot), stream.cut)

    def _store(self, stream: EncodeStream, resampler: ResampleStream, blocks: BlockStream) -> None:
        slot, mel = stream.slot, blocks.mel
        stream.taken, stream.given, stream.filter_begins = resampler.taken, resampler.given, resampler.begins
        stream.samples, stream.frames, stream.cut = mel.samples, mel.frames, blocks.frames
        self._filter.write(slot, resampler.tail_N)
        self._windows.write(slot, mel.tail_N)
        self._frames.write(slot, blocks.waiting_TM)
