"""What the golden files of VideoStreaming have in common: kinds, the model of a case, comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from golden_cases import read_json, read_npz, sibling
from safetensors.torch import load_file
from torch import Tensor

from models.videostreaming.checkpoint import build_model, load_tensors
from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.model import VideoStreamingModel

CASE = ("clip_features", "time_ids", "memory", "clip_indicator", "llm_last_logits", "prefix_mask")
SIZES = ("encoder", "llm", "T", "N", "P", "K", "V", "C", "tau")
KEYS = (r"note", r"clip_vit.*", r"phi2.*", r"vicuna.*")

KINDS = [(".npz", CASE), (".json", SIZES), (".json", KEYS)]

ATOL = 2e-4  # the README's tolerance


def read_case(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return sizes, weights and arrays of a case."""
    sizes = read_json(sibling(path, "case", "config", ".json"))
    weights = load_file(sibling(path, "case", "state", ".safetensors"))
    return sizes, weights, {name: torch.from_numpy(array) for name, array in read_npz(path).items()}


def model_of(sizes: dict[str, Any], weights: dict[str, Tensor]) -> VideoStreamingModel:
    """Load the weights of a case the way the product does."""
    config = VideoStreamingConfig(
        frames_per_clip=sizes["T"],
        frame_summaries=sizes["P"],
        select_clips=sizes["V"],
        encoder_layers=sizes["encoder"]["num_hidden_layers"],
        final_norm=sizes["final_norm"],
        similarity_scale=1.0,
    )
    model = build_model(
        config,
        vision=None,
        encoder=sizes["encoder"] | {"model_type": "phi"},
        language=sizes["llm"] | {"model_type": "llama"},
        feature_width=sizes["C"],
    )
    load_tensors(model, weights, "golden")
    return model.eval().requires_grad_(False)


def real(ids: Tensor) -> Tensor:
    """Return token ids without the padding of -1."""
    return ids[ids >= 0]


def assert_close(got: Tensor, wanted: Tensor, what: str) -> None:
    """Compare with the README's tolerance."""
    torch.testing.assert_close(got, wanted, atol=ATOL, rtol=0, msg=lambda text: f"{what}: {text}")
