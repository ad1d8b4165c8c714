"""SketchBank against a dict of cells; order, cuts, writers and devices leave the same bits."""

# B rows of a call, K arrays, V value columns

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sketch_reference import CellDict, everything, same
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks import HalfLife, Never, ResetEvery, SignHash, SketchBank, Slices, mean_direction

K, L, COLUMNS = 3, 4, ("label", "base")


def sketch(**options: object) -> SketchBank:
    return SketchBank(K, L, COLUMNS, **options)  # type: ignore[arg-type]


def rows(number: int, seed: int = 0, slots: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return buckets, values in [0, 1] and slots; few buckets are drawn often, as in life."""
    generator = torch.Generator().manual_seed(seed)
    buckets_BK = (torch.rand(number, K, generator=generator) ** 3 * (1 << L)).long()
    values_BV = torch.rand(number, len(COLUMNS), generator=generator)
    return buckets_BK, values_BV, torch.randint(slots, (number,), generator=generator)


RULES = [Never(), ResetEvery(13), Slices(20, 4), Slices(23, 3), Slices(9, 1)]


@settings(deadline=None, max_examples=40)
@given(
    rule=st.sampled_from(RULES),
    slots=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 40), max_size=8),
)
@pytest.mark.heavy
def test_any_batches_equal_rows_one_by_one_in_a_dict(rule: object, slots: int, seed: int, cuts: list[int]):
    bank, reference = sketch(slots=slots, forgetting=rule), CellDict(rule)
    for step, number in enumerate(cuts):
        buckets_BK, values_BV, slots_B = rows(number, seed + step, slots)
        bank.write(buckets_BK, values_BV, slots_B=slots_B)
        reference.write(buckets_BK, values_BV, slots_B)
        assert same(bank, reference)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), order=st.randoms(use_true_random=False), cut=st.integers(0, 50))
def test_order_cut_and_merge_of_the_same_rows_leave_the_same_bits(seed: int, order: object, cut: int):
    buckets_BK, values_BV, slots_B = rows(50, seed, 2)
    shuffled = list(range(50))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    whole, first, second = sketch(slots=2), sketch(slots=2), sketch(slots=2)
    whole.write(buckets_BK, values_BV, slots_B=slots_B)
    for part, bank in ((shuffled[:cut], first), (shuffled[cut:], second)):
        bank.write(buckets_BK[part], values_BV[part], slots_B=slots_B[part])
    first.merge(second)
    assert torch.equal(everything(first), everything(whole))
    assert torch.equal(first.written, whole.written)


def test_every_array_holds_all_rows_and_all_sums():
    buckets_BK, values_BV, _ = rows(200)
    bank = sketch()
    bank.write(buckets_BK, values_BV)
    totals_KC = everything(bank)[0].sum(0)
    fixed_V = (values_BV.double() * 2**24).round().sum(0) / 2**24
    for total_C in totals_KC:
        assert total_C[0] == 200 == int(bank.written)
        assert torch.equal(total_C[1:], fixed_V)


def test_without_bits_every_row_is_in_the_one_bucket():
    _, values_BV, _ = rows(40)
    bank = SketchBank(K, 0, COLUMNS)
    bank.write(torch.zeros(40, K, dtype=torch.int64), values_BV)
    found = bank.read(torch.zeros(1, K, dtype=torch.int64))
    assert found.count_BK.tolist() == [[40.0] * K]
    torch.testing.assert_close(found.sums_BKV[0] / 40, values_BV.double().mean(0).expand(K, -1), rtol=0, atol=2**-24)


def test_what_was_written_is_found_by_the_same_vector():
    hash_, bank = SignHash(10, K, L, 0), sketch()
    x_BD = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    bank.write(hash_.hash(x_BD), torch.rand(60, 2))
    assert bool((bank.read(hash_.hash(x_BD)).count_BK >= 1).all())


def test_an_empty_bucket_reads_zero():
    found = sketch(slots=2).read(torch.zeros(2, K, dtype=torch.int64), slots_B=torch.tensor([1, 0]))
    assert not found.count_BK.any() and not found.sums_BKV.any()


@pytest.mark.parametrize("rule", [Never(), ResetEvery(50)])
def test_an_adjustment_equals_having_written_it_in_the_first_place(rule: Never | ResetEvery):
    buckets_BK, values_BV, slots_B = rows(40, slots=2)
    late, once = sketch(slots=2, forgetting=rule), sketch(slots=2, forgetting=rule)
    once.write(buckets_BK, torch.stack([torch.ones(40), values_BV[:, 1]], dim=1), slots_B=slots_B)
    late.write(buckets_BK, torch.stack([torch.zeros(40), values_BV[:, 1]], dim=1), slots_B=slots_B)
    late.correct(buckets_BK, torch.tensor([[1.0, 0.0]]).expand(40, 2), slots_B=slots_B)
    assert torch.equal(everything(late), everything(once))
    assert torch.equal(late.written, once.written)


@pytest.mark.parametrize("rule", [Slices(8, 2), HalfLife(5)])
def test_rows_that_lost_weight_are_not_adjusted(rule: Slices | HalfLife):
    with pytest.raises(ConfigError, match="use Never or ResetEvery"):
        sketch(forgetting=rule).correct(torch.zeros(1, K, dtype=torch.int64), torch.ones(1, 2))


def test_counts_go_on_where_float32_would_stand_still():
    bank, twin = (SketchBank(1, 0, ("label",)) for _ in range(2))
    zeros_BK = torch.zeros(1 << 16, 1, dtype=torch.int64)
    for one in (bank, twin):
        one.write(zeros_BK, torch.ones(1 << 16, 1))
    for _ in range(8):  # doubles to 2^24
        bank.merge(twin)
        twin.merge(twin)
    bank.write(zeros_BK[:1], torch.ones(1, 1))
    found = bank.read(zeros_BK[:1])
    assert found.count_BK.item() == found.sums_BKV.item() == 2**24 + 1


@pytest.mark.parametrize("step", [1, 3, 50])
def test_a_slot_with_too_many_rows_is_halved_and_says_so(step: int):
    buckets_BK = torch.zeros(50, K, dtype=torch.int64)
    bank = sketch(slots=2, most_rows=20)
    slots_B = torch.arange(50) % 5 // 4  # 40 rows of slot 0, 10 of slot 1
    for start in range(0, 50, step):
        stop = start + step
        bank.write(buckets_BK[start:stop], torch.ones(len(slots_B[start:stop]), 2), slots_B=slots_B[start:stop])
    # Rows 1 to 20; halved to 10, 11 to 20; halved to 10, 11 to 20.
    assert bank.halvings.tolist() == [2, 0]
    assert bank.written.tolist() == [20, 10]
    found = bank.read(buckets_BK[:2], slots_B=torch.tensor([0, 1]))
    assert found.count_BK.tolist() == [[20.0] * K, [10.0] * K]
    assert found.sums_BKV.tolist() == [[[20.0] * 2] * K, [[10.0] * 2] * K]


def test_nothing_grows_with_the_number_of_rows():
    bank = sketch(forgetting=Slices(20, 4))
    before = bank.bytes()
    for seed in range(30):
        buckets_BK, values_BV, _ = rows(20, seed)
        bank.write(buckets_BK, values_BV)
    assert bank.bytes() == before


@pytest.mark.parametrize("rule", [*RULES, HalfLife(7)])
def test_bytes_are_what_bytes_needed_said(rule: Never | ResetEvery | Slices | HalfLife):
    bank = sketch(slots=3, forgetting=rule)
    assert bank.bytes()["device"] == 3 * SketchBank.bytes_needed(K, L, 2, rule)


def test_a_budget_that_is_too_small_is_refused_with_what_fits():
    need = SketchBank.bytes_needed(K, L, 2)
    assert sketch(slots=2, budget_bytes=2 * need).bytes() == {"device": 2 * need}
    with pytest.raises(ConfigError, match=r"2 streams fit.*bits"):
        sketch(slots=3, budget_bytes=2 * need)


@pytest.mark.parametrize("sizes", [{"arrays": 0}, {"bits": -1}, {"bits": 25}, {"slots": 0}, {"most_rows": 1}])
def test_sizes_that_make_no_sense_are_refused(sizes: dict[str, int]):
    options = {"arrays": K, "bits": L, "columns": COLUMNS} | sizes
    with pytest.raises(ConfigError, match="must be at least 1"):
        SketchBank(**options)  # type: ignore[arg-type]


def test_buckets_and_values_of_another_width_are_refused():
    with pytest.raises(ConfigError, match=r"\[2, 5\] do not fit 3 arrays"):
        sketch().read(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"values of shape \[2, 3\] for 2 rows"):
        sketch().write(torch.zeros(2, K, dtype=torch.int64), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (SketchBank(K + 1, L, COLUMNS), "arrays 3 and 4"),
        (SketchBank(K, L + 1, COLUMNS), "bits 4 and 5"),
        (SketchBank(K, L, ("label", "cost")), "columns .*base.* and .*cost"),
        (SketchBank(K, L, COLUMNS, slots=2), "slots 1 and 2"),
        (SketchBank(K, L, COLUMNS, forgetting=ResetEvery(5)), "only Never"),
    ],
)
def test_banks_that_do_not_fit_together_are_not_merged(other: SketchBank, what: str):
    with pytest.raises(ConfigError, match=what):
        sketch().merge(other)


def test_interest_is_the_mean_direction_of_what_shares_a_bucket():
    hash_, width = SignHash(5, 6, 2, 0), 5
    x_BD = torch.randn(30, width, generator=torch.Generator().manual_seed(1))
    buckets_BK = hash_.hash(x_BD)
    users = torch.arange(30) % 2
    batch, one_by_one = (SketchBank(6, 2, [f"d{i}" for i in range(width)], slots=2) for _ in range(2))
    batch.write(buckets_BK, x_BD, slots_B=users)
    for row in torch.randperm(30, generator=torch.Generator().manual_seed(2)).tolist():
        one_by_one.write(buckets_BK[row : row + 1], x_BD[row : row + 1], slots_B=users[row : row + 1])
    query_BD = torch.randn(8, width, generator=torch.Generator().manual_seed(3))
    query_BK, user_B = hash_.hash(query_BD), torch.arange(8) % 2
    found_BV = mean_direction(batch.read(query_BK, slots_B=user_B))
    assert torch.equal(found_BV, mean_direction(one_by_one.read(query_BK, slots_B=user_B)))
    for query in range(8):
        wanted_D = torch.zeros(width, dtype=torch.float64)
        for array in range(6):
            shared = (buckets_BK[:, array] == query_BK[query, array]) & (users == user_B[query])
            total_D = x_BD[shared].double().sum(0)
            wanted_D += total_D / total_D.norm() / 6 if shared.any() else 0
        torch.testing.assert_close(found_BV[query], wanted_D, rtol=0, atol=1e-6)  # fixed point of 2^-24


def test_with_many_arrays_interest_points_where_the_angles_say():
    arrays, bits, width = 6000, 2, 8
    x_BD = torch.randn(5, width, generator=torch.Generator().manual_seed(4))
    query_1D = torch.randn(1, width, generator=torch.Generator().manual_seed(5))
    hash_, bank = SignHash(width, arrays, bits, 0), SketchBank(arrays, bits, [f"d{i}" for i in range(width)])
    bank.write(hash_.hash(x_BD), x_BD)
    sum_D = bank.read(hash_.hash(query_1D)).sums_BKV[0].mean(0)
    angle_B = torch.nn.functional.cosine_similarity(x_BD, query_1D).arccos().double()
    wanted_D = ((1 - angle_B / torch.pi)[:, None] ** bits * x_BD).sum(0)
    # A mean over 6000 arrays of terms of a few units: a standard error of about 0.02.
    torch.testing.assert_close(sum_D, wanted_D, rtol=0, atol=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", [*RULES, HalfLife(7)])
def test_the_gpu_holds_the_bits_of_the_cpu(rule: Never | ResetEvery | Slices | HalfLife):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    on_cpu, on_gpu = (sketch(slots=2, forgetting=rule, device=device) for device in ("cpu", "cuda"))
    for seed in range(5):
        buckets_BK, values_BV, slots_B = rows(300, seed, 2)
        for bank in (on_cpu, on_gpu):
            bank.write(buckets_BK, values_BV, slots_B=slots_B)
        a, b = (bank.read(buckets_BK, slots_B=slots_B) for bank in (on_cpu, on_gpu))
        assert torch.equal(a.count_BK, b.count_BK.cpu()) and torch.equal(a.sums_BKV, b.sums_BKV.cpu())
