"""Snapshots of a sketch: a restored bank goes on to the bit, increments add up, and stay small."""

# B rows of a call, K arrays

from __future__ import annotations

import pytest
import torch
from sketch_reference import everything
from torch import Tensor

from connectors.errors import RecoveryError
from operators.banks import Forgetting, HalfLife, Never, ResetEvery, SketchBank, Slices
from operators.state import State

K, L, SLOTS = 3, 4, 2
RULES = [Never(), ResetEvery(13), Slices(20, 4), HalfLife(3)]
ALL = torch.arange(SLOTS)


def sketch(rule: Forgetting, bits: int = L) -> SketchBank:
    return SketchBank(K, bits, ("label", "base"), slots=SLOTS, forgetting=rule, most_rows=30)


def rows(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    buckets_BK = torch.randint(1 << L, (number, K), generator=generator)
    return buckets_BK, torch.rand(number, 2, generator=generator), torch.randint(SLOTS, (number,), generator=generator)


def feed(bank: SketchBank, number: int, seed: int) -> None:
    buckets_BK, values_BV, slots_B = rows(number, seed)
    bank.write(buckets_BK, values_BV, slots_B=slots_B)


def exported(bank: SketchBank, *, incremental: bool = False) -> State:
    state = State(streams=["a", "b"], incremental=incremental)
    bank.export(ALL, state, incremental=incremental)
    return state


def restored(rule: Forgetting, state: State) -> SketchBank:
    bank = sketch(rule)
    bank.load(ALL, state)
    return bank


def equal(a: SketchBank, b: SketchBank) -> bool:
    return all(torch.equal(x, y) for x, y in ((everything(a), everything(b)), (a.written, b.written), (a.halvings, b.halvings)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("before", [0, 1, 13, 50])
def test_a_restored_bank_goes_on_as_if_nothing_had_happened(rule: Forgetting, before: int):
    bank = sketch(rule)
    feed(bank, before, 0)
    other = restored(rule, exported(bank))
    assert equal(bank, other)
    for seed in range(1, 6):
        for one in (bank, other):
            feed(one, 17, seed)
        assert equal(bank, other)


@pytest.mark.parametrize("rule", RULES)
def test_increments_add_up_to_a_full_snapshot(rule: Forgetting):
    bank = sketch(rule)
    feed(bank, 9, 0)
    state = exported(bank)
    bank.mark_clean()
    for seed in range(1, 15):
        feed(bank, 6, seed)
        if seed == 5:
            bank.clear(torch.tensor([1]))
        state = state.apply(exported(bank, incremental=True))
        bank.mark_clean()
        assert equal(bank, restored(rule, state))
    # What a restored bank does next must not depend on cells that only a full snapshot would show.
    other = restored(rule, state)
    for one in (bank, other):
        feed(one, 60, 99)
    assert equal(bank, other)


@pytest.mark.parametrize("rule", RULES)
def test_a_stream_that_is_new_since_the_last_snapshot_starts_from_zeros(rule: Forgetting):
    bank = sketch(rule)
    buckets_BK, values_BV, _ = rows(5, 0)
    bank.write(buckets_BK, values_BV, slots_B=torch.zeros(5, dtype=torch.int64))
    state = State(streams=["a"])
    bank.export(ALL[:1], state)
    bank.mark_clean()
    bank.write(buckets_BK, values_BV, slots_B=torch.ones(5, dtype=torch.int64))
    change = exported(bank, incremental=True)
    assert equal(bank, restored(rule, state.apply(change)))


def test_an_increment_holds_the_cells_that_changed_only():
    bank = SketchBank(20, 12, ("label", "base"))
    generator = torch.Generator().manual_seed(0)
    bank.write(torch.randint(1 << 12, (3000, 20), generator=generator), torch.rand(3000, 2, generator=generator))
    full = State(streams=["a"])
    bank.export(torch.tensor([0]), full)
    bank.mark_clean()
    bank.write(torch.randint(1 << 12, (10, 20), generator=generator), torch.rand(10, 2, generator=generator))
    change = State(streams=["a"], incremental=True)
    bank.export(torch.tensor([0]), change, incremental=True)
    assert 0 < change.rows["sketch.cells"].values_R.shape[0] <= 10 * 20
    assert change.bytes() < full.bytes() / 100


def test_a_snapshot_is_a_copy():
    bank = sketch(Never())
    feed(bank, 9, 0)
    state = exported(bank)
    before = state.rows["sketch.cells"].values_R.clone()
    feed(bank, 9, 1)
    assert torch.equal(state.rows["sketch.cells"].values_R, before)


@pytest.mark.parametrize("other", [sketch(Never(), bits=L + 1), SketchBank(K, L, ("label",), slots=SLOTS)])
def test_a_snapshot_of_another_shape_is_refused(other: SketchBank):
    with pytest.raises(RecoveryError, match="resume with the arrays, bits and forgetting of the first run"):
        other.load(ALL, exported(sketch(Never())))


def test_a_snapshot_without_slices_is_refused_by_a_window():
    with pytest.raises(RecoveryError, match="missing"):
        restored(Slices(20, 4), exported(sketch(Never())))
