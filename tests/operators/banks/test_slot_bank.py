"""SlotBank and its policies against slow references that keep one Python list per stream."""

# S slots, B streams of a call, N new rows, R rows

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import ConfigError, RecoveryError
from operators.banks import (
    ReadBuffer,
    RowSpec,
    SlotBank,
    append,
    drop_redundant_neighbor,
    fifo_pinned,
    random_replacement,
    ring,
)
from operators.budget import check_budget
from operators.state import State


def make(slots: int = 3, capacity: int = 8, dtype: torch.dtype = torch.float32, **rows: RowSpec) -> SlotBank:
    bank = SlotBank("bank", rows or {"row": RowSpec((), dtype)}, slots=slots, capacity=capacity)
    bank.open(torch.arange(slots), torch.arange(slots) + 100)
    return bank


def held(bank: SlotBank, slot: int, name: str = "row") -> list[float]:
    """Return the rows of a slot, oldest position first."""
    readout = bank.read(torch.tensor([slot]))
    return readout.rows[name][0].tolist()


def put(bank: SlotBank, policy, writes: dict[int, list[float]]) -> None:
    """Write to several slots at once; the shorter lists get padded by -1."""
    width = max(len(rows) for rows in writes.values())
    rows = torch.tensor([list(r) + [-1.0] * (width - len(r)) for r in writes.values()])
    bank.write(torch.tensor(list(writes)), {"row": rows}, torch.tensor([len(r) for r in writes.values()]), policy, purpose=1)
    bank.advance(torch.tensor(list(writes)))


