"""A model of SpecVQGAN on disk: a folder with one file per network, found by its name without ending.

``autoencoder``, ``transformer``, ``vocoder`` and ``features``, each as safetensors of ours or in the official layout. An
official transformer brings its codebook along, so that ``autoencoder`` may be missing beside it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from connectors.errors import CheckpointMismatch
from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.checkpoint import load_autoencoder, load_features, load_own_transformer, load_transformer, load_vocoder
from models.specvqgan.parts import find_parts, is_own_file
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vision import FrameNetwork
from models.specvqgan.vocoder import Vocoder

__all__ = ["SoundNetworks", "load_networks"]


@dataclass(frozen=True, slots=True, eq=False)
class SoundNetworks:
    """Networks in eval mode; those that were not asked for are None."""

    autoencoder: Autoencoder | None = None
    transformer: SoundTransformer | None = None
    vocoder: Vocoder | None = None
    features: FrameNetwork | None = None


def load_networks(folder: str | os.PathLike[str], wanted: Collection[str], device: torch.device | str = "cpu") -> SoundNetworks:
    """Load the networks called ``wanted``. Raises ``CheckpointMismatch`` for files that are missing, damaged or do not fit."""
    files: Mapping[str, Path] = find_parts(folder, wanted)
    transformer: SoundTransformer | None = None
    autoencoder: Autoencoder | None = None
    if "transformer" in files:
        if is_own_file(files["transformer"]):
            transformer = load_own_transformer(files["transformer"])
        else:
            autoencoder, transformer = load_transformer(files["transformer"])
    if "autoencoder" in files and (autoencoder is None or files["autoencoder"] != files["transformer"]):
        autoencoder = load_autoencoder(files["autoencoder"])
    if autoencoder is not None and transformer is not None and autoencoder.config.codes != transformer.config.codes:
        raise CheckpointMismatch(
            f"{folder}: the transformer makes {transformer.config.codes} kinds of tokens, the codebook has "
            f"{autoencoder.config.codes}; take files that belong together"
        )
    features = load_features(files["features"]) if "features" in files else None
    if features is not None and transformer is not None and features.width != transformer.config.feature_width:
        raise CheckpointMismatch(
            f"{folder}: the features are {features.width} wide, the transformer takes {transformer.config.feature_width}; "
            "take files that belong together"
        )
    vocoder = load_vocoder(files["vocoder"]) if "vocoder" in files else None
    networks = [part for part in (autoencoder, transformer, vocoder, features) if part is not None]
    for network in networks:
        network.to(device)
    return SoundNetworks(autoencoder, transformer, vocoder, features)
