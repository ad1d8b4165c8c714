"""Compiled steps of one token give what the eager ones do: one graph per bucket of streams and of positions."""

from functools import partial

import pytest
import torch
from compilers import captured

from models.specvqgan.config import TransformerConfig
from models.specvqgan.steps import CompiledSteps, compiled_draws, drawn, eager_step
from models.specvqgan.transformer import KVCache, SoundTransformer


def network_of() -> SoundTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = TransformerConfig(codes=11, layers=2, heads=2, width=16, features=2, feature_width=6, columns=4)
        network = SoundTransformer(config).eval().requires_grad_(False)
        for parameter in network.parameters():  # so that tokens and positions matter
            torch.nn.init.normal_(parameter, 0, 0.4)
    return network


@torch.inference_mode()
def check(*, packed: bool = False) -> None:
    network, generator = network_of(), torch.Generator().manual_seed(4)
    if packed:
        network.pack()
    caches = [KVCache.empty(network.config, 5) for _ in range(2)]
    steps = eager_step(network, caches[0]), CompiledSteps(network, caches[1])
    at_S = torch.tensor([0, 2, 1, 0, 3])
    for cache in caches:
        for held_SHPD in (*cache.keys, *cache.values):
            held_SHPD.copy_(torch.randn(held_SHPD.shape, generator=torch.Generator().manual_seed(5)))
    for slots in ([0, 1], [4, 1, 3], [0, 1, 2, 3], [4, 1, 3]):
        slots_B = torch.tensor(slots)
        tokens_B = torch.randint(11, (len(slots),), generator=generator)
        got = [step(tokens_B, slots_B, at_S[slots_B]) for step in steps]
        torch.testing.assert_close(got[1], got[0], atol=1e-5, rtol=1e-5)
        at_S[slots_B] += 1


@pytest.mark.heavy
def test_logits_are_those_of_the_eager_steps_wherever_streams_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = captured(monkeypatch)
    check()
    assert found.graphs == len(found.calls) == 4  # of 2, of 4 beside each other and not, of up to 4 and up to 8 positions


@pytest.mark.slow
def test_compiled_code_gives_them_too() -> None:
    check()


@pytest.mark.heavy
@torch.inference_mode()
def test_tokens_are_drawn_as_without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    found = captured(monkeypatch)
    draw = partial(drawn, temperature=0.8, top_k=5)
    compiled = compiled_draws(draw, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    for batch in (3, 4, 1):
        logits_BK = torch.randn(batch, 11, generator=generator) * 3
        logits_BK[0, 4] = float("nan") if batch == 4 else 0.0
        noise_BK = torch.rand(batch, 11, dtype=torch.float64, generator=generator)
        good_B, greedy_B = (torch.rand(batch, generator=generator) < 0.7 for _ in range(2))
        got, wanted = (one(logits_BK, good_B, greedy_B, noise_BK) for one in (compiled, draw))
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
        assert not (batch == 4 and got[1][0])
    assert found.calls == [2, 1]