writes_of_streams = st.lists(
    st.dictionaries(st.integers(0, 2), st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=12
)


def numbered(plan: list[dict[int, int]]) -> list[dict[int, list[float]]]:
    """Turn row counts into rows that name their stream and their number."""
    seen = dict.fromkeys(range(3), 0)
    out = []
    for counts in plan:
        step = {}
        for slot, number in counts.items():
            step[slot] = [slot * 1000.0 + seen[slot] + i for i in range(number)]
            seen[slot] += number
        out.append(step)
    return out


@given(writes_of_streams)
@settings(max_examples=40, deadline=None)
def test_append_keeps_the_first_rows(plan: list[dict[int, int]]):
    bank, lists = make(), {slot: [] for slot in range(3)}
    for step in numbered(plan):
        put(bank, append, step)
        for slot, rows in step.items():
            lists[slot] = (lists[slot] + rows)[:8]
    assert {slot: held(bank, slot) for slot in range(3)} == lists


@given(writes_of_streams)
@settings(max_examples=40, deadline=None)
def test_ring_keeps_the_last_rows(plan: list[dict[int, int]]):
    bank, lists = make(capacity=4), {slot: [] for slot in range(3)}
    for step in numbered(plan):
        put(bank, ring, step)
        for slot, rows in step.items():
            lists[slot] = (lists[slot] + rows)[-4:]
    for slot in range(3):
        assert sorted(held(bank, slot)) == sorted(lists[slot])


@pytest.mark.heavy
@given(writes_of_streams, st.booleans())
@settings(max_examples=60, deadline=None)
def test_random_replacement_obeys_the_size_law_and_keeps_all_new_rows(plan: list[dict[int, int]], overshoot: bool):
    limit, widest = 7, 6
    bank = make(capacity=limit + widest - 1 if overshoot else limit)
    policy = random_replacement(limit, overshoot=overshoot)
    for step in numbered(plan):
        before = {slot: held(bank, slot) for slot in step}
        put(bank, policy, step)
        for slot, new in step.items():
            old, now = before[slot], held(bank, slot)
            official = len(old) + (len(new) if len(old) < limit else 0)
            size = official if overshoot else min(len(old) + len(new), limit)
            assert len(now) == size
            assert len(set(now)) == len(now)
            assert set(now) <= set(old) | set(new)
            assert set(new) <= set(now)
            if not new:
                assert now == old
    for slot in range(3):
        assert all(slot * 1000 <= row < slot * 1000 + 1000 for row in held(bank, slot))


def test_official_size_law_ends_at_20025():
    bank = SlotBank("bank", {"row": RowSpec((), torch.float16)}, slots=1, capacity=20000 + 75 - 1)
    policy, slot = random_replacement(20000, overshoot=True), torch.tensor([0])
    bank.open(slot, torch.tensor([1]))
    bank.write(slot, {"row": torch.zeros(1, 1125)}, torch.tensor([1125]), policy)
    sizes = []
    for _ in range(255):
        bank.write(slot, {"row": torch.ones(1, 75)}, torch.tensor([75]), policy, purpose=1)
        bank.advance(slot)
        sizes.append(int(bank.fill(slot)))
    assert sizes == [min(1125 + 75 * t, 20025) for t in range(1, 256)]
    assert sizes.index(20025) == 251


def test_published_bank_that_is_full_becomes_a_larger_write_whole():
    bank, policy = make(capacity=12), random_replacement(4, overshoot=True)
    put(bank, policy, {0: [1.0, 2.0, 3.0, 4.0], 1: [1.0, 2.0], 2: [1.0, 2.0, 3.0, 4.0, 5.0]})
    put(bank, policy, {0: [10.0 + i for i in range(9)], 1: [20.0 + i for i in range(9)], 2: [30.0, 31.0]})
    assert sorted(held(bank, 0)) == [10.0 + i for i in range(9)]  # as the published slice, which keeps nothing then
    assert held(bank, 1) == [1.0, 2.0, *(20.0 + i for i in range(9))]
    assert len(held(bank, 2)) == 5 and {30.0, 31.0} <= set(held(bank, 2))
    put(bank, policy, {0: [40.0]})
    assert len(held(bank, 0)) == 9 and 40.0 in held(bank, 0)


def test_replaced_rows_are_uniform_and_ages_geometric():
    size, n, steps = 60, 6, 100  # hardly a row of the first write is left then
    bank = make(slots=40, capacity=size)
    slots = torch.arange(40)
    policy = random_replacement(size)
    bank.write(slots, {"row": torch.zeros(40, size)}, torch.full((40,), size), policy)
    for step in range(1, steps):
        bank.write(slots, {"row": torch.full((40, n), float(step))}, torch.full((40,), n), policy, purpose=1)
        bank.advance(slots)
    ages = (steps - 1 - bank.read(slots).rows["row"]).flatten().numpy()
    # A row survives a step with probability q = 1 - n/size, so P(age >= a) = q^a.
    q = 1 - n / size
    for age in (1, 5, 10, 20):
        expected = q**age
        sigma = math.sqrt(expected * (1 - expected) / len(ages))
        assert abs((ages >= age).mean() - expected) < 5 * sigma


def test_sample_reads_distinct_rows_of_the_own_stream_and_masks_young_ones():
    bank = make(capacity=50)
    put(bank, append, {0: list(range(40)), 1: [1000.0, 1001.0], 2: []})
    readout = bank.sample(torch.tensor([0, 1, 2]), 10, purpose=0)
    rows = readout.rows["row"]
    assert readout.valid_BK.sum(1).tolist() == [10, 2, 0]
    assert len(set(rows[0].tolist())) == 10
    assert set(rows[0].tolist()) <= set(range(40))
    assert rows[1, :2].tolist() == [1000.0, 1001.0]


def test_sample_does_not_depend_on_the_other_streams_of_the_call():
    bank = make(capacity=50)
    put(bank, append, {0: list(range(40)), 1: [1000.0 + i for i in range(3)], 2: [2000.0 + i for i in range(30)]})
    together = bank.sample(torch.tensor([2, 0, 1]), 10, purpose=0)
    for b, slot in enumerate((2, 0, 1)):
        alone = bank.sample(torch.tensor([slot]), 10, purpose=0)
        assert together.rows["row"][b][together.valid_BK[b]].tolist() == alone.rows["row"][0][alone.valid_BK[0]].tolist()


def test_read_buffer_changes_nothing_but_where_rows_are_kept():
    plain, buffered = make(capacity=50), make(capacity=50)
    buffered._buffer = ReadBuffer()
    for bank in (plain, buffered):
        put(bank, append, {0: list(range(40))})
    slot = torch.tensor([0])
    first = buffered.sample(slot, 10, purpose=0).rows["row"]
    assert torch.equal(first, plain.sample(slot, 10, purpose=0).rows["row"])
    assert buffered.sample(slot, 10, purpose=1).rows["row"].data_ptr() == first.data_ptr()


def test_split_read_is_the_transposed_read():
    bank = make(capacity=20, key=RowSpec((3, 4)))
    bank.write(torch.tensor([0, 2]), {"key": torch.randn(2, 20, 3, 4)}, torch.tensor([20, 7]), append)
    slots = torch.tensor([2, 0])
    plain, split = (bank.sample(slots, 6, purpose=0, split=s) for s in (False, True))
    assert torch.equal(plain.index_BK, split.index_BK)
    assert torch.equal(split.rows["key"], plain.rows["key"].transpose(1, 2)) and split.rows["key"].is_contiguous()


def test_top_k_reads_the_best_rows_in_order():
    bank = make()
    put(bank, append, {0: [10.0, 11.0, 12.0, 13.0], 1: [20.0]})
    score = torch.tensor([[0.1, 0.9, 0.5, 0.2, 9, 9, 9, 9], [0.3, 9, 9, 9, 9, 9, 9, 9]])
    readout = bank.top_k(torch.tensor([0, 1]), score, 3)
    assert readout.rows["row"][0].tolist() == [11.0, 12.0, 13.0]
    assert readout.valid_BK.tolist() == [[True] * 3, [True, False, False]]
    assert readout.rows["row"][1, 0].item() == 20.0


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=15))
@settings(max_examples=40, deadline=None)
def test_fifo_spares_pinned_rows(writes: list[tuple[int, bool]]):
    bank = make(slots=2, capacity=4, row=RowSpec(()), order=RowSpec((), torch.int64), pinned=RowSpec((), torch.bool))
    slot, reference, clock = torch.tensor([1]), [], 0
    for number, pin in writes:
        new = [(float(clock + i), clock + i, pin) for i in range(number)]
        clock += number
        rows = {
            "row": torch.tensor([[r[0] for r in new]]),
            "order": torch.tensor([[r[1] for r in new]]),
            "pinned": torch.tensor([[r[2] for r in new]]),
        }
        bank.write(slot, rows, torch.tensor([number]), fifo_pinned())
        # All rows of a write compete for the places there are before it.
        free = 4 - len(reference)
        loose = sorted((r for r in reference if not r[2]), key=lambda r: r[1])
        stored = new[: free + len(loose)]
        for old in loose[: max(0, len(stored) - free)]:
            reference.remove(old)
        reference += stored
    assert sorted(held(bank, 1)) == sorted(r[0] for r in reference)


