"""What a sketch forgets, and when: by rows written to a slot, however they are batched."""

# B rows of a call, K arrays, V value columns

from __future__ import annotations

import pytest
import torch
from sketch_reference import decayed, everything
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks import Forgetting, HalfLife, Never, ResetEvery, SketchBank, Slices

K, L = 3, 4


def sketch(forgetting: Forgetting, slots: int = 1) -> SketchBank:
    return SketchBank(K, L, ("label", "base"), slots=slots, forgetting=forgetting)


def rows(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1 << L, (number, K), generator=generator), torch.rand(number, 2, generator=generator)


@pytest.mark.parametrize("written", [1, 12, 13, 14, 39, 40])
def test_one_slice_is_a_reset(written: int):
    buckets_BK, values_BV = rows(written)
    sliced, reset = sketch(Slices(13, 1)), sketch(ResetEvery(13))
    for bank in (sliced, reset):
        bank.write(buckets_BK, values_BV)
    assert torch.equal(everything(sliced), everything(reset))
    assert torch.equal(sliced.written, reset.written)


def test_a_reset_comes_with_the_row_after_the_last():
    buckets_BK, values_BV = rows(11)
    bank = sketch(ResetEvery(10))
    bank.write(buckets_BK[:10], values_BV[:10])
    assert int(bank.written) == 10
    bank.write(buckets_BK[10:], values_BV[10:])
    assert int(bank.written) == 1
    fresh = sketch(Never())
    fresh.write(buckets_BK[10:], values_BV[10:])
    assert torch.equal(everything(bank), everything(fresh))


@pytest.mark.parametrize("written", [1, 5, 20, 21, 24, 26, 40, 73])
def test_a_window_equals_a_fresh_sketch_of_the_windows_rows(written: int):
    buckets_BK, values_BV = rows(written)
    bank, fresh = sketch(Slices(20, 4)), sketch(Never())
    bank.write(buckets_BK, values_BV)
    held = int(bank.written)
    assert min(written, 16) <= held <= 20
    fresh.write(buckets_BK[-held:], values_BV[-held:])
    assert torch.equal(everything(bank), everything(fresh))


def test_slots_forget_by_their_own_rows():
    buckets_BK, values_BV = rows(30)
    bank = sketch(ResetEvery(10), slots=2)
    bank.write(buckets_BK, values_BV, slots_B=torch.tensor([0, 0, 1]).repeat(10))
    assert bank.written.tolist() == [10, 10]
    bank.write(buckets_BK[:1], values_BV[:1], slots_B=torch.tensor([1]))
    assert bank.written.tolist() == [10, 1]


