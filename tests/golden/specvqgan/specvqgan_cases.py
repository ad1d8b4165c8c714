"""What the golden files of SpecVQGAN have in common: kinds, and how their networks are built."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_cases import read_npz, sibling

from models.specvqgan.checkpoint import SoundModel, load_autoencoder, load_transformer
from models.specvqgan.discriminator import Discriminator
from models.weight_files import read_safetensors

AUTOENCODER = ("x", "h_prequant", "indices_rowmajor", "indices_colmajor", "z_q", "qloss", "perplexity", "xrec")
TRANSFORMER = ("x", "feats_BDT", "train_logits_first8", "train_logits_last8", "target", "ce_loss")
PREFIX = (r"prefix\d+", r"logits_prefix\d+", r"att_lastlayer_prefix\d+", "feats_BDT")
DRAWS = (r"greedy\d+", r"topk_sample\d+", "exp_noise_.*", "top_k", "temperature", "feats_BDT")
LONG = ("feats_BDT", "exp_noise", "tokens_colmajor", "window_start_col", "argmax_gap", "top_k")
LOSSES = ("x", "xrec", "aeloss", "discloss", "train_.*")
VOCODER = ("mel", "wav")
MEL = ("mel_basis", ".*_mel01")
STATS = ("mean", "std")
METRICS = ("features_1", "features_2", "logits_1", "logits_2", "fid", "kl", "kid_mean", "isc_mean")
ROWS = (r"idx_len\d+_n\d+",)
KEYS = ("vqmodel_.*", "transformer_.*", "melgan_netG")

KINDS = [
    *((".npz", kind) for kind in (AUTOENCODER, TRANSFORMER, PREFIX, DRAWS, LONG, LOSSES, VOCODER, MEL, STATS, METRICS, ROWS)),
    (".json", KEYS),
]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the arrays of a file as tensors."""
    return {name: torch.from_numpy(np.atleast_1d(values)) for name, values in read_npz(path).items()}


def sound_file(path: Path, prefix: str) -> Path:
    """Return the weights of a second-stage model that belong to a case."""
    return sibling(path, prefix, "net2net", ".safetensors")


@functools.lru_cache(maxsize=2)
def sound_model(file: Path) -> SoundModel:
    """Build codebook and transformer; the header says what shapes do not tell."""
    return load_transformer(file, heads=header(file)["gpt"]["n_head"])


@functools.lru_cache(maxsize=2)
def header(file: Path) -> dict[str, Any]:
    """Return the settings in the header of a file."""
    return dict(json.loads(read_safetensors(file, header_only=True)[1]["config"]))


def loss_networks(path: Path) -> tuple[Any, Discriminator, dict[str, Any]]:
    """Return an autoencoder and a discriminator to train, and the settings of the case."""
    autoencoder = load_autoencoder(sound_file(path, "loss")).requires_grad_(True)
    file = sibling(path, "loss", "discriminator", ".safetensors")
    weights, settings = read_safetensors(file)[0], header(file)
    discriminator = Discriminator(settings["ndf"])
    discriminator.load_state_dict(weights)
    return autoencoder, discriminator.train(), settings


def close(got: torch.Tensor, wanted: torch.Tensor, what: str, atol: float = 1e-4) -> None:
    """Compare activations."""
    torch.testing.assert_close(
        got.detach().squeeze().to(wanted.dtype), wanted.squeeze(), atol=atol, rtol=0, msg=lambda m: f"{what}: {m}"
    )
