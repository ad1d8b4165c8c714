"""From samples to the mel spectrogram in [0, 1], in one go or chunk by chunk with the same frames (spec 3).

Frame t sees the samples 256 t - 512 to 256 t + 511; beyond both ends of a stream the signal is reflected. Computed in float64,
so that neither chunks nor batches show in the float32 result. Knows nothing of files and rates: 22,050 Hz mono goes in.
"""

# N samples, T frames, M mel bands, W samples of a window, F bins of the spectrum

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.specvqgan.config import BANDS, HOP, RATE

__all__ = ["CLIP_FRAMES", "CLIP_SAMPLES", "WINDOW", "MelStream", "clip_mel", "mel_basis", "mel_of_windows", "one_shot_mel"]

WINDOW = 1024
"""Samples of a window."""
CLIP_SAMPLES = 10 * RATE
"""Samples of a clip of the published procedure: 10 s."""
CLIP_FRAMES = 860
"""Mel frames of a clip before it is cropped to 848."""

_HALF = WINDOW // 2
_LOW_HZ, _HIGH_HZ = 125.0, 7600.0
_FLOOR = 1e-5
_ROWS_AT_ONCE = 4096

# The Slaney scale: linear below 1 kHz, 27 bands per factor of 6.4 above.
_LINEAR_HZ = 200 / 3
_BEND_HZ, _BEND_MEL = 1000.0, 15.0
_LOG_STEP = math.log(6.4) / 27


def _to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _BEND_HZ else _BEND_MEL + math.log(hz / _BEND_HZ) / _LOG_STEP


def _to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < _BEND_MEL, mel * _LINEAR_HZ, _BEND_HZ * torch.exp(_LOG_STEP * (mel - _BEND_MEL)))


@functools.cache
def mel_basis() -> Tensor:
    """Return the filters [80, 513] float64: triangles on the Slaney scale, 125 to 7600 Hz, of equal area."""
    bins_F = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    edges = _to_hz(torch.linspace(_to_mel(_LOW_HZ), _to_mel(_HIGH_HZ), BANDS + 2, dtype=torch.float64))
    rising = (bins_F - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins_F) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0) * (2 / (edges[2:] - edges[:-2]))[:, None]


@functools.cache
def _analysis(device: torch.device) -> tuple[Tensor, Tensor]:
    # Filters as the official code holds them: rounded to float32.
    basis = mel_basis().float().double().T.contiguous()
    return torch.hann_window(WINDOW, dtype=torch.float64, device=device), basis.to(device)


def mel_of_windows(windows_TW: Tensor) -> Tensor:
    """Return the frames [T, 80] float32 in [0, 1] of windows [T, 1024]; windows of many streams may stand in one call."""
    if not len(windows_TW):  # PyTorch 2.11 refuses a transform of nothing
        return windows_TW.new_zeros(0, BANDS, dtype=torch.float32)
    hann_W, basis_FM = _analysis(windows_TW.device)
    parts = []
    for part_TW in torch.split(windows_TW, _ROWS_AT_ONCE):
        size_TF = torch.fft.rfft(part_TW.double() * hann_W).abs()
        level_TM = 20 * (size_TF @ basis_FM).clamp_min(_FLOOR).log10() - 20
        parts.append(((level_TM + 100) / 100).clamp(0, 1).float())
    return torch.cat(parts)


@dataclass(slots=True)
class MelStream:
    """What one stream needs between two chunks: at most 1,279 samples, and how far it is."""

    tail_N: Tensor = field(default_factory=lambda: torch.zeros(0))
    """The newest samples, float32; the first is sample ``256 frames - 512`` once the reflected ones stand before them."""
    samples: int = 0
    """Samples seen."""
    frames: int = 0
    """Frames given."""

    def push(self, samples_N: Tensor) -> Tensor:
        """Take samples in [-1, 1] and return the windows [T, 1024] that are complete now, for :func:`mel_of_windows`."""
        started = self.samples > _HALF
        self.tail_N = torch.cat([self.tail_N, samples_N.float()])
        self.samples += len(samples_N)
        if self.samples <= _HALF:
            return self.tail_N.new_zeros(0, WINDOW)
        if not started:
            self.tail_N = torch.cat([self.tail_N[1 : _HALF + 1].flip(0), self.tail_N])
        return self._complete()

    def finish(self) -> Tensor:
        """Return the last windows [T, 1024]. In all there are ``1 + samples // 256``, none for a stream without samples."""
        if self.samples == 0:
            return self.tail_N.new_zeros(0, WINDOW)
        wanted, missing = 1 + self.samples // HOP, _HALF + 1 - self.samples
        parts = []
        if missing > 0:  # too short to be reflected
            seen = self.samples
            parts.append(self.push(self.tail_N.new_zeros(missing)))
            self.samples = seen
        self.tail_N = torch.cat([self.tail_N, self.tail_N[-_HALF - 1 : -1].flip(0)])
        parts.append(self._complete())
        windows_TW = torch.cat(parts)
        surplus = self.frames - wanted
        self.frames = wanted
        return windows_TW[: len(windows_TW) - surplus] if surplus > 0 else windows_TW

    def _complete(self) -> Tensor:
        if len(self.tail_N) < WINDOW:
            return self.tail_N.new_zeros(0, WINDOW)
        windows_TW = self.tail_N.unfold(0, WINDOW, HOP)
        self.frames += len(windows_TW)
        self.tail_N = self.tail_N[len(windows_TW) * HOP :].clone()
        return windows_TW


def one_shot_mel(samples_N: Tensor) -> Tensor:
    """Return the mel spectrogram [80, 1 + N // 256] in [0, 1] of samples in [-1, 1] at 22,050 Hz."""
    stream = MelStream()
    return mel_of_windows(torch.cat([stream.push(samples_N), stream.finish()])).T


def clip_mel(samples_N: Tensor) -> Tensor:
    """Return the 860 frames of the published procedure: the first 10 s, zeros behind shorter sound (spec 3, step 2)."""
    cut_N = samples_N[:CLIP_SAMPLES]
    return one_shot_mel(torch.nn.functional.pad(cut_N, (0, CLIP_SAMPLES - len(cut_N))))[:, :CLIP_FRAMES]
