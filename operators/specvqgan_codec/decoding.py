"""Blocks of mel frames to sound, piece by piece, with the vocoder's context of each stream in a preallocated bank.

Knows slots and frames, no rows and no codebook.
"""

# T frames, M bands, N samples

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.specvqgan.config import BANDS, HOP, RATE
from models.specvqgan.vocoder import CONTEXT, Vocoder, VocoderStream
from operators.banks import RowSpec, TailBank
from operators.specvqgan_codec.encoding import JITTER_US
from operators.streams import Stream

__all__ = ["MOST_COLUMNS", "DecodeStream", "MadeSound", "SoundMaker"]

MOST_COLUMNS = 1024
"""Of a block at most: attention over more takes minutes and gigabytes."""


@dataclass(slots=True)
class DecodeStream(Stream):
    """Where a stream of tokens is."""

    open: bool = False
    """A piece of sound is under way."""
    next: int = 0
    """Number of the sample behind the last block."""
    next_us: int = 0
    made: int = 0
    """Number of the next sample that is made."""
    anchor: int = 0
    """A sample, and its event time."""
    anchor_us: int = 0
    context: int = 0
    """How many of the vocoder's frames are context."""
    gap: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class MadeSound:
    """Samples, and what their row says."""

    samples_N: Tensor
    sequence: int
    time_us: int
    status: str


class SoundMaker:
    """The vocoder, and what it still needs of all streams of a shard."""

    def __init__(self, vocoder: Vocoder, slots: int, device: torch.device) -> None:
        self._vocoder = vocoder
        self.bank = TailBank("frames", RowSpec((BANDS,)), slots=slots, capacity=2 * CONTEXT, device=device)

    def push(self, stream: DecodeStream, mel_MT: Tensor, sequence: int, samples: int, time_us: int) -> list[MadeSound]:
        """Take a block and return the sound that is complete now; a block that is shorter than its columns ends its piece."""
        done: list[MadeSound] = []
        if stream.open and (sequence != stream.next or abs(time_us - stream.next_us) > JITTER_US):
            stream.gap = time_us - stream.next_us > JITTER_US
            done += self.finish(stream)
        if not stream.open:
            stream.open = True
            stream.made = stream.anchor = sequence
            stream.anchor_us = time_us
        frames = -(-samples // HOP)
        vocoding = self._load(stream)
        chunks = [vocoding.push(mel_MT[:, :frames])]
        stream.next = sequence + samples
        stream.next_us = stream.anchor_us + round((stream.next - stream.anchor) * 1_000_000 / RATE)
        if samples < HOP * mel_MT.shape[1]:
            chunks.append(vocoding.finish())
            stream.open = False
        self._store(stream, vocoding)
        parts = [chunk.vocode(self._vocoder) for chunk in chunks if chunk is not None]
        return done + self._told(stream, parts)

    def finish(self, stream: DecodeStream) -> list[MadeSound]:
        """End the piece that is under way and return its last samples."""
        if not stream.open:
            return []
        chunk = self._load(stream).finish()
        stream.open, stream.context = False, 0
        self.bank.release([stream.slot])
        return self._told(stream, [] if chunk is None else [chunk.vocode(self._vocoder)])

    def _told(self, stream: DecodeStream, parts: Sequence[Tensor]) -> list[MadeSound]:
        if not parts:
            return []
        samples_N = torch.cat(list(parts))[: stream.next - stream.made]
        if not len(samples_N):
            return []
        time_us = stream.anchor_us + round((stream.made - stream.anchor) * 1_000_000 / RATE)
        made = MadeSound(samples_N, stream.made, time_us, "gap" if stream.gap else "ok")
        stream.made += len(samples_N)
        stream.gap = False
        return [made]

    def _load(self, stream: DecodeStream) -> VocoderStream:
        return VocoderStream(self.bank.read(stream.slot).T, stream.context)

    def _store(self, stream: DecodeStream, vocoding: VocoderStream) -> None:
        if stream.open:
            stream.context = vocoding.context
            self.bank.write(stream.slot, vocoding.tail_MT.T)
        else:
            stream.context = 0
            self.bank.release([stream.slot])
