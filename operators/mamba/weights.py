"""From options to the network and its settings, and the names that outputs and snapshots know them by. No streams, no banks."""

from __future__ import annotations

import dataclasses

import torch

from models.hub import weights_file
from models.mamba import checkpoint
from models.mamba.model import Mamba
from models.weight_files import weights_name
from operators.mamba.config import MambaOptions
from operators.mamba.settings import network

__all__ = ["build_model", "model_id"]


def build_model(options: MambaOptions, name: str) -> Mamba:
    """Return the network: from the checkpoint, or of random weights that ``seed`` and ``network`` fix."""
    if options.checkpoint is not None:
        return checkpoint.load(weights_file(options.checkpoint))
    config = network(options, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return Mamba(config)


def model_id(model: Mamba) -> str:
    """Return a name of weights and shapes, equal wherever they are equal."""
    return weights_name("mamba", dataclasses.asdict(model.config), model.state_dict())
