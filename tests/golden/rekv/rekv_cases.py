"""What the golden files of ReKV have in common: kinds, loading a tiny model the way a user does, comparisons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.rekv.config import ReKVConfig
from models.rekv.loaders import VideoLanguageModel, load_model

STREAM = ("events", "config", "rekv")
HOST = ("extract_letter", "retrieval_recall_precision", "decode_sampling", "stream_slicing", "anno_split")
KEYS = (r"_note", r".*-hf")

KINDS = [(".json", STREAM), (".json", HOST), (".json", KEYS)]

ATOL, RTOL = 2e-5, 1e-4  # the README's tolerance
END_TOKEN = 1  # the README's end of sequence


def vectors(path: Path) -> dict[str, Tensor]:
    """Return inputs and outputs of a case."""
    return load_file(path.with_suffix(".io.safetensors"))


def rekv_config(case: dict[str, Any]) -> ReKVConfig:
    """Return the settings of a case."""
    settings = case["rekv"]
    return ReKVConfig(window_tokens=settings["n_local"], retrieve_frames=settings["topk"], chunk_frames=settings["chunk"])


def tiny_model(path: Path, case: dict[str, Any], folder: Path) -> VideoLanguageModel:
    """Load the weights of a case, in the published naming, from a checkpoint folder."""
    shutil.copy(path.with_suffix(".weights.safetensors"), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case["config"] | {"model_type": "llava_onevision"}))
    return load_model(folder, rekv_config(case), dtype=torch.float32)


def assert_close(got: Tensor, wanted: Tensor, what: str) -> None:
    """Compare with the README's tolerance."""
    torch.testing.assert_close(got, wanted, atol=ATOL, rtol=RTOL, msg=lambda text: f"{what}: {text}")
