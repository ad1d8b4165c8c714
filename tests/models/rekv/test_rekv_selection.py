"""Scores and picks against slow references; the store; rotary positions."""

# H query heads, G key/value heads, D head dim, n question tokens, N frames

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rekv.layouts import Grid
from models.rekv.rotary import Rotary
from models.rekv.selection import frame_scores, select_frames
from models.rekv.store import TensorStore

H, G, D, N = 6, 2, 4, 9


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_equal_those_of_repeated_heads() -> None:
    query, reps = draw(H, 5, D), draw(N, G, D, seed=1)
    mean, repeated = query.mean(dim=1).flatten(), reps.repeat_interleave(H // G, dim=1).flatten(1)
    torch.testing.assert_close(frame_scores(query, reps, "dot"), repeated @ mean)
    cosine = torch.nn.functional.cosine_similarity(repeated, mean[None])
    torch.testing.assert_close(frame_scores(query, reps, "cosine"), cosine)


def test_scores_are_float32_whatever_the_model_is() -> None:
    query, reps = draw(H, 5, D).half(), draw(N, G, D, seed=1)
    assert frame_scores(query, reps, "dot").dtype == torch.float32


def test_ranking_ignores_a_constant_on_all_keys_and_the_length_of_queries() -> None:
    query, reps = draw(H, 5, D), draw(N, G, D, seed=1)
    ranking = frame_scores(query, reps, "dot").argsort()
    assert torch.equal(frame_scores(query, reps + draw(1, G, D, seed=2), "dot").argsort(), ranking)
    assert torch.equal(frame_scores(query * 7, reps, "dot").argsort(), ranking)


def test_a_frame_whose_mean_key_is_parallel_and_longest_is_chosen() -> None:
    query, reps = draw(H, 5, D), draw(N, G, D, seed=1)
    reps[6] = query.mean(dim=1).view(G, H // G, D).sum(dim=1) * 10
    assert 6 in select_frames(frame_scores(query, reps, "dot"), 2, 1)


def test_a_frame_of_zeros_has_no_direction_and_no_cosine() -> None:
    assert frame_scores(draw(H, 5, D), torch.zeros(N, G, D), "cosine").tolist() == [0.0] * N


def test_ties_go_to_the_earlier_frame() -> None:
    assert select_frames(torch.tensor([1.0, 2.0, 2.0, 2.0, 1.0]), 2, 1).tolist() == [1, 2]


@settings(max_examples=60, deadline=None)
@given(total=st.integers(0, 23), groups=st.integers(1, 4), chunk=st.integers(1, 4), seed=st.integers(0, 99))
def test_chunks_are_picked_by_their_mean_and_the_last_may_be_short(total: int, groups: int, chunk: int, seed: int) -> None:
    scores = draw(total, seed=seed)
    got = select_frames(scores, groups * chunk, chunk).tolist()
    if total <= groups * chunk:
        assert got == list(range(total))
        return
    parts = [list(range(start, min(start + chunk, total))) for start in range(0, total, chunk)]
    best = sorted(parts, key=lambda part: -sum(scores[i].item() for i in part) / len(part))[:groups]
    assert got == sorted(i for part in best for i in part)


def test_store_returns_what_was_written_while_it_grows() -> None:
    store, keys, values = TensorStore(2), draw(11, G, 3, D), draw(11, G, 3, D, seed=1)
    reps = keys.mean(dim=2)
    for start, stop in ((0, 1), (1, 2), (2, 7), (7, 11)):
        for layer in (0, 1):
            store.append(layer, keys[start:stop] + layer, values[start:stop] + layer, reps[start:stop] + layer)
    chosen = torch.tensor([0, 1, 6, 10])
    for layer in (0, 1):
        got_keys, got_values = store.reader().gather(layer, chosen)
        assert torch.equal(got_keys, keys[chosen] + layer)
        assert torch.equal(got_values, values[chosen] + layer)
        assert torch.equal(store.reader(8).representatives(layer), reps[:8] + layer)


def test_positions_of_prefix_frames_and_text_follow_each_other_on_one_axis() -> None:
    laid = Grid.line(4).lay(Grid.line(4).chosen(torch.tensor([3, 7])), 3)
    assert laid.positions_AM.tolist() == [list(range(3, 11))] and laid.end == 11


def test_frames_lie_on_volumes_and_text_goes_on_behind_the_largest_position() -> None:
    grid = Grid.volume(1, 2, 3)
    got, end, _ = grid.lay(grid.written(0, 2), 2)
    assert got[:, :6].tolist() == [[2] * 6, [2, 2, 2, 3, 3, 3], [2, 3, 4, 2, 3, 4]]
    assert got[:, 6:].tolist() == [[5] * 6, [5, 5, 5, 6, 6, 6], [5, 6, 7, 5, 6, 7]]
    assert end == 8


@pytest.mark.parametrize("start", [0, 15_000, 3_500_000, 300_000_000])
def test_rotation_depends_on_the_distance_only_after_any_number_of_tokens(start: int) -> None:
    rotary = Rotary(1.0 / 1e6 ** (torch.arange(0, 16, 2) / 16), torch.zeros(8, dtype=torch.long))
    query, key = draw(1, 16), draw(1, 16, seed=1)
    here = rotary.turn(torch.tensor([[7]]))(query) @ rotary.turn(torch.tensor([[3]]))(key).t()
    far = rotary.turn(torch.tensor([[start + 7]]))(query) @ rotary.turn(torch.tensor([[start + 3]]))(key).t()
    torch.testing.assert_close(far, here, atol=5e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 9), total=st.integers(5, 20), chunk=st.integers(1, 4), seed=st.integers(0, 99))
def test_chunks_stay_where_they_are_when_old_frames_are_gone(first: int, total: int, chunk: int, seed: int) -> None:
    scores, groups = draw(total, seed=seed), max(1, 4 // chunk)
    parts: dict[int, list[int]] = {}
    for number in range(first, first + total):
        parts.setdefault(number // chunk, []).append(number)
    best = sorted(parts.values(), key=lambda part: -sum(scores[i - first].item() for i in part) / len(part))[:groups]
    assert select_frames(scores, groups * chunk, chunk, first).tolist() == sorted(i for part in best for i in part)
