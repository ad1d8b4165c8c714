"""The network that comes with the package knows its regimes."""

import numpy as np
import pytest

from models.prompttpp.checkpoint import load
from models.prompttpp.events import EventSet
from models.prompttpp.recipe import RECIPES, drifting
from models.prompttpp.small import SMALL_WEIGHTS
from models.prompttpp.train import evaluate


@pytest.mark.heavy
@pytest.mark.slow
def test_the_small_network_beats_a_constant_rate_and_not_the_truth() -> None:
    model = load(SMALL_WEIGHTS)
    drift = RECIPES["drift"].drift
    simulated = drifting(drift, np.random.default_rng(77))
    assert model.config.time_scale == drift.gap_s
    in_units = simulated.events
    seconds = EventSet(in_units.time_E * drift.gap_s, in_units.type_E, in_units.start_N, in_units.types)
    span = sum(float(time[-1] - time[0]) for time, _ in simulated.events.sequences())
    counts = np.bincount(simulated.events.type_E, minlength=3)
    rates = counts / span
    constant = float((np.log(rates) * counts).sum() / counts.sum()) - rates.sum() * span / counts.sum()
    found, truth = evaluate(model, seconds.pieces(128)), simulated.log_likelihood()
    assert len(in_units.time_E) > 5000
    assert constant + 0.1 < found < truth
