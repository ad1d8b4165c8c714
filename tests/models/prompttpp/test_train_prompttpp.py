"""Training: a short recipe learns and is a function of its seed, own events load, networks reach the truth, nothing leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from training_previews import check_previews

from connectors.errors import ConfigError
from models.prompttpp.checkpoint import load
from models.prompttpp.config import TppConfig
from models.prompttpp.events import read_table
from models.prompttpp.losses import log_likelihood
from models.prompttpp.model import build_model
from models.prompttpp.recipe import Drift, Recipe, drifting, hawkes1, stream_table
from models.prompttpp.seeding import seed_prompts
from models.prompttpp.simulate import poisson, simulate
from models.prompttpp.train import Schedule, evaluate, fit, train
from models.training import Progress

SHORT = Recipe(drift=Drift(keys=6, phases=(0, 1), training_phases=1, phase_s=1200.0), hidden=8, state=4, steps=12)


def test_a_short_recipe_lowers_the_loss_and_is_a_function_of_its_seed(tmp_path: Path) -> None:
    seen: list[Progress] = []
    first = train(tmp_path / "a", recipe="drift", seed=3, world=SHORT, progress=seen.append)
    again = train(tmp_path / "b", recipe="drift", seed=3, world=SHORT)
    assert first.metrics["validation_loglik"] == again.metrics["validation_loglik"]
    one, other = load(first.weights), load(again.weights)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert pq.read_table(tmp_path / "a" / "events.parquet").num_rows > 20
    assert seen[-1].loss < 2.0 and pq.read_table(tmp_path / "a" / "training.parquet").num_rows > 50
    untrained = build_model(one.config, seed=3)
    learned = read_table(tmp_path / "a" / "training.parquet", key="stream_id", time="event_time", types=3)
    assert evaluate(one, learned) > evaluate(untrained, learned)


def test_own_events_are_learned_and_bad_ones_named(tmp_path: Path) -> None:
    table = stream_table(drifting(SHORT.drift, np.random.default_rng(0)), 60.0)
    pq.write_table(table, tmp_path / "events.parquet")
    sizes = {"hidden": 8, "state": 4, "pool": 3, "top_k": 2, "steps": 4, "batch": 4}
    result = train(tmp_path / "run", data=str(tmp_path / "events.parquet"), type_names=["a", "b", "c", "other"], **sizes)
    config = load(result.weights).config
    assert (config.types, config.type_names[3], config.pool) == (4, "other", 3)
    assert 30 < config.time_scale < 120  # seconds: the mean gap
    (picture,) = check_previews(result, {"fit": 4})
    red_H = (picture[..., 0] == 200) & (picture[..., 1] == 40)
    assert red_H.any(0).sum() >= 10, "events stand on the curves"
    with pytest.raises(ConfigError, match="cannot be read"):
        train(tmp_path / "x", data=str(tmp_path / "events.parquet"), kind="what")
    with pytest.raises(ConfigError, match="nothing to learn from"):
        train(tmp_path / "y")
    with pytest.raises(ConfigError, match="too few events"):
        pq.write_table(table.slice(0, 1), tmp_path / "one.parquet")
        train(tmp_path / "z", data=str(tmp_path / "one.parquet"))


def test_a_constant_rate_scores_what_a_poisson_process_does() -> None:
    simulated = simulate(poisson([0.5, 1.5]), keys=30, most=40, rng=np.random.default_rng(0))
    model = build_model(TppConfig(backbone="nhp", types=2, hidden=4, pool=0), seed=0)
    with torch.no_grad():
        model.rate.linear.weight.zero_()  # type: ignore[union-attr, operator]
        model.rate.linear.bias.copy_(torch.tensor([0.5, 1.5]).expm1().log())  # type: ignore[union-attr, operator]
    assert evaluate(model, simulated.events) == pytest.approx(simulated.log_likelihood(), abs=1e-5)
    batch = simulated.events.batch(range(30), 1.0)
    for rule in ("graded", "trapezoid", "mean", "mc"):
        found = log_likelihood(model, batch, rule=rule, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        assert float(found.per_event.detach()) == pytest.approx(simulated.log_likelihood(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "within"),
    [
        (TppConfig(backbone="nhp", types=1, hidden=16, pool=0), 0.02),
        (TppConfig(backbone="s2p2", types=1, hidden=16, state=8, pool=0), 0.05),
        (TppConfig(types=1, hidden=16, heads=1, pool=4, top_k=2, prompt_length=2), 0.05),
    ],
    ids=["nhp", "s2p2", "prompt-attnhp"],
)
def test_networks_come_near_the_truth_of_a_hawkes_process(config: TppConfig, within: float) -> None:
    training, held_out = (simulate(hawkes1(), keys=64, most=100, rng=np.random.default_rng(seed)) for seed in (0, 1))
    model = build_model(config, seed=0)
    seed_prompts(model, training.events)
    fit(model, training.events, training.events, Schedule(steps=120, check_every=60, points=10))
    assert evaluate(model, held_out.events) > held_out.log_likelihood() - within
