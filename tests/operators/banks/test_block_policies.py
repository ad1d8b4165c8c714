"""The published rules of operators.banks.block_policies against references that go token by token."""

# N blocks, G heads, T tokens, D dim, W steps

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks import BlockBank, BlockSpec
from operators.banks.block_policies import (
    BlockFloatCodec,
    KeptTokensCodec,
    KVMergerCodec,
    ThinKCodec,
    channel_scores,
    event_starts,
    frame_surprise,
    from_block_float,
    kept_channels,
    merge_sets,
    merge_tokens,
    refine_starts,
    select_events,
    sorted_pairs,
    to_block_float,
    unimportant_counts,
    with_neighbors,
)

seeds = st.integers(0, 10_000)


def drawn(seed: int, *shape: int, levels: int | None = None) -> Tensor:
    """Random numbers; with ``levels`` few different ones, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(shape, generator=generator)
    return torch.randint(0, levels, shape, generator=generator).float() / 4


# Scissorhands


@given(seeds, st.integers(1, 5), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_scissorhands_counts_steps_of_little_attention_per_token(seed: int, steps: int, tokens: int):
    attention, seen = drawn(seed, steps, 2, tokens).abs() / tokens, torch.arange(tokens, tokens + steps)
    counts = unimportant_counts(attention, seen)
    for g in range(2):
        for t in range(tokens):
            assert counts[g, t] == sum(float(attention[w, g, t]) < 1 / int(seen[w]) for w in range(steps))


# KVMerger


def sets_by_threshold(keys: Tensor, protected: Tensor, threshold: float) -> list[list[int]]:
    """Scan from last to first and join neighbors above a threshold: the published procedure, one head."""
    sets = [[len(keys) - 1]]
    for i in range(len(keys) - 2, -1, -1):
        alike = float(torch.nn.functional.cosine_similarity(keys[i], keys[i + 1], dim=0))
        if alike >= threshold and not protected[i] and not protected[i + 1]:
            sets[-1].insert(0, i)
        else:
            sets.append([i])
    return sets[::-1]


@given(seeds, st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_kv_merger_finds_the_sets_that_bisection_finds(seed: int, tokens: int):
    keys, protected = drawn(seed, 1, tokens, 5), torch.zeros(1, tokens, dtype=torch.bool)
    protected[0, seed % tokens] = True
    low, high = -1.001, 1.001
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if len(sets_by_threshold(keys[0], protected[0], middle)) <= tokens // 2 + 1 else (low, middle)
        )
    expected = sets_by_threshold(keys[0], protected[0], low)
    got = merge_sets(keys, protected, len(expected))[0].tolist()
    assert got == [number for number, members in enumerate(expected) for _ in members]


@given(seeds, st.integers(1, 10), st.data())
@settings(max_examples=40, deadline=None)
def test_kv_merger_weights_tokens_around_the_pivot(seed: int, tokens: int, data):
    kept = data.draw(st.integers(1, tokens))
    keys, values, attention = drawn(seed, 2, tokens, 4), drawn(seed + 1, 2, tokens, 3), drawn(seed + 2, 2, tokens, levels=3)
    sets = merge_sets(keys, torch.zeros(2, tokens, dtype=torch.bool), kept)
    for scale in (False, True):
        got = merge_tokens(keys, values, attention, sets, kept, scale_values=scale)
        for g in range(2):
            for k in range(kept):
                members = [t for t in range(tokens) if sets[g, t] == k]
                pivot = max(members, key=lambda t: (float(attention[g, t]), -t))
                distance = [float((keys[g, t] - keys[g, pivot]).square().sum()) for t in members]
                bandwidth = max(sum(distance) / len(members), 1e-30)
                sigma = sum(math.exp(-d / (2 * bandwidth)) for d in distance) / len(members) / math.sqrt(2)
                gauss = [math.exp(-d / (2 * sigma**2)) for d in distance]
                merged = sum(w / sum(gauss) * keys[g, t] for w, t in zip(gauss, members, strict=True))
                value = sum(w / sum(gauss) * values[g, t] for w, t in zip(gauss, members, strict=True))
                torch.testing.assert_close(got[0][g, k], merged, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(got[1][g, k], value * (len(members) if scale else 1), atol=1e-5, rtol=1e-4)
                assert got[2][g, k] == len(members)


def test_kv_merger_loses_nothing_where_neighbors_are_equal():
    keys, values = (drawn(seed, 1, 2, 5, 4).repeat_interleave(3, dim=2) for seed in (1, 2))
    codec, query = KVMergerCodec(5), drawn(3, 2, 6, 4)
    merged_keys, merged_values = codec.decode(codec.encode(keys, values, {"attention": drawn(4, 1, 2, 15).abs()}))
    whole = (query @ keys[0].mT).softmax(-1) @ values[0]
    merged = (query @ merged_keys[0].mT).softmax(-1) @ merged_values[0]  # every merged token stands for three
    torch.testing.assert_close(merged, whole, atol=1e-5, rtol=1e-4)


def test_kv_merger_joins_protected_tokens_only_when_nothing_else_is_left():
    keys, protected = drawn(3, 1, 6, 4), torch.tensor([[True, True, True, True, False, False]])
    assert merge_sets(keys, protected, 5)[0].tolist() == [0, 1, 2, 3, 4, 4]
    assert len(set(merge_sets(keys, protected, 3)[0].tolist())) == 3


# ThinK


@given(seeds, st.sampled_from([0.0, 0.2, 0.4, 0.75]))
@settings(max_examples=25, deadline=None)
def test_think_drops_the_pairs_whose_outer_products_are_smallest(seed: int, ratio: float):
    queries, keys = drawn(seed, 2, 7, 10), drawn(seed + 1, 2, 5, 10)  # [G, W, D], [G, T, D]
    kept = kept_channels(channel_scores(queries.square().mean(1), keys), ratio)
    for g in range(2):
        norm = [float(torch.outer(queries[g, :, j], keys[g, :, j]).norm() ** 2) for j in range(10)]
        pairs = sorted(range(5), key=lambda p: norm[p] + norm[p + 5])[int(5 * ratio) :]
        assert kept[g].tolist() == sorted(pairs) + [p + 5 for p in sorted(pairs)]


def test_think_scores_are_exact_where_nothing_is_dropped_and_close_where_little_is():
    spec = BlockSpec(layers=1, groups=2, tokens=6, dim=16)
    scale = torch.linspace(0.01, 2, 8).repeat(2)
    keys, values, query = drawn(1, 3, 2, 6, 16) * scale, drawn(2, 3, 2, 6, 16), drawn(3, 2, 16)
    stats = {"query_squares": query.square().expand(3, 2, 16)}
    for ratio, tolerance in ((0.0, 0.0), (0.25, 1.0)):
        codec = ThinKCodec(ratio)
        fields = codec.encode(keys, values, stats)
        assert {name: tuple(row.shape) for name, row in codec.fields(spec).items()} == {
            name: tuple(x.shape[1:]) for name, x in fields.items()
        }
        got_keys, got_values = codec.decode(fields)
        assert torch.equal(got_values, values)
        assert float((query[:, None] * (got_keys - keys)).sum(-1).abs().max()) <= tolerance


# Block floating point


@given(seeds, st.integers(-30, 30))
@settings(max_examples=40, deadline=None)
def test_block_float_rounds_to_the_grid_of_the_largest_number(seed: int, power: int):
    x = drawn(seed, 3, 8) * 2.0**power
    packed, exponents = to_block_float(x, 4)
    got = from_block_float(packed, exponents)
    for row in range(3):
        for start in (0, 4):
            part = x[row, start : start + 4]
            exponent = math.floor(math.log2(float(part.abs().max())))
            step = 2.0 ** (exponent - 2)
            for j in range(4):
                mantissa = max(-7, min(7, round(float(part[j]) / step)))
                assert float(got[row, start + j]) == mantissa * step
    assert packed.dtype == torch.uint8 and packed.shape == (3, 4) and exponents.shape == (3, 2)


def test_block_float_survives_zeros_and_numbers_that_are_none():
    x = torch.tensor([[0.0, 0.0, 1e-44, -1e-44], [math.inf, 1.0, math.nan, -math.inf]])
    got = from_block_float(*to_block_float(x, 4))
    assert got[0].tolist() == [0.0] * 4
    assert torch.isfinite(got).all() and got[1, 0] > 1e38 and got[1, 2] == 0


def test_k_sort_keeps_pairs_together_loses_nothing_and_lowers_the_error():
    outlier = torch.arange(64) % 32 % 8 == 3  # four pairs of channels, spread over the head
    keys = drawn(5, 4, 2, 12, 64) * torch.where(outlier, 30, 1)
    order = sorted_pairs(keys)
    assert torch.equal(order.sort(-1).values, torch.arange(64).expand_as(order))
    assert torch.equal((order[..., 1::2] - order[..., 0::2]).unique(), torch.tensor([32]))
    assert order[..., :8].flatten(0, 1).sort(-1).values.unique(dim=0).tolist() == [[3, 11, 19, 27, 35, 43, 51, 59]]
    codec = BlockFloatCodec(block=8)
    got, _ = codec.decode(codec.encode(keys, keys, {}))
    plain = from_block_float(*to_block_float(keys, 8))
    lost, lost_plain = ((x - keys).square().mean((0, 1, 2)) for x in (got, plain))
    assert float(lost[~outlier].mean()) < 0.1 * float(lost_plain[~outlier].mean())
    assert float(lost[outlier].mean()) < 0.02 * float(keys[..., outlier].square().mean())


# EM-LLM


@given(seeds, st.integers(0, 60), st.integers(1, 10), st.integers(1, 5), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_em_llm_cuts_where_surprise_leaves_its_recent_range(seed, count, window, shortest, more):
    surprise, longest = drawn(seed, count).abs(), shortest + more
    starts = []
    for t in range(count):
        before = surprise[max(t - window, 0) : t].double()
        crossed = bool(len(before)) and float(surprise[t]) > float(before.mean() + before.std(correction=0)) + 1e-9
        length = t - starts[-1] if starts else 0
        if not starts or length == longest or (crossed and length >= shortest):
            starts.append(t)
    assert event_starts(surprise, window=window, shortest=shortest, longest=longest).tolist() == starts


def test_em_llm_events_do_not_depend_on_frames_to_come():
    surprise = drawn(4, 80).abs()
    whole = event_starts(surprise, window=12, shortest=3, longest=20).tolist()
    for count in range(0, 80, 7):
        assert event_starts(surprise[:count], window=12, shortest=3, longest=20).tolist() == [s for s in whole if s < count]


def modularity(weights: Tensor, cut: int) -> float:
    degree, total = weights.sum(1), weights.sum()
    same = (torch.arange(len(weights)) < cut)[:, None] == (torch.arange(len(weights)) < cut)
    return float(((weights - torch.outer(degree, degree) / total) * same).sum() / total)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_em_llm_refinement_moves_a_boundary_to_the_best_modularity(seed: int):
    keys = drawn(seed, 24, 4).double()
    likeness, starts = keys @ keys.T, [0, 9, 17]
    refined = refine_starts(torch.tensor(starts), keys).tolist()
    edges = [*starts, 24]
    for i in (1, 2):
        low, high = edges[i - 1], edges[i + 1]
        weights = likeness[low:high, low:high].clamp_min(0)
        best = max(range(1, high - low), key=lambda cut: modularity(weights, cut))
        assert modularity(weights, refined[i] - low) == pytest.approx(modularity(weights, best), abs=1e-12)
        edges[i] = refined[i]


def test_em_llm_refinement_finds_where_the_scene_changes():
    keys = torch.cat([torch.tensor([1.0, 0.0]).expand(10, 2), torch.tensor([0.0, 1.0]).expand(6, 2)]) + 0.01 * drawn(1, 16, 2)
    assert refine_starts(torch.tensor([0, 7]), keys).tolist() == [0, 10]
    assert int(frame_surprise(keys).argmax()) == 10


@given(seeds, st.integers(1, 30), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_em_llm_reads_whole_events_best_first(seed: int, count: int, frames: int):
    scores = drawn(seed, count)
    starts = sorted({0, *(int(x) for x in torch.randint(0, count, (4,), generator=torch.Generator().manual_seed(seed)))})
    events = [list(range(a, b)) for a, b in zip(starts, [*starts[1:], count], strict=True)]
    events.sort(key=lambda e: -float(scores[e].sum() / len(e)))
    expected: list[int] = []
    for event in events:
        if len(expected) + len(event) > frames:
            expected += sorted(event, key=lambda t: -float(scores[t]))[: frames - len(expected)]
            break
        expected += event
    assert select_events(scores, torch.tensor(starts), frames).tolist() == sorted(expected)


def test_em_llm_contiguity_takes_the_neighbors_of_the_best_frames_while_there_is_room():
    scores = torch.zeros(21)
    scores[[5, 9, 6, 0]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    chosen = torch.tensor([0, 5, 6, 9])
    # After 5 comes 6, which is chosen; before it 4. Then 9: 10 and 8, 6: 7 (5 is chosen), 0: 1.
    for room, more in ((0, []), (1, [4]), (3, [4, 10, 8]), (4, [4, 10, 8, 7]), (9, [4, 10, 8, 7, 1])):
        assert with_neighbors(chosen, scores, room).tolist() == sorted([0, 5, 6, 9, *more])
    assert with_neighbors(torch.tensor([20]), scores, 2).tolist() == [19, 20]


# In a bank


@pytest.mark.parametrize(
    ("codec", "stats"),
    [
        (KeptTokensCodec(3), {"score": (2, 6)}),
        (KVMergerCodec(3, heavy=1), {"attention": (2, 6)}),
        (ThinKCodec(0.5), {"query_squares": (2, 8)}),
        (BlockFloatCodec(4), {}),
    ],
)
def test_a_bank_gives_back_what_the_codec_kept_from_every_tier(codec, stats, tmp_path):
    spec = BlockSpec(layers=2, groups=2, tokens=6, dim=8)
    keys, values = drawn(1, 1, 5, 2, 2, 6, 8), drawn(2, 1, 5, 2, 2, 6, 8)  # [B, F, L, G, T, D]
    known = {name: drawn(3, 1, 5, 2, *shape).abs() for name, shape in stats.items()}
    for kwargs in ({"device_bytes": 10**5}, {"device_bytes": 10**6, "disk_bytes": 10**6, "disk_folder": tmp_path}):
        bank = BlockBank(spec, slots=1, codec=codec, **kwargs)
        assert bank.block_bytes < BlockBank(spec, slots=1, device_bytes=10**5).block_bytes
        bank.open([0], [7])
        for layer in range(2):
            here = {name: x[:, :, layer] for name, x in known.items()}
            bank.append_layer(layer, [0], keys[:, :, layer], values[:, :, layer], stats=here)
        with bank.reader(0) as reader:
            for layer in range(2):
                here = {name: x[0, [1, 4], layer] for name, x in known.items()}
                fields = codec.encode(keys[0, [1, 4], layer], values[0, [1, 4], layer], here)
                got = reader.gather(layer, torch.tensor([1, 4]))
                assert all(torch.equal(a, b) for a, b in zip(got, codec.decode(fields), strict=True))
                assert torch.equal(reader.representatives(layer), keys[0, :, layer].mean(2))
        bank.close()


def test_a_codec_names_what_it_needs_to_know():
    bank = BlockBank(BlockSpec(layers=1, groups=1, tokens=6, dim=8), slots=1, device_bytes=10**5, codec=KeptTokensCodec(3))
    bank.open([0], [7])
    with pytest.raises(ValueError, match=r"needs stats\['score'\] with every append, got \[\]"):
        bank.append([0], torch.zeros(1, 1, 1, 6, 8), torch.zeros(1, 1, 1, 6, 8))


def test_kept_tokens_are_the_best_in_their_order():
    keys, score = drawn(1, 3, 2, 7, 4), drawn(2, 3, 2, 7)
    got, _ = KeptTokensCodec(4).decode(KeptTokensCodec(4).encode(keys, keys, {"score": score}))
    for n in range(3):
        for g in range(2):
            best = sorted(sorted(range(7), key=lambda t: -float(score[n, g, t]))[:4])
            assert torch.equal(got[n, g], keys[n, g, best])


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (KeptTokensCodec(7), "kept=7 tokens of a block of 6"),
        (KVMergerCodec(3, heavy=3), "kept=3, heavy=3"),
        (ThinKCodec(1.0), "ratio=1.0"),
        (BlockFloatCodec(3), "block=3"),
    ],
)
def test_settings_that_do_not_fit_a_block_are_refused(codec, message):
    with pytest.raises(ConfigError, match=message):
        BlockBank(BlockSpec(layers=1, groups=1, tokens=6, dim=8), slots=1, device_bytes=10**5, codec=codec)


def test_event_lengths_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="shortest=5, longest=4"):
        event_starts(torch.zeros(3), window=3, shortest=5, longest=4)
