"""PoolBank against brute force in float64, its ties, masks, and its life in snapshots."""

# M rows, D width, Q queries

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import ConfigError, RecoveryError
from operators.banks import PoolBank, RowSpec
from operators.state import State


def filled(size: int = 12, dim: int = 6, metric: str = "cosine", seed: int = 0) -> PoolBank:
    generator = torch.Generator().manual_seed(seed)
    bank = PoolBank(size, dim, {"prompt": RowSpec((2, 3))}, metric=metric)
    bank.write(torch.randn(size, dim, generator=generator), {"prompt": torch.randn(size, 2, 3, generator=generator)})
    return bank


def likeness(bank: PoolBank, query_D: torch.Tensor) -> list[float]:
    """Return the score of every row, written out."""
    scores = []
    for key_D in bank.key_MD.double():
        q = query_D.double()
        if bank.metric == "l2":
            scores.append(-float(((q - key_D) ** 2).sum()))
        else:
            lengths = math.sqrt(float(q @ q)) * math.sqrt(float(key_D @ key_D))
            scores.append(float(q @ key_D) / lengths if lengths else 0.0)
    return scores


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@given(seed=st.integers(0, 10_000), k=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_top_k_is_that_of_brute_force(metric: str, seed: int, k: int):
    bank = filled(metric=metric, seed=seed)
    query_QD = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed + 1))
    found = bank.search(query_QD, k)
    for q, query_D in enumerate(query_QD):
        wanted = sorted(enumerate(likeness(bank, query_D)), key=lambda pair: (-pair[1], pair[0]))[:k]
        assert found.index[q].tolist() == [row for row, _ in wanted]
        assert found.score[q].tolist() == pytest.approx([score for _, score in wanted], abs=1e-4)
    assert torch.equal(bank.nearest(query_QD), found.index[:, 0])
    assert found.valid.all()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("dim", [3, 64, 257])
def test_equal_keys_come_in_the_order_of_their_index(metric: str, dim: int):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(5, dim, generator=generator)
    pattern = [3, 1, 4, 1, 0, 2, 3, 3, 1, 0, 2, 4, 1, 0, 3, 2, 1]
    bank = PoolBank(len(pattern), dim, metric=metric)
    bank.write(base[pattern])
    found = bank.search(torch.randn(33, dim, generator=generator), len(pattern))
    for scores, rows in zip(found.score.tolist(), found.index.tolist(), strict=True):
        kinds = [pattern[row] for row in rows]
        assert len([1 for a, b in pairwise(kinds) if a != b]) == 4, "equal keys stand together"
        for kind in range(5):
            places = [i for i, found_kind in enumerate(kinds) if found_kind == kind]
            assert [rows[i] for i in places] == sorted(rows[i] for i in places)
            assert len({scores[i] for i in places}) == 1
    assert torch.equal(bank.nearest(base), torch.tensor([pattern.index(kind) for kind in range(5)]))


def test_codebook_rows_are_their_own_nearest():
    bank = filled(size=50, dim=8, metric="l2")
    assert bank.nearest(bank.key_MD.view(5, 10, 8)).tolist() == torch.arange(50).view(5, 10).tolist()


def test_gather_reads_columns_in_the_shape_of_the_index():
    bank = filled()
    index = bank.search(torch.randn(2, 5, 6), 3).index
    assert index.shape == (2, 5, 3)
    prompts = bank.gather(index, "prompt")
    assert prompts.shape == (2, 5, 3, 2, 3)
    assert torch.equal(prompts[1, 2, 0], bank.columns["prompt"][index[1, 2, 0]])
    assert torch.equal(bank.gather(index, "key"), bank.key_MD[index])


def test_masked_rows_are_not_read():
    bank = filled()
    mask = torch.zeros(12, dtype=torch.bool)
    mask[[2, 7]] = True
    found = bank.search(bank.key_MD[[5]], 3, mask_M=mask)
    assert set(found.index[0, :2].tolist()) == {2, 7}
    assert found.valid.tolist() == [[True, True, False]]
    assert found.index[0, 2] == 0 and found.score[0, 2] == -torch.inf
    assert bank.nearest(bank.key_MD, mask_M=torch.zeros(12, dtype=torch.bool)).eq(-1).all()


def test_a_query_of_length_zero_is_alike_to_all():
    found = filled().search(torch.zeros(1, 6), 12)
    assert found.index[0].tolist() == list(range(12))
    assert found.score.eq(0).all()


