"""Tiny networks of SpecVQGAN with random weights, as files of a model, and sound and frames for them."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import pytest
import torch

from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.checkpoint import save
from models.specvqgan.config import AutoencoderConfig, TransformerConfig, VocoderConfig
from models.specvqgan.loaders import SoundNetworks, load_networks
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vision import PixelConfig, PixelFeatures
from models.specvqgan.vocoder import Vocoder

__all__ = ["CODES", "share_networks", "write_model"]

CODES = 16


@functools.cache
def write_model(folder: Path, *, columns: int = 6, features: int = 4, side: int = 2) -> Path:
    """Write all four networks; return the folder. ``columns``: of a window; ``side``: of the frames that are looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        autoencoder = Autoencoder(
            AutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1, 1), blocks=1, z_channels=8, code_width=8, codes=CODES)
        )
        transformer = SoundTransformer(
            TransformerConfig(
                codes=CODES, layers=2, heads=2, width=16, features=features, feature_width=3 * side**2, columns=columns
            )
        )
        vocoder = Vocoder(VocoderConfig(channels=2, residual_blocks=1))
        pixels = PixelFeatures(PixelConfig(side=side))
        with torch.no_grad():
            autoencoder.codes_KD.normal_(std=0.5)
            # Else every token is as likely, and every spectrogram as silent, as any. A vocoder that amplifies more clips most
            # samples, and makes of float32's rounding more than a step of 16 bits.
            for network, gain in ((transformer, 2.0), (vocoder, 1.4)):
                for parameter in network.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(std=gain * parameter[0].numel() ** -0.5)
            for parameter in vocoder.model[-2].parameters():  # within what 16 bits hold
                parameter.mul_(0.1)
            pixels.mean.fill_(0.5)
            pixels.std.fill_(0.25)
    for name, network in (
        ("autoencoder", autoencoder),
        ("transformer", transformer),
        ("vocoder", vocoder),
        ("features", pixels),
    ):
        save(network, folder / f"{name}.safetensors")
    return folder


@functools.cache
def _loaded(folder: Path, parts: frozenset[str], device: torch.device) -> SoundNetworks:
    return load_networks(folder, parts, device)


def share_networks(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Have the operators of ``module`` share networks, which hold weights only; each packs a transformer of its own."""

    def load(folder: Path, parts: Collection[str], device: torch.device) -> SoundNetworks:
        found = _loaded(folder, frozenset(parts), device)
        return dataclasses.replace(found, transformer=copy.deepcopy(found.transformer))

    monkeypatch.setattr(module, "load_networks", load)
