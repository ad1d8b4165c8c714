"""From 16-bit samples of any rate and channels to mono at 22,050 Hz, chunk by chunk with the same samples (spec 3).

Channels are averaged. The low-pass is a windowed sinc (Kaiser 8.6) with its edge at 0.97 of the lower Nyquist frequency and 64
input samples to a side at 44.1 kHz and below; before and behind a stream there is silence.
"""

# N input samples, M output samples, C channels, W taps, Q phases

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.specvqgan.config import RATE

__all__ = ["ResampleStream", "mono", "resample"]

_BETA = 8.6
_EDGE = 0.97
_SIDE = 64
_ROWS_AT_ONCE = 8192


def mono(samples_NC: Tensor) -> Tensor:
    """Return the average of the channels [N] float64 in [-1, 1) of 16-bit samples [N, C]; L = -R is silence."""
    return samples_NC.double().mean(1) / 32768


def _side(rate: int) -> int:
    return math.ceil(_SIDE * max(1.0, rate / (2 * RATE)))


@functools.lru_cache(maxsize=8)
def _taps(rate: int) -> Tensor:
    """Return the filter [Q, 2 x side] float64 of each phase: weights of the inputs around an output."""
    phases, side = RATE // math.gcd(rate, RATE), _side(rate)
    away_QW = (
        torch.arange(-side + 1, side + 1, dtype=torch.float64) - torch.arange(phases, dtype=torch.float64)[:, None] / phases
    )
    edge = _EDGE * min(1.0, RATE / rate)
    window_QW = torch.special.i0(_BETA * (1 - (away_QW / side).square()).clamp_min(0).sqrt())
    taps_QW = edge * torch.sinc(edge * away_QW) * window_QW
    even_QW: Tensor = taps_QW / taps_QW.sum(1, keepdim=True)  # a constant stays one
    return even_QW


@dataclass(slots=True)
class ResampleStream:
    """What one stream needs between two chunks: the filter's reach, and how far it is."""

    rate: int
    tail_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    taken: int = 0
    """Samples taken."""
    given: int = 0
    """Samples given."""
    begins: int = 0
    """Number of the first sample of the tail; negative: silence before the stream."""

    def push(self, samples_N: Tensor) -> Tensor:
        """Take samples [N] at ``rate`` and return those at 22,050 Hz [M] float32 that they complete."""
        self.taken += len(samples_N)
        if self.rate == RATE:
            self.given = self.taken
            return samples_N.float()
        if self.taken == len(samples_N) and not len(self.tail_N):
            before = _side(self.rate) - 1
            self.tail_N, self.begins = samples_N.new_zeros(before, dtype=torch.float64), -before
        self.tail_N = torch.cat([self.tail_N, samples_N.double()])
        # Output m needs inputs up to floor(m rate / 22050) + side.
        step, phases = self._step()
        last = self.taken - 1 - _side(self.rate)
        return self._make((last * phases + phases - 1) // step + 1 if last >= 0 else 0)

    def finish(self) -> Tensor:
        """Return the last samples [M]. In all there are ``ceil(taken x 22050 / rate)``."""
        if self.rate == RATE or not self.taken:
            return torch.zeros(0)
        step, phases = self._step()
        self.tail_N = torch.cat([self.tail_N, self.tail_N.new_zeros(_side(self.rate) + 1)])
        return self._make(-(-self.taken * phases // step))

    def _step(self) -> tuple[int, int]:
        common = math.gcd(self.rate, RATE)
        return self.rate // common, RATE // common

    def _make(self, until: int) -> Tensor:
        """Return the outputs from ``given`` to ``until``, and drop what no later one needs."""
        step, phases = self._step()
        side, taps_QW = _side(self.rate), _taps(self.rate)
        parts = []
        while self.given < until:
            m_M = torch.arange(self.given, min(until, self.given + _ROWS_AT_ONCE))
            first_M = m_M * step // phases - side + 1 - self.begins
            parts.append((self.tail_N.unfold(0, 2 * side, 1)[first_M] * taps_QW[m_M * step % phases]).sum(1))
            self.given += len(m_M)
        keep = self.given * step // phases - side + 1 - self.begins
        if keep > 0:
            self.tail_N, self.begins = self.tail_N[keep:].clone(), self.begins + keep
        return torch.cat(parts).float() if parts else torch.zeros(0)


def resample(samples_N: Tensor, rate: int) -> Tensor:
    """Return sound at 22,050 Hz [M] float32 of all samples [N] of a stream."""
    stream = ResampleStream(rate)
    return torch.cat([stream.push(samples_N), stream.finish()])
