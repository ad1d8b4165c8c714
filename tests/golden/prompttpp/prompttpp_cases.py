"""What the golden files of PromptTPP have in common: kinds, and loading a case the way a user does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from golden_cases import read_json, read_npz, sibling
from torch import Tensor

from models.prompttpp.attnhp import PromptAttNHP
from models.prompttpp.checkpoint import load_official
from models.prompttpp.official import OfficialBatch

CAUSAL = (r"time_seq", r"event_seq", r"causal\.0\.lambda", r"causal\.loglik_per_sequence")
OFFICIAL = (r"time_delta_seq", r"attention_mask", r"official\.lambda_at_event", r"rowwise\.loss", r"aligned\.loss")
GRADIENT = (*OFFICIAL, r"aligned\.grad\..+")
THINNING = (r"thin\.unit_exp", r"thin\.unif", r"thin\.dtimes_pred", r"official\.loss")
BASES = (r"NHP\.lambda_at_event", r"THP\.lambda_at_event", r"AttNHP\.lambda_at_event")
ORACLES = (r".+\.mu", r".+\.alpha", r".+\.after_n", r".+\.next_mean", r".+\.compensator_increment")
ORACLE_THINNING = (*ORACLES, r"thinning\.process", r"thinning\.accepted_index")
CONFIG = ("case", "seq_lens", "top_k", "saved_keys")
KEYS = ("num_unique_parameters", "keys_after_first_forward")

KINDS = [(".npz", CAUSAL), (".npz", OFFICIAL), (".npz", BASES), (".npz", ORACLES), (".json", CONFIG), (".json", KEYS)]

RTOL = 2e-5  # the README's tolerance in float32, relative to the largest value


def assert_close(got: Tensor | float, wanted: np.ndarray, what: str, tolerance: float = RTOL) -> None:
    """Compare relative to the largest value wanted."""
    wanted = np.asarray(wanted)
    scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
    np.testing.assert_allclose(torch.as_tensor(got).detach().numpy(), wanted, rtol=0, atol=tolerance * scale, err_msg=what)


class PromptCase:
    """Weights, settings and vectors of one case."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        label = path.stem.removesuffix("_io")
        self.arrays = read_npz(path)
        self.config = read_json(path.with_name(f"{label}_config.json"))
        state = path.with_name(f"{label}_state.safetensors")
        model = load_official(state, top_k=self.config["top_k"], dtype=dtype)
        assert isinstance(model, PromptAttNHP)
        self.model = model
        self.samples = int(self.config["loss_integral_num_sample_per_step"])

    def tensor(self, name: str) -> Tensor:
        """Return an array as a tensor."""
        return torch.from_numpy(self.arrays[name])

    @property
    def batch(self) -> OfficialBatch:
        """The padded batch."""
        names = ("time_seq", "time_delta_seq", "event_seq", "non_pad_mask", "attention_mask")
        return OfficialBatch(*(self.tensor(name) for name in names))

    def sequences(self) -> list[tuple[Tensor, Tensor]]:
        """Return times (float64) and types of each row without padding."""
        lengths = self.arrays["non_pad_mask"].sum(1) if "non_pad_mask" in self.arrays else self.config["seq_lens"]
        return [
            (self.tensor("time_seq")[row : row + 1, :n].double(), self.tensor("event_seq")[row : row + 1, :n])
            for row, n in enumerate(int(n) for n in lengths)
        ]


__all__ = [
    "BASES",
    "CAUSAL",
    "CONFIG",
    "GRADIENT",
    "KEYS",
    "KINDS",
    "OFFICIAL",
    "ORACLES",
    "PromptCase",
    "assert_close",
    "sibling",
]
