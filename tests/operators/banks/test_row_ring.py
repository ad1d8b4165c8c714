"""RowRing against a float64 brute force over a Python list of rows."""

# B rows of a call, Q queries, D dim, V value columns, k neighbors

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks import Neighbors, RowRing, row_search
from operators.state import State

COARSE = ["float32", "bfloat16", "float16"]
FLOAT32 = 1e-6  # of a sum of products in float32 against one in float64


class RowList:
    """All rows ever written, and the obvious search over the last ``capacity`` of them."""

    def __init__(self, capacity: int, dim: int) -> None:
        self.capacity, self.first = capacity, 0
        self.keys, self.values = np.zeros((0, dim)), np.zeros((0, 2))

    def write(self, h_BD: Tensor, values_BV: Tensor) -> None:
        self.keys = np.concatenate([self.keys, h_BD.double().numpy()])
        self.values = np.concatenate([self.values, values_BV.double().numpy()])

    def live(self) -> range:
        return range(max(self.first, len(self.keys) - self.capacity), len(self.keys))

    def similarity(self, q_D: Tensor, row: int) -> float:
        q, h = q_D.double().numpy(), self.keys[row]
        lengths = float(np.linalg.norm(q) * np.linalg.norm(h))
        return float(q @ h) / lengths if lengths else 0.0

    def check(self, found: Neighbors, q_QD: Tensor, k: int, tolerance: float = FLOAT32) -> None:
        """Fail unless these are the k best, best first; rows closer than the tolerance may change places."""
        for i, q_D in enumerate(q_QD):
            similarity = {row: self.similarity(q_D, row) for row in self.live()}
            order = sorted(similarity, key=lambda row: (similarity[row], row), reverse=True)[:k]
            ids = found.sequence_Bk[i].tolist()
            assert found.valid_Bk[i].tolist() == [True] * len(order) + [False] * (k - len(order))
            assert ids[len(order) :] == [-1] * (k - len(order))
            assert len(set(ids[: len(order)])) == len(order)
            for got, wanted, s in zip(ids, order, found.similarity_Bk[i].tolist(), strict=False):
                assert got == wanted or abs(similarity[got] - similarity[wanted]) <= tolerance
                assert abs(s - similarity[got]) <= tolerance
            values = torch.from_numpy(self.values[ids[: len(order)]]).float()
            assert torch.equal(found.values_BkV[i, : len(order)], values)
            assert not found.values_BkV[i, len(order) :].any()