def test_a_full_bank_does_not_grow_when_a_row_that_was_given_back_is_used_again():
    bank = make(slots=1, capacity=2, row=RowSpec(()), order=RowSpec((), torch.int64), pinned=RowSpec((), torch.bool))
    slot = torch.tensor([0])
    for value, order in ((0.0, 0), (1.0, 1), (2.0, 2)):
        if value == 2:
            bank.assign(slot, "order", torch.tensor([[0, -(2**62)]]))  # before all others
        rows = {"row": torch.tensor([[value]]), "order": torch.tensor([[order]]), "pinned": torch.tensor([[False]])}
        bank.write(slot, rows, torch.tensor([1]), fifo_pinned())
    assert held(bank, 0) == [0.0, 2.0]


def test_drop_redundant_neighbor_equals_the_list_version():
    torch.manual_seed(3)
    bank = make(slots=3, capacity=5, feature=RowSpec((6,)), order=RowSpec((), torch.int64))
    slots, lists = torch.tensor([2, 0]), {2: [], 0: []}
    for t in range(40):
        feature = torch.randn(2, 1, 6)
        if t % 5 == 0 and t:
            feature[0] = lists[2][-1][1]  # an exact repeat
        rows = {"feature": feature, "order": torch.full((2, 1), t)}
        bank.write(slots, rows, torch.tensor([1, 1]), drop_redundant_neighbor())
        for b, slot in enumerate((2, 0)):
            kept = lists[slot]
            kept.append((t, feature[b, 0]))
            if len(kept) > 5:
                likeness = [float(torch.cosine_similarity(a[1], c[1], dim=0)) for a, c in pairwise(kept)]
                del kept[int(np.argmax(likeness))]
            assert sorted(held(bank, slot, "order")) == [time for time, _ in kept]


def test_half_precision_rows_stay_finite():
    bank = make(dtype=torch.float16)
    put(bank, append, {0: [1e6, -1e6, 1.0]})
    assert held(bank, 0) == [65504.0, -65504.0, 1.0]


def test_clear_forgets_rows_but_goes_on_drawing():
    bank = make()
    put(bank, append, {0: [1.0, 2.0], 1: [5.0]})
    bank.clear(torch.tensor([0]))
    assert held(bank, 0) == [] and held(bank, 1) == [5.0]
    assert bank.step(torch.tensor([0])).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bytes_equal_the_declared_figure(dtype: torch.dtype):
    rows = {"key": RowSpec((16,), dtype), "value": RowSpec((4, 2), dtype)}
    bank = SlotBank("bank", rows, slots=5, capacity=33)
    storage = [t for t in vars(bank).values() if isinstance(t, torch.Tensor)] + list(bank.rows.values())
    assert bank.bytes()["device"] == sum(t.untyped_storage().nbytes() for t in storage) == 5 * SlotBank.bytes_per_slot(rows, 33)