@pytest.mark.parametrize("half_life", [1, 3, 50])
@pytest.mark.parametrize("written", [1, 30, 200])
def test_a_row_counts_half_after_a_half_life(half_life: int, written: int):
    buckets_BK, values_BV = rows(written)
    bank = sketch(HalfLife(half_life))
    bank.write(buckets_BK, values_BV)
    for query_K in buckets_BK[-3:]:
        found = bank.read(query_K[None])
        got = torch.cat([found.count_BK[0][:, None], found.sums_BKV[0]], dim=1)
        wanted = torch.tensor(decayed(buckets_BK, values_BV, query_K, half_life), dtype=torch.float64)
        # Every row is rounded to 2^-24 of the weight it is written with, and once more at every shift, which may also empty
        # a cell of less than 2^-12 rows.
        torch.testing.assert_close(got, wanted, rtol=0, atol=written * 2.0**-23 + 2.0**-12)
    weights = torch.tensor([0.5 ** (age / half_life) for age in range(written)], dtype=torch.float64)
    torch.testing.assert_close(bank.written[0], weights.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("half_life", [1, 4, 37])
@pytest.mark.parametrize("step", [1, 7, 64])
def test_a_half_life_leaves_the_same_bits_however_rows_are_batched(half_life: int, step: int):
    buckets_BK, values_BV = rows(300)
    slots_B = torch.arange(300) % 2
    whole, cut = sketch(HalfLife(half_life), slots=2), sketch(HalfLife(half_life), slots=2)
    whole.write(buckets_BK, values_BV, slots_B=slots_B)
    for start in range(0, 300, step):
        stop = start + step
        cut.write(buckets_BK[start:stop], values_BV[start:stop], slots_B=slots_B[start:stop])
    assert torch.equal(everything(whole), everything(cut))
    assert torch.equal(whole.written, cut.written)


def test_what_is_old_beyond_measure_is_gone():
    buckets_BK, values_BV = rows(1)
    bank = sketch(HalfLife(2))
    bank.write(buckets_BK, values_BV)
    others_BK, other_values_BV = (buckets_BK + 1).remainder(1 << L).expand(500, K), values_BV.expand(500, 2)
    bank.write(others_BK, other_values_BV)
    found = bank.read(buckets_BK)
    assert not found.count_BK.any() and not found.sums_BKV.any()


def test_means_of_a_bucket_stay_true_until_it_is_empty():
    bank = SketchBank(1, 1, ("label",), forgetting=HalfLife(10))
    old, new = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64)
    bank.write(old.expand(4, 1), torch.tensor([[1.0], [0.0], [1.0], [1.0]]))
    ages = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    weight = 0.5 ** (ages / 10)
    wanted = float((weight * torch.tensor([1.0, 0.0, 1.0, 1.0])).sum() / weight.sum())
    emptied_after = None
    for row in range(400):
        bank.write(new, torch.zeros(1, 1))
        found = bank.read(old)
        if not found.count_BK.any():
            emptied_after = emptied_after or row
            continue
        assert emptied_after is None
        assert abs(float(found.sums_BKV / found.count_BK[..., None]) - wanted) < 1e-3
    assert emptied_after is not None and emptied_after >= 120  # twelve half-lives


def test_sums_of_a_half_life_stay_finite_for_a_million_rows():
    bank = SketchBank(1, 0, ("label",), forgetting=HalfLife(1000))
    zeros_BK = torch.zeros(10_000, 1, dtype=torch.int64)
    for _ in range(100):
        bank.write(zeros_BK, torch.ones(10_000, 1))
    found = bank.read(zeros_BK[:1])
    # The limit of a geometric series.
    wanted = 1 / (1 - 0.5 ** (1 / 1000))
    assert abs(found.count_BK.item() - wanted) < 1e-4 * wanted
    assert abs(found.sums_BKV.item() - found.count_BK.item()) < 1e-6 * wanted
    assert abs(float(bank.written) - wanted) < 1e-9 * wanted


@pytest.mark.parametrize("rule", [Never(), ResetEvery(9), Slices(12, 3), HalfLife(6)])
def test_a_cleared_slot_is_as_new_and_the_others_stay(rule: Forgetting):
    buckets_BK, values_BV = rows(40)
    slots_B = torch.arange(40) % 2
    bank, fresh, kept = (sketch(rule, slots=2) for _ in range(3))
    for one in (bank, kept):
        one.write(buckets_BK, values_BV, slots_B=slots_B)
    bank.clear(torch.tensor([1]))
    assert torch.equal(everything(bank)[0], everything(kept)[0])
    assert not everything(bank)[1].any() and bank.written[1] == 0
    for one in (bank, fresh):
        one.write(buckets_BK[:11], values_BV[:11], slots_B=torch.ones(11, dtype=torch.int64))
    assert torch.equal(everything(bank)[1], everything(fresh)[1])
    bank.clear()
    assert not everything(bank).any() and not bank.written.any()


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (ResetEvery, {"rows": 0}),
        (Slices, {"rows": 3, "slices": 4}),
        (Slices, {"rows": 3, "slices": 0}),
        (HalfLife, {"rows": 0}),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule: type, options: dict[str, int]):
    with pytest.raises(ConfigError, match=str(options["rows"])):
        rule(**options)