@pytest.fixture(autouse=True)
def candidates_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the rows are."""
    monkeypatch.setattr(row_search, "_FEW_PRODUCTS", 0)


def filled(capacity: int, dim: int, rows: int, *, coarse: str = "float32", seed: int = 0) -> tuple[RowRing, RowList]:
    generator = torch.Generator().manual_seed(seed)
    ring, reference = RowRing(capacity, dim, coarse=coarse), RowList(capacity, dim)
    for start in range(0, rows, 100):
        h_BD = torch.randn(min(100, rows - start), dim, generator=generator)
        values_BV = torch.rand(len(h_BD), 2, generator=generator)
        ring.write(h_BD, values_BV)
        reference.write(h_BD, values_BV)
    return ring, reference


@pytest.mark.parametrize("coarse", COARSE)
@pytest.mark.parametrize(("capacity", "rows", "k"), [(300, 200, 7), (300, 300, 1), (300, 750, 20), (100, 70, 90), (5, 3, 4)])
def test_search_equals_brute_force(coarse: str, capacity: int, rows: int, k: int):
    ring, reference = filled(capacity, 12, rows, coarse=coarse)
    q_QD = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    reference.check(ring.search(q_QD, k), q_QD, k)


@pytest.mark.parametrize(("capacity", "rows", "k"), [(300, 200, 7), (300, 750, 20), (5, 3, 4)])
def test_few_rows_are_all_ranked_to_the_same_bits(capacity: int, rows: int, k: int, monkeypatch: pytest.MonkeyPatch):
    ring, _ = filled(capacity, 12, rows)
    q_QD = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    q_QD[2] = 0
    chosen = ring.search(q_QD, k)
    monkeypatch.setattr(row_search, "_FEW_PRODUCTS", 9 * 12 * capacity)
    monkeypatch.delattr(row_search.KeyScan, "_candidates")
    ranked = ring.search(q_QD, k)
    for name in ("similarity_Bk", "sequence_Bk", "values_BkV", "valid_Bk"):
        assert torch.equal(getattr(chosen, name), getattr(ranked, name)), name


@pytest.mark.parametrize("coarse", COARSE)
def test_search_over_several_tiles_and_blocks_equals_brute_force(coarse: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(row_search._TILE_ROWS, "cpu", 600)
    monkeypatch.setitem(row_search._BLOCK, "cpu", 4)
    monkeypatch.setitem(row_search._SCRATCH_BYTES, "cpu", 512)
    ring, reference = filled(1500, 8, 1700, coarse=coarse)
    q_QD = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    reference.check(ring.search(q_QD, 3), q_QD, 3)


@pytest.mark.parametrize("coarse", COARSE)
def test_rows_that_are_nearly_alike_are_still_told_apart(coarse: str):
    # Differences far below the resolution of the coarse pass, so that every query goes on to the finer ones.
    generator = torch.Generator().manual_seed(0)
    base_D = torch.randn(16, generator=generator)
    h_BD = base_D + 1e-2 * torch.randn(2000, 16, generator=generator)
    ring, reference = RowRing(2000, 16, coarse=coarse), RowList(2000, 16)
    values_BV = torch.zeros(2000, 2)
    ring.write(h_BD, values_BV)
    reference.write(h_BD, values_BV)
    reference.check(ring.search(h_BD[:5], 10), h_BD[:5], 10)


@pytest.mark.parametrize("coarse", COARSE)
@pytest.mark.parametrize("capacity", [900, 2000])
def test_of_equal_rows_the_newest_come_first_however_many(coarse: str, capacity: int):
    ring = RowRing(capacity, 4, coarse=coarse)
    h_D = torch.tensor([0.3, -1.0, 0.2, 0.7])
    ring.write(torch.stack([h_D, -h_D]).repeat(750, 1), torch.zeros(1500, 2))
    found = ring.search(torch.stack([h_D, -2 * h_D]), 100)
    assert found.sequence_Bk[0].tolist() == list(range(1498, 1298, -2))
    assert found.sequence_Bk[1].tolist() == list(range(1499, 1299, -2))


small = st.lists(st.integers(-2, 2), min_size=2, max_size=2)


@pytest.mark.heavy
@given(
    writes=st.lists(st.lists(small, max_size=9), max_size=8),
    queries=st.lists(small, min_size=1, max_size=4),
    capacity=st.integers(1, 12),
    k=st.integers(1, 8),
)
@settings(max_examples=40, deadline=None)
def test_any_cut_of_the_rows_gives_the_same_ring(writes: list, queries: list, capacity: int, k: int):
    whole, pieces, reference = RowRing(capacity, 2), RowRing(capacity, 2), RowList(capacity, 2)
    rows = torch.tensor([row for write in writes for row in write], dtype=torch.float32).reshape(-1, 2)
    values_BV = torch.rand(len(rows), 2, generator=torch.Generator().manual_seed(0))
    assert whole.write(rows, values_BV).tolist() == list(range(len(rows)))
    reference.write(rows, values_BV)
    start = 0
    for write in writes:
        stop = start + len(write)
        assert pieces.write(rows[start:stop], values_BV[start:stop]).tolist() == list(range(start, stop))
        start = stop
    q_QD = torch.tensor(queries, dtype=torch.float32)
    found = whole.search(q_QD, k)
    reference.check(found, q_QD, k)
    assert torch.equal(found.sequence_Bk, pieces.search(q_QD, k).sequence_Bk)


def test_a_query_gets_the_same_bits_alone_and_among_others():
    ring, _ = filled(3000, 24, 3500, coarse="bfloat16")
    q_QD = torch.randn(300, 24, generator=torch.Generator().manual_seed(1))
    together = ring.search(q_QD, 10)
    for i in range(0, 300, 17):
        alone = ring.search(q_QD[i : i + 1], 10)
        assert torch.equal(alone.similarity_Bk[0], together.similarity_Bk[i])
        assert torch.equal(alone.sequence_Bk[0], together.sequence_Bk[i])


def test_length_of_a_row_plays_no_part():
    ring, _ = filled(50, 6, 50)
    q_QD = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([[2.0**-140], [2.0**-60], [1.0], [2.0**60], [2.0**120]])
    found = ring.search(q_QD * scale, 5)
    assert (found.sequence_Bk[1:] == found.sequence_Bk[2]).all()
    assert torch.equal(found.similarity_Bk[1], found.similarity_Bk[4])


def test_rows_and_queries_without_a_direction_have_similarity_0():
    ring = RowRing(10, 3)
    unusable = torch.tensor([[0.0, 0, 0], [math.nan, 1, 0], [math.inf, 1, 0]])
    ring.write(torch.cat([unusable, torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])]), torch.zeros(5, 2))
    found = ring.search(torch.tensor([[1.0, 0, 0]]), 5)
    assert found.sequence_Bk[0].tolist() == [3, 2, 1, 0, 4]
    assert found.similarity_Bk[0].tolist() == [1, 0, 0, 0, -1]
    found = ring.search(unusable, 2)
    assert found.sequence_Bk.tolist() == [[4, 3]] * 3
    assert not found.similarity_Bk.any()


def test_empty_ring_and_empty_call():
    ring = RowRing(10, 3)
    found = ring.search(torch.ones(2, 3), 4)
    assert not found.valid_Bk.any()
    assert found.sequence_Bk.tolist() == [[-1] * 4] * 2
    assert ring.search(torch.ones(0, 3), 4).values_BkV.shape == (0, 4, 2)
    assert len(ring.write(torch.ones(0, 3), torch.ones(0, 2))) == 0


def test_correct_reaches_rows_that_are_still_there_and_no_others():
    ring = RowRing(3, 2)
    sequence_B = ring.write(torch.eye(2).repeat(2, 1), torch.zeros(4, 2))
    delta_BV = torch.tensor([[1.0, 0.5]]).repeat(6, 1)
    there_B = ring.correct(torch.cat([sequence_B, sequence_B[3:], torch.tensor([4])]), delta_BV)
    assert there_B.tolist() == [False, True, True, True, True, False]
    found = ring.search(torch.tensor([[1.0, 0.0]]), 3)
    assert dict(zip(found.sequence_Bk[0].tolist(), found.values_BkV[0].tolist(), strict=True)) == {
        2: [1, 0.5],
        3: [2, 1],
        1: [1, 0.5],
    }


def test_clear_forgets_rows_and_never_reuses_a_sequence_number():
    ring = RowRing(4, 2)
    old_B = ring.write(torch.ones(6, 2), torch.zeros(6, 2))
    ring.clear()
    assert len(ring) == 0
    assert not ring.search(torch.ones(1, 2), 3).valid_Bk.any()
    assert ring.write(torch.ones(1, 2), torch.zeros(1, 2)).tolist() == [6]
    assert not ring.correct(old_B, torch.ones(6, 2)).any()
    assert ring.search(torch.ones(1, 2), 3).sequence_Bk.tolist() == [[6, -1, -1]]
    ring.write(torch.ones(4, 2), torch.zeros(4, 2))
    assert ring.search(torch.ones(1, 2), 4).sequence_Bk.tolist() == [[10, 9, 8, 7]]


@pytest.mark.parametrize("coarse", COARSE)
def test_resumed_from_full_and_incremental_snapshots_it_goes_on_bit_for_bit(coarse: str):
    ring, _ = filled(400, 8, 350, coarse=coarse)
    full = State()
    ring.export(full)
    ring.mark_clean()
    generator = torch.Generator().manual_seed(5)
    ring.write(torch.randn(90, 8, generator=generator), torch.rand(90, 2, generator=generator))
    ring.correct(torch.tensor([200, 201]), torch.ones(2, 2))
    change = State(incremental=True)
    ring.export(change, incremental=True)
    assert len(change.patches["ring.keys"].index_C) == 92
    resumed = RowRing(400, 8, coarse=coarse)
    resumed.load(full.apply(change))
    more = torch.randn(33, 8, generator=generator), torch.rand(33, 2, generator=generator)
    assert torch.equal(ring.write(*more), resumed.write(*more))
    q_QD = torch.randn(20, 8, generator=generator)
    wanted, got = ring.search(q_QD, 15), resumed.search(q_QD, 15)
    assert torch.equal(wanted.similarity_Bk, got.similarity_Bk)
    assert torch.equal(wanted.sequence_Bk, got.sequence_Bk)
    assert torch.equal(wanted.values_BkV, got.values_BkV)


def test_snapshot_of_another_ring_is_refused_by_name_and_shape():
    state = State()
    RowRing(10, 3).export(state)
    with pytest.raises(RecoveryError, match=r"ring.keys of the snapshot is \[10, 3\], the ring's is \[10, 4\]"):
        RowRing(10, 4).load(state)
    with pytest.raises(RecoveryError, match=r"no other.keys"):
        RowRing(10, 3, name="other").load(state)


def test_bytes_are_known_before_and_stay_the_same():
    for coarse in ("float32", "bfloat16"):
        ring = RowRing(1000, 16, coarse=coarse)
        before = ring.bytes()
        assert before["device"] == RowRing.bytes_needed(1000, 16, 2, coarse != "float32")
        for _ in range(10):
            ring.write(torch.randn(1000, 16), torch.rand(1000, 2))
        assert ring.bytes() == before


def test_budget_and_sizes_are_checked_at_construction():
    with pytest.raises(ConfigError, match=r"row ring.*the budget is 1 KiB.*Lower the capacity"):
        RowRing(1000, 16, budget_bytes=1024)
    with pytest.raises(ConfigError, match="at least 1"):
        RowRing(0, 16)
    with pytest.raises(ConfigError, match="coarse='int8'"):
        RowRing(10, 16, coarse="int8")
    with pytest.raises(ConfigError, match="k=0"):
        RowRing(10, 16).search(torch.ones(1, 16), 0)


def test_a_ring_may_be_written_inside_and_cleared_outside_of_inference_mode():
    ring = RowRing(10, 3, coarse="bfloat16")
    with torch.inference_mode():
        ring.write(torch.eye(3), torch.zeros(3, 2))
        ring.search(torch.eye(3), 2)
    ring.clear()
    ring.write(torch.eye(3, requires_grad=True), torch.zeros(3, 2))
    assert ring.search(torch.eye(3), 1).sequence_Bk[:, 0].tolist() == [3, 4, 5]


def test_float32_products_of_lower_precision_change_no_result():
    ring, reference = filled(2000, 16, 2000)
    q_QD = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    torch.set_float32_matmul_precision("medium")
    try:
        reference.check(ring.search(q_QD, 10), q_QD, 10)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("coarse", ["float32", "float16"])
def test_on_a_gpu_the_neighbors_are_those_of_the_cpu(coarse: str):
    ring, reference = filled(2000, 32, 2500)
    on_gpu = RowRing(2000, 32, device="cuda", coarse=coarse)
    state = State()
    ring.export(state)
    on_gpu.load(state)
    q_QD = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    found = on_gpu.search(q_QD, 15)
    reference.check(Neighbors(*(getattr(found, name).cpu() for name in Neighbors.__slots__)), q_QD, 15)


def test_order_keys_sort_by_similarity_then_by_newness():
    similarity = torch.tensor([-1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0000001])
    key = row_search.order_keys(similarity, torch.zeros(7, dtype=torch.int64))
    assert key[2] == key[3]
    assert (key[[1, 3, 4, 5, 6]] > key[[0, 1, 3, 4, 5]]).all()
    assert torch.equal(row_search.similarity_of(key), similarity + 0.0)
    assert row_search.order_keys(similarity[5:6], torch.tensor([7])) > key[5]
    assert row_search.age_of(row_search.order_keys(similarity[:1], torch.tensor([2**32 - 1]))) == 2**32 - 1
