"""Golden: what the operator's memories say and how they correct, as a float64 reference of the paper's formulas recorded it."""

# K arrays or neighbors, B queries

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from golden_cases import golden, read_npz
from torch import Tensor

from operators.banks import SignHash
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.memory import ErrorMemory, make_memory
from operators.reloop2.rules import Recollection, compensate

TOLERANCE = 1e-6  # the README's, for fp32 implementations
ERROR_MEMORY = ("cfg", "W", "H", r"bucket_[HQ]", r"sk0/.*", "sk_final")
ROWS = ("cfg", "H", r"knn_\w.*/idx")


def memory_of(case: dict[str, np.ndarray], **options: Any) -> ErrorMemory:
    """Make the memory of a case, centered nowhere, that forgets nothing."""
    settings = json.loads(case["cfg"].tobytes())
    common = {"checkpoint": "none", "center": "none", "forgetting": "never", "tau": settings["tau"]}
    model: Any = SimpleNamespace(hidden_dim=settings["d"], hidden_mean=torch.zeros(settings["d"]))
    return make_memory(ReLoop2Options(**common, **options), model, 1, torch.device("cpu"))


def tensors(arrays: dict[str, np.ndarray], rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.from_numpy(arrays[name][rows]) for name in ("H", "y", "y_base"))  # type: ignore[return-value]


def write(memory: ErrorMemory, arrays: dict[str, np.ndarray], rows: slice) -> None:
    hidden, label, base = tensors(arrays, rows)
    memory.write(memory.keys(hidden), label, base, np.zeros(len(label), np.int64))


def read(memory: ErrorMemory, arrays: dict[str, np.ndarray]) -> Recollection:
    queries = torch.from_numpy(arrays["Q"])
    return memory.read(memory.keys(queries), np.zeros(len(queries), np.int64))


def close(wanted: np.ndarray, got: Tensor, what: str) -> None:
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=TOLERANCE, err_msg=what)


def check_corrections(arrays: dict[str, np.ndarray], prefix: str, found: Recollection) -> int:
    """Compare every recorded (gamma, lambda) below ``prefix``; return how many there are."""
    base = torch.from_numpy(arrays["q_y_base"])
    compared = 0
    for name in arrays:
        match = re.fullmatch(re.escape(prefix) + r"/g([\d.]+)_l([\d.]+)/(y_err|y_pred)", name)
        if match:
            got = compensate(found, base, gamma=float(match[1]), strength=float(match[2]))
            close(arrays[name], got.error_B if match[3] == "y_err" else got.prediction_B, name)
            compared += 1
    return compared


@golden("reloop2", ".npz", *ERROR_MEMORY)
def test_sketch_memory_reads_and_corrects_as_recorded(path: Path):
    arrays = read_npz(path)
    settings = json.loads(arrays["cfg"].tobytes())
    memory: Any = memory_of(arrays, arrays=settings["K"], bits=settings["L"])
    memory._hash = SignHash.from_weights(torch.from_numpy(arrays["W"]))
    assert np.array_equal(memory.keys(torch.from_numpy(arrays["H"])).numpy(), arrays["bucket_H"])
    cuts = settings["writes_cut_at"]
    for block, (start, stop) in enumerate(itertools.pairwise(cuts)):
        write(memory, arrays, slice(start, stop))
        found = read(memory, arrays)
        recorded = {name: arrays[f"sk{block}/{name}"] for name in ("a", "y", "y_base", "ybar", "ybase_bar", "hit", "count")}
        assert np.array_equal(found.valid_BK.numpy(), recorded["count"] > 0)
        assert np.array_equal(found.valid_BK.any(1).numpy(), recorded["hit"])
        valid = recorded["count"] > 0
        close(recorded["a"], found.weight_BK, "a")
        close(np.where(valid, recorded["y"], 0), found.label_BK, "y")
        close(np.where(valid, recorded["y_base"], 0), found.base_BK, "y_base")
        means = compensate(found, torch.from_numpy(arrays["q_y_base"]), gamma=1.0, strength=0.0)
        for name, got in (("ybar", means.label_mean_B), ("ybase_bar", means.base_mean_B)):
            close(recorded[name][recorded["hit"]], got[torch.from_numpy(recorded["hit"])], name)
        assert check_corrections(arrays, f"sk{block}", found) > 0


@golden("reloop2", ".npz", *ROWS)
def test_row_memory_reads_and_corrects_as_recorded(path: Path):
    arrays = read_npz(path)
    settings = json.loads(arrays["cfg"].tobytes())
    total = len(arrays["y"])
    for kind in sorted({name.split("/")[0] for name in arrays if name.startswith("knn_")}):
        options: dict[str, Any] = {"mode": "knn", "top_k": settings["k"], "capacity": total}
        if kind == "knn_fifo":
            options["capacity"] = settings["cap"]
        elif kind.startswith("knn_sigma"):
            options["sigma"] = float(kind.removeprefix("knn_sigma"))
        memory = memory_of(arrays, **options)
        for start in range(0, total, 50):
            write(memory, arrays, slice(start, start + 50))
        found = read(memory, arrays)
        missing = settings["k"] - arrays[f"{kind}/a"].shape[1]  # a filter may leave fewer rows than are asked for
        close(np.pad(arrays[f"{kind}/a"], ((0, 0), (0, missing))), found.weight_BK, f"{kind}/a")
        means = compensate(found, torch.from_numpy(arrays["q_y_base"]), gamma=1.0, strength=0.0)
        close(arrays[f"{kind}/ybar"], means.label_mean_B, f"{kind}/ybar")
        close(arrays[f"{kind}/ybase_bar"], means.base_mean_B, f"{kind}/ybase_bar")
        assert check_corrections(arrays, kind, found) > 0
