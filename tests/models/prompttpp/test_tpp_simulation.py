"""The simulator is exact, and event sets keep sequences apart."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from real_data import REAL_DATA

from connectors.errors import ConfigError
from models.prompttpp.config import TppConfig
from models.prompttpp.events import EventSet, read_arrivals, read_easytpp, read_table
from models.prompttpp.simulate import Hawkes, poisson, simulate, stationary_rate, true_likelihood

TPP = REAL_DATA / "tpp"


def kolmogorov(values: np.ndarray) -> float:
    """Return sqrt(n) times the largest distance of the empirical distribution from Exp(1)."""
    sorted_, n = np.sort(1 - np.exp(-values)), len(values)
    grid = np.arange(1, n + 1) / n
    return float(np.sqrt(n) * max((grid - sorted_).max(), (sorted_ - grid + 1 / n).max()))


TWO = Hawkes(np.array([0.3, 0.1]), np.array([[0.5, 0.2], [0.4, 0.3]]), np.array([[2.0, 1.0], [1.5, 3.0]]))


def test_compensators_of_simulated_events_are_exponential() -> None:
    simulated = simulate(TWO, keys=40, end=300.0, rng=np.random.default_rng(1))
    assert len(simulated.compensator_E) > 5000
    assert kolmogorov(simulated.compensator_E) < 1.95  # p = 0.001


def test_simulated_truth_equals_the_likelihood_of_the_events() -> None:
    simulated = simulate(TWO, keys=3, most=40, rng=np.random.default_rng(2))
    for (time, kind), start in zip(simulated.events.sequences(), simulated.events.start_N[:-1], strict=True):
        log_rate, compensator = true_likelihood(TWO, time, kind)
        np.testing.assert_allclose(simulated.log_rate_E[start : start + len(time)], log_rate, atol=1e-9)
        np.testing.assert_allclose(simulated.compensator_E[start : start + len(time)], compensator, atol=1e-9)


def test_long_run_rates() -> None:
    one = Hawkes(np.array([0.2]), np.array([[0.8]]), np.array([[1.0]]))
    np.testing.assert_allclose(stationary_rate(one), [1.0])
    simulated = simulate(TWO, keys=30, end=800.0, rng=np.random.default_rng(3))
    late = simulated.events.time_E > 50
    counts = np.bincount(simulated.events.type_E[late], minlength=2) / (30 * 750)
    np.testing.assert_allclose(counts, stationary_rate(TWO), rtol=0.05)


def test_regimes_take_over_at_their_times() -> None:
    slow, fast = poisson([0.5]), poisson([5.0])
    simulated = simulate([slow, fast, slow], keys=200, end=30.0, changes=[10.0, 20.0], rng=np.random.default_rng(4))
    counts = np.histogram(simulated.events.time_E, bins=[0, 10, 20, 30])[0] / 2000
    np.testing.assert_allclose(counts, [0.5, 5.0, 0.5], rtol=0.1)
    assert (np.diff(simulated.regime_E[: simulated.events.start_N[1]]) >= 0).all()
    with pytest.raises(ConfigError, match="times of change"):
        simulate([slow, fast], keys=1, end=1.0, rng=np.random.default_rng(0))


def test_batches_are_padded_and_relative_to_the_first_event() -> None:
    events = EventSet.of([([5.0, 7.0, 8.0], [0, 1, 0]), ([1e9, 1e9 + 4.0], [1, 1])], 2)
    batch = events.batch([0, 1], 2.0)
    assert batch.time_BL.tolist() == [[0.0, 1.0, 1.5], [0.0, 2.0, 2.0]]
    assert batch.type_BL.tolist() == [[0, 1, 0], [1, 1, 2]]
    assert batch.real_BL.tolist() == [[True, True, True], [True, True, False]]
    assert events.mean_gap() == pytest.approx(7 / 3)
    assert [len(time) for time, _ in events.pieces(2).sequences()] == [2, 2, 2]


def test_tables_are_read_by_key_and_checked(tmp_path: Path) -> None:
    table = pa.table({"key": ["b", "a", "b"], "t": [3.0, 1.0, 2.0], "type": [0, 1, 2]})
    pq.write_table(table, tmp_path / "events.parquet")
    events = read_table(tmp_path / "events.parquet")
    assert dict(zip(events.keys, [time.tolist() for time, _ in events.sequences()], strict=True)) == {
        "a": [1.0],
        "b": [2.0, 3.0],
    }
    assert events.types == 3
    with pytest.raises(ConfigError, match="only types 0 to 1 are known"):
        read_table(tmp_path / "events.parquet", types=2)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path / "nothing.parquet")


@pytest.mark.skipif(not TPP.is_dir(), reason="the shared event data are not here")
def test_published_layouts_are_read_and_agree_with_the_truth() -> None:
    assert len(read_easytpp(TPP / "easytpp_synthetic_8seq.jsonl")) == 8
    hawkes1 = read_arrivals(TPP / "ifl_hawkes1_first16.npz")
    process = Hawkes(np.array([0.2]), np.array([[0.8]]), np.array([[1.0]]))
    scores = []
    for time, kind in hawkes1.sequences():
        log_rate, compensator = true_likelihood(process, time, kind)
        scores.append((log_rate - compensator).mean())
    np.testing.assert_allclose(scores[:4], [-0.68397, -0.37270, -0.37954, -0.53457], atol=1e-5)
    badges = read_table(TPP / "stackoverflow_badges_fold1.parquet")
    assert (len(badges), badges.types, len(badges.time_E)) == (1326, 22, 97233)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="top_k is 3, the pool has 2"):
        TppConfig(types=2, pool=2, top_k=3)
    with pytest.raises(ConfigError, match="time_scale is -1"):
        TppConfig(types=2, time_scale=-1.0)
    assert TppConfig.from_json(TppConfig(types=2, type_names=("a", "b")).to_json()).type_names == ("a", "b")
    assert torch.get_default_dtype() == torch.float32
