"""Where prompts begin: keys among the queries, regimes apart, values alike; queries of pairs, and no learned weight in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tpp_models import events, small

from models.prompttpp.events import EventSet
from models.prompttpp.process import running_mean
from models.prompttpp.prompts import unit
from models.prompttpp.recipe import regimes
from models.prompttpp.recurrent import RecurrentProcess
from models.prompttpp.seeding import centers, count_reads, seed_prompts
from models.prompttpp.simulate import simulate


def mixed(seed: int, keys: int = 12) -> EventSet:
    """Sequences of three regimes, one after another."""
    parts = [simulate(one, keys=keys, most=40, rng=np.random.default_rng(seed + i)).events for i, one in enumerate(regimes())]
    return EventSet.of([pair for part in parts for pair in part.sequences()], 3)


def test_centers_find_groups_of_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.eye(5)[:3].repeat_interleave(40, 0)
    found = centers(unit(groups + 0.1 * torch.randn(120, 5, generator=generator)), 3, generator)
    assert sorted((found @ torch.eye(5)[:3].T).argmax(1).tolist()) == [0, 1, 2]
    assert bool(((found @ torch.eye(5)[:3].T).amax(1) > 0.98).all())


@pytest.mark.parametrize("backbone", ["s2p2", "nhp", "attnhp"])
def test_half_of_the_keys_begin_among_the_queries_and_values_alike(backbone: str) -> None:
    model, twin = small(backbone, pool=6), small(backbone, pool=6)
    assert model.prompts is not None and twin.prompts is not None
    drawn = model.prompts.key.detach().clone()
    data = mixed(0)
    seed_prompts(model, data, seed=1)
    seed_prompts(twin, data, seed=1)
    assert torch.equal(model.prompts.key, twin.prompts.key)
    assert not model.prompts.value.any()
    assert torch.equal(model.prompts.key[:, 3:], drawn[:, 3:])
    assert not torch.isclose(model.prompts.key[:, :3], drawn[:, :3]).any(-1).all()
    bare = small(backbone, pool=0)
    seed_prompts(bare, data)


def test_reads_of_the_training_are_counted_where_the_file_tells_them() -> None:
    model, data, plain = small("s2p2", prompt_head=True), mixed(0, keys=3), small("s2p2")
    count_reads(model, data)
    count_reads(plain, data)
    assert model.prompts is not None and model.prompts.reads is not None and plain.prompts is not None
    assert plain.prompts.reads is None and "prompts.reads" not in plain.state_dict()
    wanted = torch.zeros(5, dtype=torch.int64)
    for row in range(9):  # one by one, without padding
        batch = data.batch([row], model.config.time_scale)
        run = model.run(batch.time_BL, batch.type_BL, torch.zeros(*batch.time_BL.shape, 1, dtype=torch.float64))
        for index in run.chosen[0].flatten().tolist():
            wanted[index] += 1
    assert torch.equal(model.prompts.reads[0], wanted) and int(wanted.sum()) == 2 * len(data.time_E)


def test_histories_of_one_regime_read_prompts_of_their_own() -> None:
    model = small("s2p2", pool=16, top_k=1, hidden=16, query_events=12)
    seed_prompts(model, mixed(0), seed=0)
    assert model.prompts is not None
    share = np.zeros((16, 3))
    for regime, process in enumerate(regimes()):
        batch = simulate(process, keys=20, most=40, rng=np.random.default_rng(50 + regime)).events.batch(range(20), 1.0)
        lag = torch.zeros(*batch.time_BL.shape, 1, dtype=torch.float64)
        with torch.no_grad():
            index = model.run(batch.time_BL, batch.type_BL, lag).chosen[0][:, 16:]
        share[:, regime] = np.bincount(index.flatten().numpy(), minlength=16)
    assert (share.max(1).sum() / share.sum()) > 0.85
    assert (share.sum(1) > 0).sum() >= 5


def test_a_query_tells_a_cycle_from_the_same_cycle_backwards_and_learns_nothing() -> None:
    model = small("s2p2", query_events=6)
    assert isinstance(model, RecurrentProcess)
    time, _ = events(1, 30, 3)
    cycle = torch.arange(30)[None] % 3
    mean = [running_mean(model.query_tokens(time, kind), 6)[:, -1] for kind in (cycle, cycle.flip(1))]
    assert float(unit(mean[0] - mean[1]).square().sum()) > 0.99
    assert float((mean[0] - mean[1]).norm()) > 0.1 * float(mean[0].norm())
    assert not mean[0].requires_grad