def test_nothing_is_allocated_by_ten_times_the_capacity():
    bank = make(capacity=8)
    before = {name: (t.data_ptr(), t.shape) for name, t in bank.rows.items()}
    policy = random_replacement(8)
    for _ in range(40):
        put(bank, policy, {0: [1.0, 2.0], 1: [3.0, 4.0]})
    assert {name: (t.data_ptr(), t.shape) for name, t in bank.rows.items()} == before


def test_budget_error_names_need_limit_and_what_fits():
    check_budget("detect", bytes_per_stream=100, streams=10, budget=1000, hint="")
    with pytest.raises(
        ConfigError, match=r"detect: banks for 8 streams need 2.4 GiB \(307.2 MiB per stream\).* 1 GiB; 3 streams fit"
    ):
        check_budget("detect", bytes_per_stream=int(0.3 * 2**30), streams=8, budget=2**30, hint="Lower max_streams")


# Snapshots


def exported(bank: SlotBank, slots: list[int], *, incremental: bool = False) -> State:
    state = State(streams=[f"stream{slot}" for slot in slots], incremental=incremental)
    bank.export(torch.tensor(slots, dtype=torch.int64), state, incremental=incremental)
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_snapshot_round_trip_is_exact_in_other_slots(dtype: torch.dtype):
    bank = make(dtype=dtype)
    put(bank, random_replacement(8), {0: [0.1, 1 / 3], 2: [7.7] * 6})
    state = exported(bank, [0, 2])
    other = make(dtype=dtype)
    other.load(torch.tensor([1, 0]), state)
    assert held(other, 1) == held(bank, 0) and held(other, 0) == held(bank, 2)
    for counter in ("fill", "step", "seed", "written"):
        assert getattr(other, counter)(torch.tensor([1, 0])).tolist() == getattr(bank, counter)(torch.tensor([0, 2])).tolist()


@given(writes_of_streams, st.sets(st.integers(0, 11)), st.sets(st.tuples(st.integers(0, 11), st.integers(0, 2))))
@settings(max_examples=40, deadline=None)
def test_chain_of_increments_equals_a_full_snapshot(plan: list[dict[int, int]], cuts: set[int], clears: set[tuple[int, int]]):
    bank = make(capacity=7)
    policy = random_replacement(7)
    state = exported(bank, [0, 1, 2])
    bank.mark_clean()
    for number, step in enumerate(numbered(plan)):
        put(bank, policy, step)
        for slot in range(3):
            if (number, slot) in clears:
                bank.clear(torch.tensor([slot]))
        if number in cuts:
            state = state.apply(exported(bank, [0, 1, 2], incremental=True))
            bank.mark_clean()
    state = state.apply(exported(bank, [0, 1, 2], incremental=True))
    full = exported(bank, [0, 1, 2])
    assert torch.equal(state.rows["bank.row"].values_R, full.rows["bank.row"].values_R)
    assert all(torch.equal(state.dense[name], full.dense[name]) for name in full.dense)


def test_increment_holds_only_the_rows_that_changed():
    bank = make(capacity=8)
    put(bank, append, {0: [1.0, 2.0, 3.0], 1: [4.0]})
    bank.mark_clean()
    put(bank, append, {0: [9.0]})
    rows = exported(bank, [0, 1], incremental=True).rows["bank.row"]
    assert rows.values_R.tolist() == [9.0] and rows.index_R.tolist() == [3]
    assert rows.length_N.tolist() == [4, 1] and rows.count_N.tolist() == [1, 0]


def test_snapshot_owns_its_memory():
    bank = make()
    put(bank, append, {0: [1.0, 2.0]})
    state = exported(bank, [0])
    put(bank, random_replacement(2), {0: [8.0, 9.0]})
    assert state.rows["bank.row"].values_R.tolist() == [1.0, 2.0]


def test_snapshot_that_does_not_fit_is_refused_by_name():
    bank = make(capacity=8)
    put(bank, append, {0: [1.0] * 8})
    state = exported(bank, [0])
    with pytest.raises(RecoveryError, match="holds 8 rows of bank, the bank's capacity is 5"):
        make(capacity=5).load(torch.tensor([0]), state)
    with pytest.raises(RecoveryError, match=r"bank\.row .* torch.float32, the bank's are .* torch.float16"):
        make(dtype=torch.float16).load(torch.tensor([0]), state)
    with pytest.raises(RecoveryError, match=r"has no rows bank\.other"):
        make(other=RowSpec(())).load(torch.tensor([0]), state)
