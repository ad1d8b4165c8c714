"""PostingLists against a RowRing that holds the same rows, and its files after crashes."""

# B rows of a call, D dim, N rows, L lists

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks import Neighbors, PostingLists, PostingRules, RowRing
from operators.banks.balanced_kmeans import cluster, representatives, split_evenly
from operators.banks.posting_files import sequences_of
from operators.banks.posting_slice import closure
from operators.banks.row_search import unit_rows
from operators.state import State

pytestmark = pytest.mark.heavy

DIM = 8
RECORD = 4 * (DIM + 2 + 2)


def rules(**changes: object) -> PostingRules:
    """Small sizes, and no pruning: a search reads every list."""
    small = {
        "list_bytes": 20 * RECORD,
        "tail_rows": 50,
        "slice_rows": 200,
        "slices": 2,
        "eps2": math.inf,
        "lists_per_query": None,
    }
    return PostingRules(**(small | changes))


def rows(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around 12 directions, so that some lists grow much faster than others."""
    generator = torch.Generator().manual_seed(seed)
    center_CD = torch.randn(12, DIM, generator=torch.Generator().manual_seed(77))
    which_B = (torch.rand(number, generator=generator) ** 3 * 12).long()
    h_BD = center_CD[which_B] + 0.3 * torch.randn(number, DIM, generator=generator)
    return h_BD, torch.rand(number, 2, generator=generator)


def assert_same(a: Neighbors, b: Neighbors) -> None:
    for name in ("similarity_Bk", "sequence_Bk", "values_BkV", "valid_Bk"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", [30, 50, 230, pytest.param(2130, marks=pytest.mark.slow)])
def test_with_pruning_off_it_equals_the_exact_search(tmp_path: Path, number: int):
    bank, held = PostingLists(tmp_path, DIM, rules=rules()), RowRing(4000, DIM)
    h_BD, values_BV = rows(number)
    for start in range(0, number, 64):
        bank.write(h_BD[start : start + 64], values_BV[start : start + 64])
    held.write(h_BD[: bank.oldest], values_BV[: bank.oldest])
    held.clear()  # the rows of slices that were dropped; the others keep their numbers
    held.write(h_BD[bank.oldest :], values_BV[bank.oldest :])
    assert len(bank) == len(held)
    q_BD, _ = rows(70, seed=1)
    assert_same(bank.search(q_BD, 9), held.search(q_BD, 9))


def test_rows_that_cannot_be_told_apart_and_rows_without_direction_are_found_too(tmp_path: Path):
    bank, ring = PostingLists(tmp_path, DIM, rules=rules()), RowRing(1000, DIM)
    h_BD = torch.ones(330, DIM)
    h_BD[::3] = 0
    h_BD[7] = math.nan
    for target in (bank, ring):
        target.write(h_BD, torch.zeros(330, 2))
    assert_same(bank.search(h_BD[:4], 250), ring.search(h_BD[:4], 250))


def test_fewer_rows_than_k_and_none(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules())
    assert not bank.search(rows(3)[0], 4).valid_Bk.any()
    bank.write(*rows(52))
    found = bank.search(rows(3)[0], 60)
    assert found.valid_Bk.sum(1).tolist() == [52] * 3
    assert (found.sequence_Bk[:, 52:] == -1).all()
    assert bank.search(rows(0)[0], 4).sequence_Bk.shape == (0, 4)


def test_a_query_reads_the_same_lists_alone_and_among_others(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules(eps2=0.4, lists_per_query=6))
    bank.write(*rows(430))
    q_BD, _ = rows(100, seed=1)
    together = bank.search(q_BD, 5)
    for i in range(0, 100, 9):
        alone = bank.search(q_BD[i : i + 1], 5)
        assert torch.equal(alone.sequence_Bk[0], together.sequence_Bk[i])
        assert torch.equal(alone.similarity_Bk[0], together.similarity_Bk[i])


@pytest.mark.parametrize(("pruning", "recall"), [({"eps2": 0.6}, 0.75), ({"lists_per_query": 24}, 0.9)])
def test_pruning_loses_few_neighbors(tmp_path: Path, pruning: dict[str, float], recall: float):
    bank, ring = PostingLists(tmp_path, DIM, rules=rules(slices=9, **pruning)), RowRing(4000, DIM)
    h_BD, values_BV = rows(800)
    bank.write(h_BD, values_BV)
    ring.write(h_BD, values_BV)
    q_BD, _ = rows(100, seed=1)
    got, wanted = bank.search(q_BD, 10).sequence_Bk, ring.search(q_BD, 10).sequence_Bk
    hits = (got[:, :, None] == wanted[:, None, :]).any(1).float().mean()
    assert recall < hits < 1


def test_a_query_that_is_a_center_still_finds_k_rows(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules(eps2=0.0))
    h_BD, values_BV = rows(400)
    bank.write(h_BD, values_BV)
    assert bank.search(h_BD, 15).valid_Bk.sum(1).min() >= 10


def test_no_list_passes_the_limit_and_every_row_stands_in_one_or_up_to_the_most_replicas(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules(slices=9, replicas=4))
    h_BD, values_BV = rows(600)
    bank.write(h_BD, values_BV)
    for part in bank._slices:
        assert part.lengths.max() <= 20
        assert part.lengths.min() >= 1
        records = part.read(np.arange(part.lists))
        assert len(records) == part.lengths.sum()
        replicas = np.bincount(sequences_of(records) - part.first, minlength=part.rows)
        assert replicas.min() >= 1
        assert replicas.max() <= 4
        for i in range(part.lists):
            sequence = sequences_of(part.read(np.array([i])))
            assert len(set(sequence.tolist())) == len(sequence)


def test_any_cut_of_the_rows_writes_the_same_files(tmp_path: Path):
    h_BD, values_BV = rows(530)
    many = rules(tail_rows=20)  # of the files of a slice, so that they are merged before it is full
    whole, pieces = (PostingLists(tmp_path / name, DIM, rules=many) for name in ("whole", "pieces"))
    whole.write(h_BD, values_BV)
    for start in range(0, 530, 33):
        pieces.write(h_BD[start : start + 33], values_BV[start : start + 33])
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "pieces")
    for name in files_of(tmp_path / "whole"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes()


def test_old_slices_are_dropped_as_files_and_neither_disk_nor_memory_grows(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules())
    sizes, files = [], []
    for seed in range(12):
        bank.write(*rows(200, seed))
        sizes.append(bank.bytes())
        files.append(len(files_of(tmp_path)))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == sizes[-1]["disk"]
    assert bank.oldest == 9 * 200
    for tier in ("device", "disk"):
        later = [size[tier] for size in sizes[3:]]
        assert max(later) < 1.3 * min(later)
    assert max(files[3:]) < 30


def test_drop_before_drops_whole_slices_only(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules(slices=9))
    bank.write(*rows(650))
    bank.drop_before(399)
    assert bank.oldest == 200
    bank.drop_before(400)
    assert bank.oldest == 400
    assert bank.search(rows(5, seed=1)[0], 250).valid_Bk.all()


def test_clear_forgets_rows_and_files_and_never_reuses_a_sequence_number(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules())
    bank.write(*rows(270))
    bank.clear()
    assert len(bank) == 0
    assert files_of(tmp_path) == set()
    assert not bank.search(rows(2)[0], 3).valid_Bk.any()
    assert bank.write(*rows(60)).tolist() == list(range(270, 330))
    assert set(bank.search(rows(2)[0], 60).sequence_Bk[0].tolist()) == set(range(270, 330))


def resume(folder: Path, state: State) -> PostingLists:
    bank = PostingLists(folder, DIM, rules=rules())
    state.meta = json.loads(json.dumps(state.meta))  # as a snapshot file keeps it
    bank.load(state)
    return bank


@pytest.mark.parametrize("number", [20, 230, pytest.param(1725, marks=pytest.mark.slow)])
def test_resumed_from_a_snapshot_it_goes_on_bit_for_bit(tmp_path: Path, number: int):
    bank = PostingLists(tmp_path, DIM, rules=rules())
    bank.write(*rows(number))
    state = State()
    bank.export(state)
    bank.write(*rows(350, seed=1))  # goes on, and is lost: the process dies here
    (tmp_path / ".0000000099.lists.77.tmp").write_bytes(b"half")
    resumed = resume(tmp_path, state)
    assert ".0000000099.lists.77.tmp" not in files_of(tmp_path)
    undisturbed = PostingLists(tmp_path / "other", DIM, rules=rules())
    undisturbed.write(*rows(number))
    q_BD, _ = rows(20, seed=2)
    assert_same(resumed.search(q_BD, 8), undisturbed.search(q_BD, 8))
    for one in (resumed, undisturbed):
        one.write(*rows(450, seed=3))
    assert_same(resumed.search(q_BD, 8), undisturbed.search(q_BD, 8))
    assert resumed.oldest == undisturbed.oldest


def test_files_of_the_last_snapshots_stay_until_newer_ones_replace_them(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules(snapshots_kept=2))
    states = []
    for seed in range(6):
        bank.write(*rows(200, seed))
        states.append(State())
        bank.export(states[-1])
        named = [{name for part in state.meta["lists"]["slices"] for name in part["files"]} for state in states[-2:]]
        assert set().union(*named) <= files_of(tmp_path)
    bank.write(*rows(800, seed=9))  # drops every slice that the last two snapshots name
    assert resume(tmp_path, states[-2]).written == 1000


def test_a_crash_while_a_file_is_written_leaves_the_last_snapshot_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bank = PostingLists(tmp_path, DIM, rules=rules())
    bank.write(*rows(330))
    state = State()
    bank.export(state)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            bank.write(*rows(70, seed=1))
    resumed = resume(tmp_path, state)
    assert all(name.endswith(".lists") for name in files_of(tmp_path))
    assert resumed.written == 330


def test_rows_whose_file_could_not_be_written_wait_and_go_with_the_next_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bank, ring = PostingLists(tmp_path, DIM, rules=rules()), RowRing(1000, DIM)
    first, second = rows(330), rows(270, seed=1)
    bank.write(*first)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            bank.write(second[0][:100], second[1][:100])
    assert bank.written == 350  # the tail was full then; the caller knows that the other rows were not taken
    bank.write(second[0][20:], second[1][20:])
    for part in (first, second):
        ring.write(*part)
    q_BD, _ = rows(20, seed=2)
    assert_same(bank.search(q_BD, 8), ring.search(q_BD, 8))


@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, damage: str):
    bank = PostingLists(tmp_path, DIM, rules=rules())
    bank.write(*rows(330))
    state = State()
    bank.export(state)
    path = min(tmp_path.iterdir())
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -5])
    with pytest.raises(RecoveryError, match=f"{path.name}.*not a complete file"):
        resume(tmp_path, state)


def test_snapshot_of_other_rows_is_refused(tmp_path: Path):
    bank = PostingLists(tmp_path, DIM, rules=rules())
    state = State()
    bank.export(state)
    with pytest.raises(RecoveryError, match="rows of 8 numbers"):
        PostingLists(tmp_path, 9, rules=rules()).load(state)
    with pytest.raises(RecoveryError, match="no posting lists 'other'"):
        PostingLists(tmp_path, DIM, name="other", rules=rules()).load(state)
    bank.write(*rows(40))
    bank.export(state)
    with pytest.raises(RecoveryError, match="tail of the snapshot holds 40 rows, tail_rows is 25"):
        PostingLists(tmp_path, DIM, rules=rules(tail_rows=25)).load(state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"replicas": 0}, "replicas=0"),
        ({"eps1": -1.0}, "eps1=-1.0"),
        ({"eps2": math.nan}, "eps2=nan"),
        ({"lists_per_query": 0}, "lists_per_query=0"),
        ({"slice_rows": 120}, "slice_rows=120 must be a multiple of tail_rows=50"),
    ],
)
def test_rules_are_checked(wrong: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        rules(**wrong)


def test_a_list_must_hold_two_rows(tmp_path: Path):
    with pytest.raises(ConfigError, match="set list_bytes to at least 96"):
        PostingLists(tmp_path, DIM, rules=rules(list_bytes=95))
    with pytest.raises(ConfigError, match="k=0"):
        PostingLists(tmp_path, DIM, rules=rules()).search(rows(1)[0], 0)


# The parts


@pytest.mark.parametrize("most", [1, 7, 40, 500])
def test_clusters_are_no_larger_than_asked_for_and_numbered_without_gaps(most: int):
    x_ND = unit_rows(rows(300)[0])
    x_ND[:60] = x_ND[0]
    label_N = cluster(x_ND, most, seed=0)
    count_P = torch.bincount(label_N)
    assert count_P.max() <= most
    assert count_P.min() >= 1
    assert torch.equal(label_N, cluster(x_ND, most, seed=0))


@pytest.mark.parametrize("number", [9, 40, 300])
def test_clusters_are_those_of_eight_plain_rounds(number: int):
    x_ND = unit_rows(rows(number)[0])
    x_ND[: number // 4] = x_ND[0]
    center_PD = x_ND[torch.randperm(number, generator=torch.Generator().manual_seed(3))[:5]]
    count_P, spread = torch.full((5,), number / 5), torch.zeros(())
    for _ in range(8):
        distance_NP = (center_PD.square().sum(1) - 2 * x_ND @ center_PD.T) + x_ND.square().sum(1, keepdim=True)
        part_N = (distance_NP + 0.5 * spread * (count_P * 5 / number)).argmin(1)
        spread = distance_NP.amin(1).clamp_min(0).mean()
        count_P = torch.bincount(part_N, minlength=5).float()
        sum_PD = torch.zeros(5, DIM).index_add_(0, part_N, x_ND)
        center_PD = torch.where(count_P[:, None] > 0, sum_PD / count_P.clamp_min(1)[:, None], center_PD)
    assert torch.equal(split_evenly(x_ND, 5, seed=3), torch.unique(part_N, return_inverse=True)[1])


def test_representatives_are_the_rows_nearest_to_the_mean_of_their_cluster():
    x_ND = unit_rows(rows(200)[0])
    label_N = cluster(x_ND, 15, seed=0)
    for part, row in enumerate(representatives(x_ND, label_N).tolist()):
        members = (label_N == part).nonzero()[:, 0]
        distance = (x_ND[members] - x_ND[members].mean(0)).square().sum(1)
        assert row == members[distance.argmin()]


def test_closure_follows_the_rule_row_by_row():
    x_ND, centers_LD = unit_rows(rows(150)[0]), unit_rows(rows(40, seed=5)[0])
    replicas, eps1 = 3, 0.5
    row_P, list_P = closure(x_ND, centers_LD, replicas=replicas, eps1=eps1)
    got: dict[int, list[int]] = {n: [] for n in range(150)}
    for row, place in zip(row_P.tolist(), list_P.tolist(), strict=True):
        got[row].append(place)

    def distance(a_D: Tensor, b_D: Tensor) -> float:
        return float((a_D.double() - b_D.double()).norm())

    for n, x_D in enumerate(x_ND):
        order = sorted(range(40), key=lambda j: distance(x_D, centers_LD[j]))[: 2 * replicas]
        kept: list[int] = []
        for j in order:
            here = distance(x_D, centers_LD[j])
            near = here <= (1 + eps1) * distance(x_D, centers_LD[order[0]])
            if near and len(kept) < replicas and all(here <= distance(centers_LD[i], centers_LD[j]) for i in kept):
                kept.append(j)
        assert got[n] == kept
