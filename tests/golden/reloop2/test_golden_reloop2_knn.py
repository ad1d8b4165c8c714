"""Exact neighbors, weights and corrections against the float64 reference of ReLoop2's raw memory."""

# n rows, Q queries, k neighbors

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import golden, read_npz

from operators.banks import RowRing

KNN = ("cfg", "H", "Q", r"knn_\w+[\d.]*/idx")
ATOL = 1e-6  # the README's tolerance for float32


def kept_rows(name: str, case: dict[str, np.ndarray], cfg: dict[str, int]) -> tuple[np.ndarray, int]:
    """Return which rows a variant writes, and the ring it has: all, the last ``cap``, or those with an error above sigma."""
    number = len(case["H"])
    if name == "knn_all":
        return np.arange(number), number
    if name == "knn_fifo":
        return np.arange(number), cfg["cap"]
    sigma = re.fullmatch(r"knn_sigma([\d.]+)", name)
    if sigma is None:
        pytest.fail(f"unknown variant {name}")
    return np.flatnonzero(np.abs(case["y"] - case["y_base"]) > float(sigma[1])), number


@golden("reloop2", ".npz", *KNN)
@pytest.mark.parametrize("coarse", ["float32", "bfloat16"])
def test_neighbors_weights_and_corrections(path: Path, coarse: str):
    case = read_npz(path)
    cfg = json.loads(case["cfg"].tobytes())
    names = sorted({key.split("/")[0] for key in case if key.startswith("knn_")})
    for name in names:
        rows, capacity = kept_rows(name, case, cfg)
        ring = RowRing(capacity, case["H"].shape[1], coarse=coarse)
        values = torch.from_numpy(np.stack([case["y"], case["y_base"]], axis=1)[rows])
        ring.write(torch.from_numpy(case["H"][rows]), values)
        found = ring.search(torch.from_numpy(case["Q"]), case[f"{name}/idx"].shape[1])
        assert found.valid_Bk.all()
        # Sequence numbers of the reference count all rows, written or filtered.
        assert np.array_equal(rows[found.sequence_Bk.numpy()], case[f"{name}/idx"]), name
        similarity_Qk = found.similarity_Bk.double()
        np.testing.assert_allclose(similarity_Qk.numpy(), case[f"{name}/s"], atol=ATOL, rtol=0)
        a_Qk = (similarity_Qk / cfg["tau"]).softmax(dim=1)
        np.testing.assert_allclose(a_Qk.numpy(), case[f"{name}/a"], atol=10 * ATOL, rtol=0)  # s is divided by tau
        label_Q, base_Q = (a_Qk[:, :, None] * found.values_BkV.double()).sum(1).numpy().T
        np.testing.assert_allclose(label_Q, case[f"{name}/ybar"], atol=10 * ATOL, rtol=0)
        np.testing.assert_allclose(base_Q, case[f"{name}/ybase_bar"], atol=10 * ATOL, rtol=0)
        for key in (key for key in case if re.fullmatch(rf"{re.escape(name)}/g[\d.]+_l[\d.]+/y_pred", key)):
            gamma, factor = (float(x) for x in re.findall(r"[gl]([\d.]+)(?=[_/])", key.removeprefix(name)))
            error_Q = gamma * (label_Q - case["q_y_base"]) + (1 - gamma) * (label_Q - base_Q)
            predicted_Q = np.clip(case["q_y_base"] + factor * error_Q, 0, 1)
            np.testing.assert_allclose(predicted_Q, case[key], atol=10 * ATOL, rtol=0)
