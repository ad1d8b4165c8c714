"""What the golden files of MemPromptTSS have in common: kinds, their parts, the settings of a case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from golden_cases import read_json, read_npz
from torch import Tensor

from models.memprompttss.checkpoint import load_network
from models.memprompttss.model import MemPromptTSS, Prompts

PERSEUS = ("subseq_x", "subseq_y", "prompt_idx", "prompt_types", "aspect_bits", "label_vec", r"logits_.+", r"memory_tokens_.+")
PROMPTTSS = ("x", "prompt_embedding", r"ts_tokens_.+", r"logits_.+")
CONFIG = ("config", "seed")
KEYS = ("Perseus_.+", "PromptTSS_.+")
METRICS, FIFO, MERGE, PLACEMENT = ("metrics",), ("fifo",), ("merge_labels",), ("placement_official",)

KINDS = [(".npz", PERSEUS), (".npz", PROMPTTSS), (".json", CONFIG), (".json", KEYS)]
KINDS += [(".json", kind) for kind in (METRICS, FIFO, MERGE, PLACEMENT)]

TOLERANCE = 1e-5
"""That the vectors' README calls comfortable."""


@dataclass
class Case:
    """A case of the released network: arrays, settings, and what belongs together."""

    path: Path
    arrays: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def geometry(self) -> dict[str, int]:
        return self.config["geometry"]

    @property
    def weights(self) -> Path:
        return self.path.with_name(self.path.name.replace("_io.npz", "_state_dict.safetensors"))

    @property
    def readings(self) -> list[str]:
        """Suffixes of the arrays: batch, time, official."""
        return sorted(name.removeprefix("logits_") for name in self.arrays if name.startswith("logits_"))

    def settings(self, reading: str) -> dict[str, Any]:
        """Return what the shapes of the weights do not tell."""
        config = self.config["config"]
        given: dict[str, Any] = {
            "heads": config["n_heads"],
            "patch": config["patch_len"],
            "patch_stride": config["patch_stride"],
            "activation": config["activation"],
            "encoder_axis": "batch" if reading == "batch" else "time",
            "dropout": 0.0,
        }
        if "geometry" in self.config:
            given |= {
                "window": self.geometry["window_len"],
                "stride": self.geometry["window_stride"],
                "context": self.geometry["context_len"],
            }
        return given

    def network(self, reading: str) -> MemPromptTSS:
        return load_network(self.weights, self.settings(reading))

    def windows(self) -> Tensor:
        """Return all windows [B, W, T, C]."""
        return self.arrays["subseq_x"].unfold(1, self.geometry["window_len"], self.geometry["window_stride"]).transpose(2, 3)

    def states(self) -> Tensor:
        """Return the labels of all windows [B, W, T]."""
        return self.arrays["subseq_y"].unfold(1, self.geometry["window_len"], self.geometry["window_stride"])

    def prompts(self, iteration: int) -> Prompts:
        """Return the prompts of an iteration [B, P]."""
        arrays, classes = self.arrays, self.config["config"]["K"]
        incorrect = arrays["aspect_bits"][iteration]
        state = arrays["label_vec"][iteration].argmax(-1) % classes
        return Prompts(arrays["prompt_types"][iteration], state, arrays["boundary_bits"][iteration], incorrect)


def flat(prompts: Prompts) -> Prompts:
    return Prompts(prompts.kind.flatten(), prompts.state.flatten(), prompts.boundary.flatten(), prompts.incorrect.flatten())


def read_case(path: Path) -> Case:
    """Return the case that an ``_io.npz`` belongs to."""
    arrays = {name: torch.from_numpy(values) for name, values in read_npz(path).items()}
    return Case(path, arrays, read_json(path.with_name(path.name.replace("_io.npz", "_config.json"))))


def close(got: Tensor, wanted: Tensor, what: str) -> None:
    torch.testing.assert_close(got, wanted.to(got.dtype), atol=TOLERANCE, rtol=1e-5, msg=lambda text: f"{what}: {text}")
