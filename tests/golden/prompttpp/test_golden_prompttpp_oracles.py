"""Golden: integrals, predictions and thinning with analytic processes plugged in."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import prompttpp_cases
import torch
from golden_cases import golden, read_npz
from torch import Tensor

from models.prompttpp.integral import integrate, shares
from models.prompttpp.prediction import lag_grid, predict_next, thin
from models.prompttpp.simulate import Hawkes, true_likelihood

POINTS = (97, 41)  # for the first the specification states errors; the second is the default


def processes(arrays: dict[str, np.ndarray]) -> dict[str, Hawkes]:
    names = [match[1] for name in arrays if (match := re.fullmatch(r"(.+)\.mu", name))]
    return {name: Hawkes(*(np.atleast_1d(arrays[f"{name}.{part}"]) for part in ("mu", "alpha", "beta"))) for name in names}


def rates_after(process: Hawkes, times: np.ndarray, types: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Return lags [...] after the last event → rates [..., K]."""
    end = times[-1] if len(times) else 0.0
    age = end - times

    def rate(lag: Tensor) -> Tensor:
        lags = lag.double().numpy()[..., None, None]
        kernel = process.alpha[:, types] * np.exp(-process.beta[:, types] * (lags + age))
        return torch.from_numpy(process.mu + kernel.sum(-1))

    return rate


@golden("prompttpp", ".npz", *prompttpp_cases.ORACLES)
def test_true_likelihood_equals_the_oracle(path: Path) -> None:
    arrays = read_npz(path)
    for name, process in processes(arrays).items():
        times, types = arrays[f"{name}.times"], arrays[f"{name}.types"]
        log_rate, compensator = true_likelihood(process, times, types)
        np.testing.assert_allclose(compensator, arrays[f"{name}.compensator_increment"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(log_rate, arrays[f"{name}.event_loglik"], rtol=1e-9, atol=1e-9)
        total = log_rate.sum() - compensator.sum() - float(arrays[f"{name}.compensator_tail"])
        np.testing.assert_allclose(total, arrays[f"{name}.total_loglik"], rtol=1e-9)


@golden("prompttpp", ".npz", *prompttpp_cases.ORACLES)
def test_grid_rules_equal_the_oracle(path: Path) -> None:
    arrays = read_npz(path)
    checked = 0
    for entry, wanted in arrays.items():
        match = re.fullmatch(r"(.+)\.integral_grid(\d+)_(mean|trapezoid)", entry)
        if match is None:
            continue
        name, points = match[1], int(match[2])
        process, times, types = processes(arrays)[name], arrays[f"{name}.times"], arrays[f"{name}.types"]
        rule = "mean" if match[3] == "mean" else "trapezoid"
        for place in range(0, len(times), 5):
            before = times[place - 1] if place else 0.0
            gap = torch.tensor([times[place] - before])
            rate = rates_after(process, times[:place], types[:place])
            total = rate(gap[:, None] * shares(points, rule)).sum(-1)
            np.testing.assert_allclose(float(integrate(total, gap, rule)), wanted[place], atol=1e-10)
        checked += 1
    assert checked


@golden("prompttpp", ".npz", *prompttpp_cases.ORACLES)
def test_quadrature_predicts_time_and_type(path: Path) -> None:
    arrays = read_npz(path)
    for name, process in processes(arrays).items():
        times, types = arrays[f"{name}.times"], arrays[f"{name}.types"]
        for row, n in enumerate(arrays[f"{name}.after_n"].tolist()):
            rate = rates_after(process, times[:n], types[:n])
            gap = torch.tensor([max(float(np.diff(times[:n]).mean()) if n > 1 else 1.0, 1e-9)], dtype=torch.float64)
            for points in POINTS:
                lag = lag_grid(gap, points)
                found = predict_next(rate(lag), lag, (0.5, 0.9))
                what, probability = f"{name} after {n} events, {points} lags", arrays[f"{name}.next_type_prob"][row]
                np.testing.assert_allclose(float(found.mean_B), arrays[f"{name}.next_mean"][row], rtol=1e-3, err_msg=what)
                np.testing.assert_allclose(found.type_BK[0].numpy(), probability, atol=1e-5, err_msg=what)
                np.testing.assert_allclose(float(found.type_BK.sum()), 1.0, atol=1e-9)
                wanted = [arrays[f"{name}.next_median"][row], arrays[f"{name}.next_q90"][row]]
                np.testing.assert_allclose(found.quantile_BZ[0].numpy(), wanted, rtol=1e-3, err_msg=what)


@golden("prompttpp", ".npz", *prompttpp_cases.ORACLE_THINNING)
def test_thinning_accepts_the_listed_proposals(path: Path) -> None:
    arrays = read_npz(path)
    name, n = str(arrays["thinning.process"]), int(arrays["thinning.history_n"])
    process = processes(arrays)[name]
    rate = rates_after(process, arrays[f"{name}.times"][:n], arrays[f"{name}.types"][:n])
    exp, uniform = (torch.from_numpy(arrays[f"thinning.{part}"]) for part in ("unit_exp", "unif"))
    bound = torch.full((len(exp),), float(arrays["thinning.bound"]), dtype=torch.float64)
    found = thin(lambda lag: rate(lag).sum(-1), bound, np.inf, exp, uniform)
    assert torch.equal(found.index_B, torch.from_numpy(arrays["thinning.accepted_index"]).long())
    np.testing.assert_allclose(found.lag_B.numpy(), arrays["thinning.accepted_dt"], rtol=1e-9)

    generator = torch.Generator().manual_seed(0)
    rows = 2_000
    exp = torch.empty(rows, 160, dtype=torch.float64).exponential_(generator=generator)
    uniform = torch.rand(rows, 160, dtype=torch.float64, generator=generator)
    right = float(rate(torch.zeros(1)).sum())
    sampled = thin(lambda lag: rate(lag).sum(-1), torch.full((rows,), 1.01 * right), np.inf, exp, uniform)
    assert not sampled.censored_B.any()
    error = float(sampled.lag_B.mean()) - float(arrays["thinning.exact_next_mean"])
    assert abs(error) < 4 * float(arrays["thinning.exact_next_std"]) / rows**0.5
    # A bound that is too low is found out and doubled, and a horizon censors.
    low = thin(lambda lag: rate(lag).sum(-1), torch.full((rows,), 0.5 * right), np.inf, exp, uniform)
    assert int(low.restarts_B.sum()) > 0
    near = thin(lambda lag: rate(lag).sum(-1), torch.full((rows,), 1.01 * right), 0.1, exp, uniform)
    assert torch.equal(near.lag_B.isnan(), sampled.lag_B > 0.1)
