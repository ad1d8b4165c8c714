"""Losses of autoencoder, transformer and vocoder (spec 10, 6 and 9). Nothing is kept between calls."""

# B batch, H bands, W frames, N tokens or samples, K codes, F features, P positions

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "AutoencoderLoss",
    "adaptive_weight",
    "autoencoder_loss",
    "discriminator_loss",
    "feature_matching",
    "spectral_distance",
    "token_loss",
    "wave_discriminator_loss",
    "wave_generator_loss",
]

Seen = Sequence[Sequence[Tensor]]
"""What a :class:`~models.specvqgan.wave_discriminator.WaveDiscriminator` says: scales, layers, logits last."""

_RESOLUTIONS = (256, 512, 1024, 2048)
_LEAST_SPECTRUM, _LEAST_LEVEL = 0.3, 0.005


class AutoencoderLoss(NamedTuple):
    """Terms of a generator step; ``total`` is what is minimized."""

    total: Tensor
    reconstruction: Tensor
    perceptual: Tensor
    generator: Tensor
    codebook: Tensor
    weight: Tensor
    """Of the generator's term, before it begins to count at ``disc_start``."""


def adaptive_weight(nll: Tensor, generator: Tensor, last_layer: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return 0.8 times the quotient of both gradients' norms at the decoder's last weights, cut to ``bounds``."""
    norms = [torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm() for term in (nll, generator)]
    weight: Tensor = 0.8 * (norms[0] / (norms[1] + 1e-4)).clamp(*bounds).detach()
    return weight


def autoencoder_loss(
    x_B1HW: Tensor,
    made_B1HW: Tensor,
    codebook: Tensor,
    logits_fake: Tensor,
    last_layer: Tensor,
    *,
    started: bool,
    perceptual_BHW: Tensor | None = None,
    bounds: tuple[float, float] = (1.0, 1.0),
) -> AutoencoderLoss:
    """Return the generator's loss: |x - made|, codebook, and -mean D(made) once the discriminator has ``started``.

    ``perceptual_BHW`` (anything that broadcasts to ``x``) is added to the distance: see ``perceptual.py``. ``bounds`` of the
    adaptive weight: those of the official configurations make it the constant 0.8.
    """
    distance_B1HW = (x_B1HW - made_B1HW).abs()
    reconstruction = distance_B1HW.mean()
    perceptual = x_B1HW.new_zeros(()) if perceptual_BHW is None else perceptual_BHW.mean()
    nll, generator = reconstruction + perceptual, -logits_fake.mean()
    is_constant = bounds[0] == bounds[1]
    weight = nll.new_tensor(0.8 * bounds[0]) if is_constant else adaptive_weight(nll, generator, last_layer, bounds)
    total = nll + codebook + (weight * generator if started else 0.0)
    return AutoencoderLoss(total, reconstruction, perceptual, generator, codebook, weight)


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, *, started: bool) -> Tensor:
    """Return half the hinge losses of real and made patches; 0 before the discriminator has ``started``."""
    hinge = 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    return hinge if started else 0.0 * hinge


def token_loss(logits_BPK: Tensor, tokens_BN: Tensor, features: int) -> Tensor:
    """Return the cross-entropy of all tokens; position ``features - 1`` predicts the first one."""
    predicted_BNK = logits_BPK[:, features - 1 : features - 1 + tokens_BN.shape[1]]
    return F.cross_entropy(predicted_BNK.flatten(0, 1), tokens_BN.flatten())


def wave_discriminator_loss(real: Seen, made: Seen) -> Tensor:
    """Return the hinge losses of real and made waveforms, summed over the scales."""
    losses = [F.relu(1 - r[-1]).mean() + F.relu(1 + m[-1]).mean() for r, m in zip(real, made, strict=True)]
    return torch.stack(losses).sum()


def wave_generator_loss(made: Seen) -> Tensor:
    """Return minus the mean logits of made waveforms, summed over the scales."""
    return torch.stack([-m[-1].mean() for m in made]).sum()


def feature_matching(real: Seen, made: Seen) -> Tensor:
    """Return how far made waveforms are from real ones in the discriminators' layers: L1, 4 / layers each, mean of scales.

    The layers that count: all but the one of the logits and, as published, each with 4 / (strided layers + 1).
    """
    weight = 4 / ((len(real[0]) - 3 + 1) * len(real))
    parts = [F.l1_loss(m, r.detach()) for rs, ms in zip(real, made, strict=True) for r, m in zip(rs[:-1], ms[:-1], strict=True)]
    return weight * torch.stack(parts).sum()


def spectral_distance(real_BN: Tensor, made_BN: Tensor) -> Tensor:
    """Return how far spectra are apart at four resolutions: relative distance and L1 of logarithms. Not of the paper.

    What a vocoder begins with here: discriminators teach nothing about pitch in the minutes that a small training takes.
    """
    total = real_BN.new_zeros(())
    for size in _RESOLUTIONS:
        window = torch.hann_window(size, device=real_BN.device)
        real, made = (
            torch.stft(x_BN, size, size // 4, window=window, return_complex=True).abs() / size**0.5
            for x_BN in (real_BN, made_BN)
        )
        # Logarithms count what is heard: with what is far below it, silence would be nearer to a note than the note a bit off.
        apart = F.l1_loss(made.clamp_min(_LEAST_LEVEL).log(), real.clamp_min(_LEAST_LEVEL).log())
        # Silence has no spectrum to be compared with.
        total = total + (real - made).norm() / real.norm().clamp_min(_LEAST_SPECTRUM) + apart
    return total / len(_RESOLUTIONS)
