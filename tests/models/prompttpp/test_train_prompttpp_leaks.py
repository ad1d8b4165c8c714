"""The leak detector: on a Poisson process, of which nothing can be foreseen, no held-out score beats the truth.

Scores are compared event by event, so that the noise of the events themselves drops out. The published computation, trained the
same way, must be caught: its likelihood sees the future.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.prompttpp.attnhp import PromptAttNHP
from models.prompttpp.config import TppConfig
from models.prompttpp.events import EventSet
from models.prompttpp.integral import integrate
from models.prompttpp.losses import log_likelihood
from models.prompttpp.model import build_model
from models.prompttpp.official import OfficialBatch, Readout, official_likelihood
from models.prompttpp.simulate import poisson, simulate
from models.prompttpp.train import Schedule, fit

LENGTH = 12
"""Events of a sequence: of so few, the misplaced mask of the published code hides none."""
SIZES = {"types": 1, "hidden": 12, "time_dim": 8, "heads": 1}


def sequences(seed: int, keys: int, length: int = LENGTH) -> EventSet:
    return simulate(poisson([1.0]), keys=keys, most=length, rng=np.random.default_rng(seed)).events


def advantage(event_BL: Tensor, integral_BL: Tensor, gap_BL: Tensor) -> float:
    """Return by how many standard errors scores beat those of the truth, whose rate is 1."""
    more = (event_BL - integral_BL + gap_BL).flatten().double()
    return float(more.mean() / (more.std() / len(more) ** 0.5))


def official_batch(events: EventSet, rows: np.ndarray) -> OfficialBatch:
    time_BL = events.batch(rows, 1.0).time_BL.float()
    gap_BL = time_BL.diff(dim=1, prepend=time_BL[:, :1])
    real_BL = torch.ones_like(time_BL, dtype=torch.bool)
    blocked_BLL = torch.ones(len(rows), LENGTH, LENGTH, dtype=torch.bool).triu()
    return OfficialBatch(time_BL, gap_BL, torch.zeros_like(time_BL, dtype=torch.int64), real_BL, blocked_BLL)


@torch.no_grad()
def official_advantage(model: PromptAttNHP, events: EventSet, readout: Readout) -> float:
    """Score held-out events as published, but with a fine grid and trapezoids: what is left of an advantage is no grid's."""
    batch = official_batch(events, np.arange(len(events)))
    found = official_likelihood(model, batch, readout, 100)
    gap_BL = batch.gap_BL[:, 1:]
    return advantage(found.event_BL, integrate(found.rate_BLGK.sum(3), gap_BL, "trapezoid"), gap_BL)


@pytest.mark.slow
def test_the_published_computation_is_caught() -> None:
    training, held_out = sequences(0, 256), sequences(1, 64)
    model = build_model(TppConfig(**SIZES), seed=0)
    assert isinstance(model, PromptAttNHP)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    before = official_advantage(model, held_out, "official")
    for _ in range(150):
        rows = torch.randperm(len(training), generator=generator)[:16].numpy()
        found = official_likelihood(model, official_batch(training, rows), "official", 8)
        optimizer.zero_grad()
        (found.loss / found.events).backward()
        optimizer.step()
    assert before < 3.0
    assert official_advantage(model, held_out, "official") > 6.0


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["attnhp", "s2p2", "nhp", "thp"])
def test_no_network_beats_the_truth_of_a_poisson_process(backbone: str) -> None:
    training, held_out = sequences(0, 64, 40), sequences(1, 64, 40)
    sizes = SIZES | ({"pool": 0} if backbone == "thp" else {"pool": 4, "top_k": 2, "prompt_length": 2})
    model = build_model(TppConfig(backbone=backbone, state=6, **sizes), seed=0)  # type: ignore[arg-type]
    fit(model, training, training, Schedule(steps=80, check_every=40, points=8))
    batch = held_out.batch(np.arange(len(held_out)), 1.0)
    with torch.no_grad():
        found = log_likelihood(model, batch, points=40)
    assert advantage(found.event_BL, found.integral_BL, batch.time_BL.diff(dim=1)) < 3.0
