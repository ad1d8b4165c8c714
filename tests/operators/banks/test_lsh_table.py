"""LshTable against buckets kept as Python lists, and against the exact search of its ring."""

# B rows of a call, D dim, K arrays, k neighbors

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks import LshTable, Neighbors, RowRing
from operators.state import State

DIM = 6


class Signs:
    """Signed random projections, written out."""

    def __init__(self, arrays: int, bits: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.W_KLD = torch.randn(arrays, bits, DIM, generator=generator, dtype=torch.float64)
        self.weights_L = 2 ** torch.arange(bits)

    def hash(self, x_BD: Tensor) -> Tensor:
        bits_BKL = torch.einsum("kld,bd->bkl", self.W_KLD, x_BD.double()) > 0
        return (bits_BKL.long() * self.weights_L).sum(2)


class BucketLists:
    """Per array and bucket the list of its rows, as the policy leaves it, one row at a time."""

    def __init__(self, arrays: int, bits: int, slots: int) -> None:
        self.arrays, self.slots, self.hash = arrays, slots, Signs(arrays, bits)
        self.lists: dict[tuple[int, int], list[int]] = {}
        self.written = 0

    def add_fifo(self, h_BD: Tensor) -> None:
        for buckets in self.hash.hash(h_BD).tolist():
            for place in enumerate(buckets):
                rows = self.lists.setdefault(place, [])
                rows.append(self.written)
                del rows[: -self.slots]
            self.written += 1

    def candidates(self, q_D: Tensor, oldest: int) -> set[int]:
        (buckets,) = self.hash.hash(q_D[None]).tolist()
        return {row for place in enumerate(buckets) for row in self.lists.get(place, []) if row >= oldest}


def table(capacity: int, arrays: int, bits: int, slots: int, policy: str = "fifo") -> LshTable:
    return LshTable(RowRing(capacity, DIM), arrays, bits, slots, Signs(arrays, bits), policy)


def rows(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, DIM, generator=generator), torch.rand(number, 2, generator=generator)


def assert_same(a: Neighbors, b: Neighbors) -> None:
    for name in ("similarity_Bk", "sequence_Bk", "values_BkV", "valid_Bk"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@given(
    cuts=st.lists(st.integers(0, 25), min_size=1, max_size=6),
    capacity=st.integers(1, 60),
    arrays=st.integers(1, 4),
    bits=st.integers(0, 3),
    slots=st.integers(1, 9),
)
@settings(max_examples=30, deadline=None)
def test_candidates_are_the_live_rows_of_the_buckets(cuts: list[int], capacity: int, arrays: int, bits: int, slots: int):
    bank, reference = table(capacity, arrays, bits, slots), BucketLists(arrays, bits, slots)
    for seed, number in enumerate(cuts):
        h_BD, values_BV = rows(number, seed)
        bank.write(h_BD, values_BV)
        reference.add_fifo(h_BD)
    q_BD, _ = rows(5, seed=99)
    sequence_BM, valid_BM = bank.candidates(bank._hash.hash(q_BD))
    for q_D, sequence_M, valid_M in zip(q_BD, sequence_BM, valid_BM, strict=True):
        found = sequence_M[valid_M].tolist()
        assert len(found) == len(set(found))
        assert set(found) == reference.candidates(q_D, bank.ring.oldest)


@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
def test_search_equals_the_exact_search_restricted_to_the_candidates(policy: str):
    bank = table(200, 4, 3, 8, policy)
    for seed in range(4):
        bank.write(*rows(90, seed))
    q_BD, _ = rows(40, seed=9)
    found = bank.search(q_BD, 6)
    everything = bank.ring.search(q_BD, len(bank.ring))
    sequence_BM, valid_BM = bank.candidates(bank._hash.hash(q_BD))
    for i in range(40):
        allowed = set(sequence_BM[i][valid_BM[i]].tolist())
        assert allowed <= set(range(bank.ring.oldest, bank.ring.written))
        wanted = [j for j, s in enumerate(everything.sequence_Bk[i].tolist()) if s in allowed][:6]
        n = len(wanted)
        assert found.valid_Bk[i].sum() == n
        assert torch.equal(found.sequence_Bk[i, :n], everything.sequence_Bk[i, wanted])
        assert torch.equal(found.similarity_Bk[i, :n], everything.similarity_Bk[i, wanted])
        assert torch.equal(found.values_BkV[i, :n], everything.values_BkV[i, wanted])


@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
@pytest.mark.parametrize("number", [30, 100, 250])
def test_with_no_bits_and_room_for_all_rows_it_is_the_exact_search(policy: str, number: int):
    bank = table(100, 1, 0, 100, policy)
    for seed in range(3):
        bank.write(*rows(number, seed))
    q_BD, _ = rows(20, seed=9)
    assert_same(bank.search(q_BD, 12), bank.ring.search(q_BD, 12))


@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
def test_any_cut_of_the_rows_gives_the_same_entries(policy: str):
    h_BD, values_BV = rows(700)
    whole, pieces = table(150, 3, 2, 5, policy), table(150, 3, 2, 5, policy)
    whole.write(h_BD, values_BV)
    for start in range(0, 700, 37):
        pieces.write(h_BD[start : start + 37], values_BV[start : start + 37])
    assert torch.equal(whole._entries_E, pieces._entries_E)
    assert torch.equal(whole._count_P, pieces._count_P)


def test_reservoir_keeps_every_row_of_a_turn_with_the_same_probability():
    # One bucket of 4 slots in each array, and 40 rows: each row stays with probability 0.1. Counted in 2,000 arrays of 40
    # tables, sigma is 0.0067.
    kept = torch.zeros(40)
    h_BD, values_BV = rows(40)
    for seed in range(40):
        bank = LshTable(
            RowRing(1000, DIM), 50, 0, 4, Signs(50, 0), "reservoir", seed=64 * seed
        )  # a bucket draws by seed ^ bucket
        bank.write(h_BD, values_BV)
        assert (torch.bincount(bank._entries_E) <= 50).all()
        kept += torch.bincount(bank._entries_E, minlength=40)
    assert kept.sum() == 2000 * 4
    assert (kept / 2000 - 0.1).abs().max() < 5 * 0.0067


def test_reservoir_still_finds_rows_when_the_ring_has_turned_many_times():
    bank = table(50, 1, 0, 10, "reservoir")
    for seed in range(20):
        bank.write(*rows(50, seed))
    found = bank.search(rows(1)[0], 10)
    assert found.valid_Bk.all()


def test_hashes_handed_in_are_used_in_place_of_own_ones():
    bank = table(50, 2, 2, 50)
    h_BD, values_BV = rows(20)
    bank.write(h_BD, values_BV, buckets_BK=torch.tensor([[1, 2]]).repeat(20, 1))
    assert bank.search(h_BD[:1], 30, buckets_BK=torch.tensor([[1, 0]])).valid_Bk.sum() == 20
    assert bank.search(h_BD[:1], 30, buckets_BK=torch.tensor([[2, 1]])).valid_Bk.sum() == 0


def test_clear_forgets_all_rows():
    bank = table(50, 2, 1, 50)
    bank.write(*rows(20))
    bank.clear()
    assert not bank.search(rows(3)[0], 2).valid_Bk.any()
    assert bank.write(*rows(20, seed=1)).tolist() == list(range(20, 40))
    assert bank.search(rows(20, seed=1)[0], 1).sequence_Bk[:, 0].tolist() == list(range(20, 40))


@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
@pytest.mark.parametrize("cleared", [False, True])
def test_resumed_from_full_and_incremental_snapshots_it_goes_on_bit_for_bit(policy: str, cleared: bool):
    bank = table(120, 3, 3, 6, policy)
    bank.write(*rows(100))
    full, change = State(), State(incremental=True)
    for part in (bank.ring, bank):
        part.export(full)
        part.mark_clean()
    if cleared:
        bank.clear()
    bank.write(*rows(50, seed=1))
    for part in (bank.ring, bank):
        part.export(change, incremental=True)
    merged = full.apply(change)
    resumed = table(120, 3, 3, 6, policy)
    resumed.ring.load(merged)
    resumed.load(merged)
    for one in (bank, resumed):
        one.write(*rows(60, seed=2))
    q_BD, _ = rows(30, seed=9)
    assert_same(bank.search(q_BD, 7), resumed.search(q_BD, 7))
    assert torch.equal(bank._entries_E, resumed._entries_E)


def test_snapshot_of_another_table_is_refused():
    state = State()
    table(10, 2, 3, 4).export(state)
    with pytest.raises(RecoveryError, match="of 64 entries, the table's has 128 entries"):
        table(10, 2, 4, 4).load(state)
    with pytest.raises(RecoveryError, match="missing"):
        table(10, 2, 3, 4).load(State())


def test_sizes_policy_and_budget_are_checked_at_construction():
    ring = RowRing(10, DIM)
    with pytest.raises(ConfigError, match="0 arrays of 2 bits"):
        LshTable(ring, 0, 2, 4, Signs(1, 2))
    with pytest.raises(ConfigError, match="policy='lifo': allowed are 'fifo' and 'reservoir'"):
        LshTable(ring, 1, 2, 4, Signs(1, 2), "lifo")
    with pytest.raises(ConfigError, match=r"LSH table.*the budget is 100 B"):
        LshTable(ring, 8, 10, 16, Signs(8, 10), budget_bytes=100)
    bank = table(10, 3, 4, 5)
    assert bank.bytes() == {"device": LshTable.bytes_needed(3, 4, 5)}
    bank.write(*rows(300))
    assert bank.bytes() == {"device": LshTable.bytes_needed(3, 4, 5)}
    with pytest.raises(ConfigError, match="k=0"):
        bank.search(rows(1)[0], 0)
