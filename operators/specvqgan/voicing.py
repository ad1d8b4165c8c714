"""From columns of tokens to sound: each decode sees the newest window, is faded into the one before, and is vocoded in chunks.

Knows slots and columns, no rows. What each stream still needs lies in preallocated banks.
"""

# T frames, M bands, N samples or tokens

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.config import BANDS, COLUMN_FRAMES
from models.specvqgan.tokens import grid_of
from models.specvqgan.vocoder import CONTEXT, Vocoder, VocoderStream
from operators.banks import PoolBank, RowSpec, TailBank
from operators.specvqgan.streams import FrameStream

__all__ = ["Voicing"]

_FRAME = RowSpec((BANDS,))


@dataclass(slots=True, eq=False)
class Voicing:
    """The codebook, decoder and vocoder, and what they need of all streams of a shard."""

    autoencoder: Autoencoder
    vocoder: Vocoder
    codebook: PoolBank
    fade: int
    """Columns."""
    faded: TailBank
    """Frames that are held back until the next decode."""
    frames: TailBank
    """Of the vocoder."""

    @staticmethod
    def banks_of(fade: int, slots: int, device: torch.device) -> tuple[TailBank, TailBank]:
        """Allocate both banks."""
        held = max(1, fade * COLUMN_FRAMES)
        return (
            TailBank("faded", _FRAME, slots=slots, capacity=held, device=device),
            TailBank("vocoded", _FRAME, slots=slots, capacity=2 * CONTEXT, device=device),
        )

    def release(self, slot: int) -> None:
        """Forget what a stream has waiting."""
        self.faded.release([slot])
        self.frames.release([slot])

    @torch.inference_mode()
    def voice(self, stream: FrameStream, tokens_N: Tensor, *, last: bool) -> Tensor:
        """Decode the newest columns, which reach back before what is held; return the samples [N] that are complete now.

        ``last``: nothing is held back.
        """
        code_1HWD = self.codebook.gather(grid_of(tokens_N[None]), "key")
        mel_MT = (self.autoencoder.decode_map(code_1HWD.permute(0, 3, 1, 2))[0, 0] + 1) / 2
        held_TM = self.faded.read(stream.slot)
        fresh = (stream.column - stream.voiced) * COLUMN_FRAMES + len(held_TM)
        new_TM = mel_MT.T[mel_MT.shape[1] - fresh :].clone()
        if len(held_TM):
            weight_T1 = torch.arange(1, len(held_TM) + 1, device=new_TM.device)[:, None] / (len(held_TM) + 1)
            new_TM[: len(held_TM)] = (1 - weight_T1) * held_TM + weight_T1 * new_TM[: len(held_TM)]
        keep = 0 if last else min(self.fade * COLUMN_FRAMES, len(new_TM))
        self.faded.write(stream.slot, new_TM[len(new_TM) - keep :])
        stream.voiced = stream.column
        vocoding = VocoderStream(self.frames.read(stream.slot).T, stream.context)
        chunks = [vocoding.push(new_TM[: len(new_TM) - keep].T)]
        if last:
            chunks.append(vocoding.finish())
        else:
            self.frames.write(stream.slot, vocoding.tail_MT.T)
            stream.context = vocoding.context
        parts = [chunk.vocode(self.vocoder) for chunk in chunks if chunk is not None]
        return torch.cat(parts) if parts else torch.zeros(0, device=mel_MT.device)
