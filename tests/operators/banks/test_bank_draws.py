"""Draws without replacement: uniform, distinct, and a function of (seed, step, purpose) only."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.banks import random_numbers, sample_without_replacement, stream_seed


def sample(fill: list[int], k: int, seed: list[int], step: list[int], purpose: int = 0) -> torch.Tensor:
    return sample_without_replacement(
        torch.tensor(fill), k, seed_B=torch.tensor(seed), step_B=torch.tensor(step), purpose=purpose
    )


def splitmix(seed: int, step: int, purpose: int, index: int) -> int:
    """The generator once more, in Python integers."""
    mask = (1 << 64) - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    base = mix((mix((seed + (purpose + 1) * 0xBF58476D1CE4E5B9) & mask) + step * 0x9E3779B97F4A7C15) & mask)
    return mix((base + (index + 1) * 0x9E3779B97F4A7C15) & mask) >> 1


def slow_sample(fill: int, k: int, seed: int, step: int, purpose: int) -> list[int]:
    """Draw one position after the other, skipping what was drawn before."""
    drawn: list[int] = []
    index = 0
    while len(drawn) < min(k, fill):
        position = splitmix(seed, step, purpose, index) % fill
        index += 1
        if position not in drawn:
            drawn.append(position)
    return drawn


def test_numbers_equal_the_generator_in_plain_integers():
    seeds, steps = [0, 5, -7, 2**62], [0, 1, 99, 12345]
    numbers = random_numbers(torch.tensor(seeds), torch.tensor(steps), 3, 50)
    for b in range(4):
        assert numbers[b].tolist() == [splitmix(seeds[b] % 2**64, steps[b], 3, i) for i in range(50)]


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 60), st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6)), min_size=1, max_size=5
    ),
    k=st.integers(0, 70),
    purpose=st.integers(0, 40),
)
@settings(max_examples=60, deadline=None)
def test_batch_of_streams_equals_one_draw_after_the_other(rows: list[tuple[int, int, int]], k: int, purpose: int):
    fill, seed, step = (list(column) for column in zip(*rows, strict=True))
    drawn = sample(fill, k, seed, step, purpose)
    assert drawn.shape == (len(rows), k)
    for b, (f, s, t) in enumerate(rows):
        wanted = slow_sample(f, k, s % 2**64, t, purpose)
        assert drawn[b, : len(wanted)].tolist() == wanted
        assert drawn[b, len(wanted) :].tolist() == [0] * (k - len(wanted))


def test_shorter_draw_is_the_beginning_of_a_longer_one():
    assert sample([1000], 30, [4], [2])[0].tolist() == sample([1000], 900, [4], [2])[0, :30].tolist()


def test_every_row_is_equally_likely():
    fill, k, tries = 50, 20, 4000
    drawn = sample([fill] * tries, k, [9] * tries, list(range(tries)))
    counts = torch.bincount(drawn.flatten(), minlength=fill).double()
    sigma = math.sqrt(tries * (k / fill) * (1 - k / fill))
    assert float((counts - tries * k / fill).abs().max()) < 4.5 * sigma
    # The first column alone, and pairs of rows, too.
    first = torch.bincount(drawn[:, 0], minlength=fill).double()
    assert float((first - tries / fill).abs().max()) < 4.5 * math.sqrt(tries / fill)
    together = float(((drawn == 3).any(1) & (drawn == 7).any(1)).double().mean())
    expected = k * (k - 1) / (fill * (fill - 1))
    assert abs(together - expected) < 4.5 * math.sqrt(expected * (1 - expected) / tries)


@pytest.mark.parametrize("what", ["seed", "step", "purpose"])
def test_draws_differ_by_seed_step_and_purpose(what: str):
    base = {"seed": [1], "step": [1], "purpose": 1}
    other = base | {what: 2 if what == "purpose" else [2]}
    assert sample([500], 100, **base).tolist() != sample([500], 100, **other).tolist()


def test_stream_seeds_are_stable_and_distinct():
    assert stream_seed(0, "cam", "bank") == 6890168516516555418  # in snapshots: must not change between versions
    seeds = {stream_seed(s, name, bank) for s in (0, 1) for name in ("a", "b", "ab") for bank in ("x", "y")}
    assert len(seeds) == 12
    assert stream_seed(0, "ab", "c") != stream_seed(0, "a", "bc")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_are_equal_on_cpu_and_gpu():
    arguments = {"seed_B": torch.tensor([1, -5, 77]), "step_B": torch.tensor([0, 3, 10**9]), "purpose": 2}
    fill = torch.tensor([20025, 300, 5])
    on_cpu = sample_without_replacement(fill, 2000, **arguments)
    moved = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    assert torch.equal(on_cpu, sample_without_replacement(fill.cuda(), 2000, **moved).cpu())
