"""Buckets where arithmetic is poor: reduced precision allowed in the process, values that are not finite, another device."""

# B rows of a call, D dim

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from operators.banks import SignHash


def rows(number: int, dim: int) -> Tensor:
    return torch.randn(number, dim, generator=torch.Generator().manual_seed(0))


def test_reduced_precision_of_the_process_changes_no_bucket():
    hash_, x_BD = SignHash(48, 8, 10), rows(300, 48)
    wanted_BK = hash_.hash(x_BD)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(hash_.hash(x_BD), wanted_BK)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_row_with_nan_or_infinity_leaves_the_others_alone():
    hash_, x_BD = SignHash(12, 4, 6), rows(20, 12)
    wanted_BK = hash_.hash(x_BD)
    x_BD[3, 2], x_BD[11] = math.nan, math.inf
    good_B = torch.isfinite(x_BD).all(1)
    found_BK = hash_.hash(x_BD)
    assert torch.equal(found_BK[good_B], wanted_BK[good_B])
    assert bool(((found_BK >= 0) & (found_BK < 64)).all())


@pytest.mark.gpu
@pytest.mark.parametrize("structured", [False, True])
def test_the_gpu_gives_the_buckets_of_the_cpu(structured: bool):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x_BD = rows(5000, 64)
    on_cpu = SignHash(64, 20, 12, structured=structured).hash(x_BD)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high"):  # high allows TF32
            torch.set_float32_matmul_precision(precision)
            on_gpu = SignHash(64, 20, 12, device="cuda", structured=structured).hash(x_BD)
            assert torch.equal(on_gpu.cpu(), on_cpu)
    finally:
        torch.set_float32_matmul_precision(before)
