"""Sounds to learn from, at 22,050 Hz, with their spectrograms: cut into pieces that are drawn at random."""

# B batch, N samples, H bands, T mel frames

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from connectors.errors import ConfigError
from models.specvqgan.config import COLUMN_FRAMES, HOP, RATE
from models.specvqgan.mel import one_shot_mel

__all__ = ["SoundSet"]

_PEAK, _GAIN = 0.95, (0.3, 1.0)
_SILENT = 1 / 32768


@dataclass(frozen=True, slots=True, eq=False)
class SoundSet:
    """Sounds and their spectrograms; each of at least as many frames as any piece that is drawn."""

    samples: list[Tensor]
    """[N] each, a whole number of hops."""
    mels: list[Tensor]
    """[80, N / 256] each, in [0, 1]."""

    @classmethod
    def of(cls, sounds: Iterable[Tensor], least_frames: int, *, normalize: bool = False) -> SoundSet:
        """Take sounds [N] in [-1, 1]; those shorter than a piece get silence behind them.

        ``normalize``: bring each to a peak of 0.95, as the published training of the vocoder does. Raises ``ConfigError``
        where there is nothing to learn from.
        """
        samples, mels = [], []
        for sound_N in sounds:
            peak = float(sound_N.abs().max()) if len(sound_N) else 0.0
            if peak < _SILENT:
                continue
            level_N = sound_N.float() * (_PEAK / peak if normalize else 1.0)
            frames = max(least_frames, len(level_N) // HOP)
            level_N = torch.nn.functional.pad(level_N, (0, max(0, frames * HOP - len(level_N))))
            samples.append(level_N[: frames * HOP].contiguous())
            mels.append(one_shot_mel(level_N)[:, :frames].contiguous())
        if not samples:
            raise ConfigError("no sound to learn from: everything is silent or empty; give recordings")
        return cls(samples, mels)

    def split(self, share: float, least_frames: int) -> tuple[SoundSet, SoundSet]:
        """Return the beginnings of the sounds, and their ends: ``share`` of each, where it leaves a piece to learn from.

        Raises ``ConfigError`` where no sound is long enough for both.
        """
        parts: tuple[SoundSet, SoundSet] = (SoundSet([], []), SoundSet([], []))
        for sound_N, mel_HT in zip(self.samples, self.mels, strict=True):
            frames = mel_HT.shape[1]
            at = max(least_frames, int(frames * (1 - share)))
            for part, first, last in zip(parts, (0, at), (at, frames), strict=True):
                if last - first >= COLUMN_FRAMES:
                    part.samples.append(sound_N[first * HOP : last * HOP])
                    part.mels.append(mel_HT[:, first:last])
        if not parts[1].samples:
            raise ConfigError(
                f"{self.seconds:.1f} s of sound in {len(self.samples)} recordings: no end of one can be held out; give longer "
                "ones"
            )
        return parts

    @property
    def seconds(self) -> float:
        """Length of all sounds together."""
        return sum(len(sound_N) for sound_N in self.samples) / RATE

    def draw_mels(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Return pieces of spectrograms as the autoencoder takes them, [B, 1, 80, T] in [-1, 1]."""
        places = self._places(batch, frames, generator)
        return torch.stack([2 * self.mels[i][:, first : first + frames] - 1 for i, first in places])[:, None]

    def draw_waves(self, batch: int, samples: int, generator: torch.Generator, *, gain: bool = False) -> tuple[Tensor, Tensor]:
        """Return pieces as the vocoder learns them: spectrograms [B, 80, N / 256] in [0, 1] and samples [B, N].

        ``gain``: at random levels, 0.3 to 1 times the sound's own, as published; the spectrogram is then that of the piece.
        """
        frames = samples // HOP
        places = self._places(batch, frames, generator)
        real_BN = torch.stack([self.samples[i][first * HOP : (first + frames) * HOP] for i, first in places])
        if not gain:
            return torch.stack([self.mels[i][:, first : first + frames] for i, first in places]), real_BN
        real_BN = real_BN * torch.empty(batch, 1).uniform_(*_GAIN, generator=generator)
        return torch.stack([one_shot_mel(real_N)[:, :frames] for real_N in real_BN]), real_BN

    def _places(self, batch: int, frames: int, generator: torch.Generator) -> list[tuple[int, int]]:
        """Draw sound and first frame of pieces, every place as likely as every other one."""
        room = torch.tensor([mel_HT.shape[1] - frames + 1 for mel_HT in self.mels])
        ends = room.cumsum(0)
        flat_B = torch.randint(int(ends[-1]), (batch,), generator=generator)
        of_B = torch.searchsorted(ends, flat_B, right=True)
        first_B = flat_B - (ends - room)[of_B]
        return list(zip(of_B.tolist(), first_B.tolist(), strict=True))
