"""The order of weights in memory changes no number beyond rounding."""

from __future__ import annotations

import errno
import gc
import mmap

import pytest
import torch
from torch import nn

from models.weight_order import laid_for_one_row, lay_side_by_side, order_for_one_row


def test_wide_layers_are_transposed_in_memory_and_compute_the_same() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 48), nn.Linear(48, 8), nn.Linear(8, 16, bias=False))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batches = [torch.randn(rows, 16) for rows in (1, 2, 33)]
    wanted = [network(x) for x in batches]
    order_for_one_row(network)
    assert [network[i].weight.is_contiguous() for i in range(3)] == [False, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for x, expected in zip(batches, wanted, strict=True):
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)


def test_embeddings_that_share_weights_with_the_head_read_the_same() -> None:
    words = nn.Embedding(40, 8)
    head = nn.Linear(8, 40, bias=False)
    head.weight = words.weight
    ids = torch.tensor([3, 39, 0])
    before = words(ids)
    order_for_one_row(head)
    assert torch.equal(words(ids), before)


@pytest.mark.parametrize("shape", [(700, 800), (900, 800), (3, 5)])
def test_weights_of_any_size_keep_every_bit_and_outlive_what_they_were_made_of(shape: tuple[int, int]) -> None:
    weight_NK = torch.randn(shape)
    laid_NK = laid_for_one_row(weight_NK)
    wanted = weight_NK.clone()
    del weight_NK
    gc.collect()
    assert torch.equal(laid_NK, wanted)
    assert min(laid_NK.stride()) == 1 and max(laid_NK.stride()) == max(shape)


def test_a_system_without_large_pages_gives_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: mmap.mmap, option: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", type("NoAdvice", (mmap.mmap,), {"madvise": refuse}))
    weight_NK = torch.randn(800, 700)
    assert torch.equal(laid_for_one_row(weight_NK), weight_NK)


def test_other_types_stay_as_they_are() -> None:
    layer = nn.Linear(4, 8).to(torch.bfloat16)
    order_for_one_row(layer)
    assert layer.weight.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_one_input_lie_side_by_side_as_one_product(dtype: torch.dtype) -> None:
    groups = [[nn.Linear(16, 24), nn.Linear(16, 8)], [nn.Linear(40, 16)]]
    before = [[layer.to(dtype).weight.detach().clone() for layer in group] for group in groups]
    laid = lay_side_by_side(groups)
    for group, weights, weight_NK in zip(groups, before, laid, strict=True):
        assert torch.equal(weight_NK, torch.cat(weights))
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(group, weights, strict=True))
        group[-1].weight.data.zero_()  # it is the same memory
        assert not weight_NK[-group[-1].out_features :].any()