def test_a_query_that_is_not_finite_finds_nothing():
    for metric in ("cosine", "l2"):
        bank, query = filled(metric=metric), torch.randn(3, 6)
        query[1, 2] = torch.nan
        assert bank.search(query, 2).valid.tolist() == [[True, True], [False, False], [True, True]]
        assert bank.nearest(query)[1] == -1


def test_many_queries_are_read_in_parts(monkeypatch: pytest.MonkeyPatch):
    bank = filled(metric="l2")
    query = torch.randn(100, 6)
    whole = bank.search(query, 2)
    monkeypatch.setattr("operators.banks.pool_bank._QUERIES", 7)
    parts = bank.search(query, 2)
    assert torch.equal(whole.index, parts.index)
    torch.testing.assert_close(whole.score, parts.score)
    assert bank.search(torch.zeros(0, 6), 2).index.shape == (0, 2)


def test_set_copies_and_a_later_change_of_the_weights_does_not_reach_the_pool():
    bank, weights = PoolBank(3, 2), torch.eye(3, 2, requires_grad=True)
    bank.write(weights)
    before = bank.fingerprint()
    with torch.no_grad():
        weights.mul_(5)
    assert bank.fingerprint() == before
    assert not bank.key_MD.requires_grad
    bank.write(weights)
    assert bank.fingerprint() != before


def test_snapshot_and_load_are_bit_for_bit():
    bank, other = filled(seed=3), filled(seed=4)
    state = State()
    bank.export(state)
    bank.mark_clean()
    other.load(state)
    assert other.fingerprint() == bank.fingerprint()
    query = torch.randn(20, 6)
    ours, theirs = bank.search(query, 5), other.search(query, 5)
    assert torch.equal(ours.index, theirs.index) and torch.equal(ours.score, theirs.score)


def test_an_unchanged_pool_is_not_written_again():
    bank, full = filled(), State()
    bank.export(full)
    bank.mark_clean()
    change = State(incremental=True)
    bank.export(change, incremental=True)
    assert change.shared == {}
    bank.write(bank.key_MD * 2, bank.columns)
    bank.export(change, incremental=True)
    restored = PoolBank(12, 6, {"prompt": RowSpec((2, 3))})
    restored.load(full.apply(change))
    assert restored.fingerprint() == bank.fingerprint()


def test_a_snapshot_of_another_pool_is_refused():
    state = State()
    filled().export(state)
    with pytest.raises(RecoveryError, match=r"pool.key of the snapshot is \[12, 6\] torch.float32, the pool's is \[9, 6\]"):
        PoolBank(9, 6, {"prompt": RowSpec((2, 3))}).load(state)
    with pytest.raises(RecoveryError, match=r"the snapshot has no pool.value"):
        PoolBank(12, 6, {"value": RowSpec((1,))}).load(state)


def test_bytes_are_those_of_the_tensors_and_the_budget_is_checked():
    bank = filled()
    assert bank.bytes()["device"] == PoolBank.bytes_needed(12, 6, bank.specs) == 12 * (4 * (6 + 6 + 1) + 4 * 6)
    with pytest.raises(ConfigError, match=r"12 rows need 624 bytes, but the budget is 600"):
        PoolBank(12, 6, budget_bytes=600)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoolBank(0, 4), "a pool of 0 rows with keys of 4 is empty"),
        (lambda: PoolBank(4, 4, metric="dot"), "metric 'dot' is not known"),
        (lambda: PoolBank(4, 4, {"key": RowSpec(())}), "a column may not be called 'key'"),
    ],
)
def test_impossible_pools_are_refused(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda bank: bank.search(torch.zeros(2, 6), 13), "13 rows asked of a pool of 12"),
        (lambda bank: bank.search(torch.zeros(2, 5), 1), r"queries are \[2, 5\], keys have width 6"),
        (lambda bank: bank.write(torch.zeros(12, 6)), r"columns \[\] were given, the pool has \['prompt'\]"),
        (lambda bank: bank.write(torch.zeros(11, 6), bank.columns), r"key is \[11, 6\], the pool's is \[12, 6\]"),
        (lambda bank: bank.write(torch.full((12, 6), torch.nan), bank.columns), "keys hold NaN or infinity"),
    ],
)
def test_misuse_is_told(act, message: str):
    with pytest.raises(ValueError, match=message):
        act(filled())
