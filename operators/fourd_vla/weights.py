"""From options to the networks that encode frames and act, and their name. No streams, no banks."""

from __future__ import annotations

import torch

from connectors.errors import CheckpointMismatch
from models import hub
from models.fourd_vla.checkpoint import Policy, load_policy
from models.fourd_vla.encoders import ColorGrid, DinoEncoder, FrameEncoder, TorchvisionEncoder
from models.fourd_vla.header import SMALL_WEIGHTS
from models.weight_files import weights_name
from operators.fourd_vla.config import Color, Dinov2, FourDVLAOptions, Given, Torchvision

__all__ = ["build_encoder", "build_policy", "model_id"]


def build_encoder(options: FourDVLAOptions, device: torch.device) -> FrameEncoder | None:
    """Return what frames are compared by in the mode ``select``; None where features are given."""
    kind = options.features or Color()
    if isinstance(kind, Given):
        return None
    encoder: FrameEncoder
    if isinstance(kind, Torchvision):
        encoder = TorchvisionEncoder(kind.model, hub.weights_file(kind.checkpoint), kind.side)
    elif isinstance(kind, Dinov2):
        encoder = DinoEncoder(hub.weights_place(kind.checkpoint), kind.height, kind.width)
    else:
        encoder = ColorGrid(kind.rows, kind.columns)
    return encoder.to(device).eval().requires_grad_(False)


def build_policy(options: FourDVLAOptions, name: str, device: torch.device) -> Policy:
    """Load the policy. Raise ``CheckpointMismatch`` for what cannot act."""
    place = hub.weights_place(options.checkpoint, SMALL_WEIGHTS)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    policy = load_policy(place, device=device, dtype=dtype)
    if policy.fresh:
        raise CheckpointMismatch(f"{name}: {place} holds a backbone and no policy (no {policy.fresh[0]}, for one); train one")
    return policy


def model_id(encoder: FrameEncoder | None, policy: Policy | None) -> str:
    """Return a name of the weights that features and actions come from; equal weights, equal name."""
    if policy is not None:
        return weights_name("fourd_vla", policy.model.config.to_json(), policy.model.state_dict())
    return weights_name("features", type(encoder).__name__, {} if encoder is None else encoder.state_dict())
