"""What is heard in a sound of bounces: when notes begin and which ones they are. The judge of rendered clips.

Looks at the waveform only and knows nothing of how it was made.
"""

# N samples, H bands, T mel frames

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.specvqgan.bounces import PITCHES_HZ, Clip
from models.specvqgan.config import HOP, RATE
from models.specvqgan.mel import one_shot_mel

__all__ = ["Heard", "Match", "listen", "match"]

WITHIN_S = 0.1
"""How far an onset may be from its bounce."""

_RISE, _RISE_FRAMES, _APART_FRAMES, _AT_END_FRAMES = 0.06, 3, 17, 2
_NOTE_S = (0.01, 0.15)
_DETUNED = np.linspace(0.97, 1.03, 7)


@dataclass(frozen=True, slots=True)
class Heard:
    """A note."""

    time_s: float
    color: str
    """Whose pitch it has."""


@dataclass(frozen=True, slots=True)
class Match:
    """How well what is heard fits what is seen."""

    bounces: int
    found: int
    """Bounces with an onset within 0.1 s, each onset counted once."""
    right: int
    """Found ones of the right pitch."""
    heard: int
    """Onsets in all."""

    def __add__(self, other: Match) -> Match:
        """Add up."""
        return Match(self.bounces + other.bounces, self.found + other.found, self.right + other.right, self.heard + other.heard)

    def shares(self) -> dict[str, float]:
        """Return recall and precision of onsets, and the right pitches among all bounces."""
        bounces = max(1, self.bounces)
        return {
            "onsets": self.found / bounces,
            "pitches": self.right / bounces,
            "precision": self.found / max(1, self.heard),
        }


def listen(samples_N: Tensor) -> list[Heard]:
    """Return the notes of a sound [N] at 22,050 Hz, in order."""
    mel_HT = one_shot_mel(samples_N.detach().cpu())
    before_HT = torch.nn.functional.pad(mel_HT, (_RISE_FRAMES, 0))[:, : mel_HT.shape[1]]
    rise_T = (mel_HT - before_HT).clamp_min(0).mean(0).numpy()
    wave_N = samples_N.detach().cpu().double().numpy()
    notes: list[Heard] = []
    # The strongest rise first; what is near one that was taken belongs to it.
    free_T = rise_T >= _RISE
    free_T[-_AT_END_FRAMES:] = False  # half of what they hold is the reflection of a sound that may be cut off in a note
    while free_T.any():
        t = int(np.argmax(np.where(free_T, rise_T, -1.0)))
        free_T[max(0, t - _APART_FRAMES) : t + _APART_FRAMES + 1] = False
        # The rise over some frames is greatest when the note has begun in the middle of them.
        time_s = max(0.0, (t - _RISE_FRAMES / 2 + 1) * HOP / RATE)
        notes.append(Heard(time_s, _pitch(wave_N, time_s)))
    return sorted(notes, key=lambda note: note.time_s)


def match(clip: Clip, notes: Sequence[Heard], *, seconds: float | None = None) -> Match:
    """Compare what is heard with what happens in (the first ``seconds`` of) a clip; each note belongs to one bounce."""
    bounces = [one for one in clip.heard if seconds is None or one.time_s < seconds]
    left = list(notes)
    found = right = 0
    for bounce in bounces:
        near = [note for note in left if abs(note.time_s - bounce.time_s) <= WITHIN_S]
        if near:
            best = min(near, key=lambda note: abs(note.time_s - bounce.time_s))
            left.remove(best)
            found, right = found + 1, right + (best.color == bounce.color)
    return Match(len(bounces), found, right, len(notes))


def _pitch(wave_N: NDArray[np.float64], time_s: float) -> str:
    """Return the color whose pitch is strongest behind an onset."""
    first, last = (round((time_s + away) * RATE) for away in _NOTE_S)
    part_N = wave_N[first:last] * np.hanning(len(wave_N[first:last]))
    time_N = np.arange(len(part_N)) / RATE
    strength = {
        color: max(float(abs(np.exp(-2j * np.pi * hz * factor * time_N) @ part_N)) for factor in _DETUNED)
        for color, hz in PITCHES_HZ.items()
    }
    return max(strength, key=lambda color: strength[color])
