"""The MelGAN generator: mel spectrogram in [0, 1] to a waveform, whole or chunk by chunk with the same samples (spec 9, 8.3).

Six mel frames on each side of a chunk are all that its samples depend on; at the ends of a stream the network's own
reflection stands in for them. Weight normalization of a checkpoint is folded when it is loaded.
"""

# B batch, C channels, T frames, N samples, M mel bands

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.specvqgan.config import BANDS, HOP, VocoderConfig

__all__ = ["CONTEXT", "LEAST_FRAMES", "Vocoder", "VocoderChunk", "VocoderStream"]

CONTEXT = 6
"""Mel frames before and behind a frame that its samples depend on."""
LEAST_FRAMES = 4
"""Frames that the network needs, because it reflects three at either end."""

_RATIOS = (8, 8, 2, 2)
_SLOPE = 0.2


class ResidualBlock(nn.Module):
    """A dilated convolution of 3 and one of 1, beside a shortcut of 1."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.LeakyReLU(_SLOPE),
            nn.ReflectionPad1d(dilation),
            nn.Conv1d(channels, channels, 3, dilation=dilation),
            nn.LeakyReLU(_SLOPE),
            nn.Conv1d(channels, channels, 1),
        )
        self.shortcut = nn.Conv1d(channels, channels, 1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        out_BCT: Tensor = self.shortcut(x_BCT) + self.block(x_BCT)
        return out_BCT


class Vocoder(nn.Module):
    """``[B, 80, T] -> [B, 256 T]``, within [-1, 1]; at least four frames."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels * 2 ** len(_RATIOS)
        layers: list[nn.Module] = [nn.ReflectionPad1d(3), nn.Conv1d(BANDS, channels, 7)]
        for ratio in _RATIOS:
            up = nn.ConvTranspose1d(
                channels, channels // 2, 2 * ratio, ratio, padding=ratio // 2 + ratio % 2, output_padding=ratio % 2
            )
            channels //= 2
            layers += [nn.LeakyReLU(_SLOPE), up, *(ResidualBlock(channels, 3**i) for i in range(config.residual_blocks))]
        layers += [nn.LeakyReLU(_SLOPE), nn.ReflectionPad1d(3), nn.Conv1d(channels, 1, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, mel_BMT: Tensor) -> Tensor:
        """Return the samples [B, 256 T]."""
        samples_B1N: Tensor = self.model(mel_BMT)
        return samples_B1N[:, 0]


@dataclass(frozen=True, slots=True)
class VocoderChunk:
    """Frames to vocode, and which of them are wanted; the others are context."""

    mel_MT: Tensor
    first: int
    """The first wanted frame."""
    frames: int
    """Wanted frames."""

    def vocode(self, vocoder: Vocoder) -> Tensor:
        """Return the samples [256 x frames] of the wanted frames."""
        mel_MT, missing = self.mel_MT, LEAST_FRAMES - self.mel_MT.shape[1]
        if missing > 0:  # a whole sound of less than 46 ms
            mel_MT = F.pad(mel_MT, (0, missing), mode="replicate")
        samples_N: Tensor = vocoder(mel_MT[None])[0]
        return samples_N[HOP * self.first : HOP * (self.first + self.frames)]


@dataclass(slots=True)
class VocoderStream:
    """What one stream needs between two chunks: at most twelve frames."""

    tail_MT: Tensor = field(default_factory=lambda: torch.zeros(BANDS, 0))
    """Frames that are context of the next ones, then frames whose samples have not been made."""
    context: int = 0
    """How many of them are context."""

    def push(self, mel_MT: Tensor) -> VocoderChunk | None:
        """Take frames [80, T] and return the chunk that is complete now: all but the newest six."""
        self.tail_MT = torch.cat([self.tail_MT, mel_MT], dim=1)
        return self._chunk(self.tail_MT.shape[1] - self.context - CONTEXT)

    def finish(self) -> VocoderChunk | None:
        """Return the chunk of the last frames."""
        return self._chunk(self.tail_MT.shape[1] - self.context)

    def _chunk(self, frames: int) -> VocoderChunk | None:
        if frames < 1:
            return None
        chunk = VocoderChunk(self.tail_MT, self.context, frames)
        done = self.context + frames
        kept = min(done, CONTEXT)
        self.tail_MT, self.context = self.tail_MT[:, done - kept :].clone(), kept
        return chunk
