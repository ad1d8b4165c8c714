"""Sound as tokens and back, block by block: what the codec operator runs, for one stream or many (spec 8.4).

A block of mel frames is encoded on its own, so its tokens depend on its samples alone. The last block of a stream is shorter;
fewer than 16 frames are filled up with silence, and the number of samples tells what to cut. Tokens are stored bit-packed,
column by column: 10 bits each for 1,024 codes, 269 bits per second.
"""

# B blocks, H rows, W columns, T mel frames, M mel bands, N samples or tokens

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.config import BANDS, COLUMN_FRAMES, HOP, RATE, ROWS, WINDOW_COLUMNS
from models.specvqgan.mel import MelStream, mel_of_windows
from models.specvqgan.tokens import grid_of, sequence_of
from models.specvqgan.vocoder import Vocoder, VocoderStream

__all__ = [
    "BlockStream",
    "SoundBlock",
    "bit_rate",
    "bits_of",
    "decode_blocks",
    "encode_blocks",
    "pack_tokens",
    "sound_of_mels",
    "unpack_tokens",
]


def bits_of(codes: int) -> int:
    """Return the bits of a token of a codebook."""
    return max(1, (codes - 1).bit_length())


def bit_rate(codes: int) -> float:
    """Return the bits per second of sound."""
    return bits_of(codes) * ROWS * RATE / (HOP * COLUMN_FRAMES)


def pack_tokens(tokens_N: Tensor, codes: int) -> bytes:
    """Return tokens as bits, the first in the highest bits, filled up with zeros to whole bytes."""
    bits = bits_of(codes)
    places = np.arange(bits - 1, -1, -1)
    flat = (tokens_N.cpu().numpy().astype(np.int64)[:, None] >> places & 1).astype(np.uint8)
    return np.packbits(flat.reshape(-1)).tobytes()


def unpack_tokens(payload: bytes, columns: int, codes: int) -> Tensor:
    """Return the packed tokens [5 x columns]. Raise ``ValueError`` where they cannot be those of this codebook."""
    bits, count = bits_of(codes), ROWS * columns
    if columns < 1 or len(payload) != -(-count * bits // 8):
        raise ValueError(
            f"{len(payload)} bytes of tokens for {columns} columns of {ROWS} x {bits} bits; {-(-count * bits // 8)} are needed"
        )
    flat = np.unpackbits(np.frombuffer(payload, np.uint8))[: count * bits].reshape(count, bits).astype(np.int64)
    tokens = flat @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))
    if int(tokens.max()) >= codes:
        raise ValueError(f"token {int(tokens.max())} is not in a codebook of {codes}")
    return torch.from_numpy(tokens)


@dataclass(frozen=True, slots=True)
class SoundBlock:
    """A piece of sound that becomes one block of tokens."""

    mel_MT: Tensor
    """Its mel spectrogram, [80, T] in [0, 1]."""
    start: int
    """Number of the first sample."""
    samples: int
    """How many samples it stands for: 256 per frame, but for the last block of a stream."""


@dataclass(slots=True)
class BlockStream:
    """What one stream needs between two chunks of samples: less than a block."""

    columns: int = WINDOW_COLUMNS
    mel: MelStream = field(default_factory=MelStream)
    waiting_TM: Tensor = field(default_factory=lambda: torch.zeros(0, BANDS))
    """Frames of the block that is not complete."""
    frames: int = 0
    """Frames that were handed out in blocks."""

    def push(self, samples_N: Tensor) -> list[SoundBlock]:
        """Take samples at 22,050 Hz in [-1, 1] and return the blocks that are complete now."""
        return self._blocks(self.mel.push(samples_N), last=False)

    def finish(self) -> list[SoundBlock]:
        """Return the last blocks, with a frame for each hop of samples that has begun."""
        return self._blocks(self.mel.finish(), last=True)

    def _blocks(self, windows_TW: Tensor, *, last: bool) -> list[SoundBlock]:
        frames_TM = torch.cat([self.waiting_TM, mel_of_windows(windows_TW)])
        size, blocks = self.columns * COLUMN_FRAMES, []
        while len(frames_TM) >= size:
            blocks.append(self._block(frames_TM[:size]))
            frames_TM = frames_TM[size:]
        if last:
            left = max(0, -(-(self.mel.samples - self.frames * HOP) // HOP))
            if left:
                blocks.append(self._block(frames_TM[:left]))
            frames_TM = frames_TM[:0]
        self.waiting_TM = frames_TM.clone()
        return blocks

    def _block(self, frames_TM: Tensor) -> SoundBlock:
        start = self.frames * HOP
        self.frames += len(frames_TM)
        return SoundBlock(frames_TM.T.clone(), start, min(len(frames_TM) * HOP, self.mel.samples - start))


@torch.inference_mode()
def encode_blocks(
    model: Autoencoder, mels: Sequence[Tensor], nearest: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """Return the tokens [5 W] of each block's mel [80, T] in [0, 1], column by column.

    A block of T frames gives ceil(T / 16) columns: what is missing of the last one is silence. ``nearest``: finds the codes of
    places [..., D], where the codebook lies in a bank.
    """
    tokens = []
    for mel_MT in mels:
        # One block at a time: a block's tokens are the same bits whatever it comes with.
        missing = -mel_MT.shape[1] % COLUMN_FRAMES
        x_B1MT = torch.nn.functional.pad(2 * mel_MT - 1, (0, missing), value=-1.0)[None, None]
        grid_BHW = model.encode(x_B1MT) if nearest is None else nearest(model.encode_map(x_B1MT).permute(0, 2, 3, 1))
        tokens.append(sequence_of(grid_BHW)[0])
    return tokens


@torch.inference_mode()
def decode_blocks(model: Autoencoder, blocks: Sequence[Tensor]) -> list[Tensor]:
    """Return the mel [80, 16 W] in [0, 1] of each block of tokens [5 W]."""
    return [((model.decode(grid_of(tokens_N[None]))[0, 0] + 1) / 2).clamp(0, 1) for tokens_N in blocks]


@torch.inference_mode()
def sound_of_mels(vocoder: Vocoder, mels: Sequence[Tensor], samples: int) -> Tensor:
    """Return the sound [samples] of the mels of a whole stream, vocoded chunk by chunk."""
    stream = VocoderStream(torch.zeros(BANDS, 0))
    chunks = [stream.push(mel_MT) for mel_MT in mels] + [stream.finish()]
    return torch.cat([chunk.vocode(vocoder) for chunk in chunks if chunk is not None])[:samples]
