"""Exact simulation of Hawkes processes with exponential kernels (Ogata), many keys at once, with regimes that change.

rate_i(t) = μ_i + Σ_j r_ij(t), where an event of type j adds α_ij to r_ij and r_ij decays at β_ij. With α ≥ 0 the rate only
falls between events, so the rate right after a proposal bounds what follows until the next event: nothing is approximated. The
true log-likelihood comes with the events.
"""

# N keys, K types, E events of all keys, M regimes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from connectors.errors import ConfigError
from models.prompttpp.events import EventSet

__all__ = ["Hawkes", "Simulated", "poisson", "simulate", "stationary_rate", "true_likelihood"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hawkes:
    """Parameters of a process of K types."""

    mu: Floats
    """[K]"""
    alpha: Floats
    """[K, K], target × source"""
    beta: Floats

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        types = len(self.mu)
        if self.alpha.shape != (types, types) or self.beta.shape != (types, types):
            raise ConfigError(f"alpha and beta must be {types} x {types}, like mu")
        if (self.mu <= 0).any() or (self.alpha < 0).any() or (self.beta <= 0).any():
            raise ConfigError("mu and beta must be above 0, alpha at least 0")


def poisson(rate: Sequence[float]) -> Hawkes:
    """Return a process that does not look back."""
    types = len(rate)
    return Hawkes(np.array(rate, np.float64), np.zeros((types, types)), np.ones((types, types)))


def stationary_rate(process: Hawkes) -> Floats:
    """Return the long-run rates (I - α/β)^-1 μ."""
    solved = np.linalg.solve(np.eye(len(process.mu)) - process.alpha / process.beta, process.mu)
    return np.asarray(solved, np.float64)


@dataclass(frozen=True, slots=True)
class Simulated:
    """Events of N keys with the truth about them."""

    events: EventSet
    log_rate_E: Floats
    """Of the event's type, just before it."""
    compensator_E: Floats
    """Integral of the total rate since the key's event before, or 0."""
    regime_E: Ints

    def log_likelihood(self, first: int = 1) -> float:
        """Return the true mean log-likelihood per event, leaving out the first ``first`` events of each key."""
        place_E = np.arange(len(self.log_rate_E)) - np.repeat(self.events.start_N[:-1], self.events.lengths)
        return float((self.log_rate_E - self.compensator_E)[place_E >= first].mean())


def simulate(
    process: Hawkes | Sequence[Hawkes],
    *,
    keys: int,
    rng: np.random.Generator,
    end: float = np.inf,
    most: int = 1 << 62,
    changes: Sequence[float] = (),
) -> Simulated:
    """Simulate ``keys`` independent keys from an empty start up to time ``end`` or ``most`` events each.

    ``changes``: times at which the next process of the sequence takes over, with what earlier events have excited. Raises
    ``ConfigError`` where neither bound is given.
    """
    regimes = [process] if isinstance(process, Hawkes) else list(process)
    if np.isinf(end) and most == 1 << 62:
        raise ConfigError("give end or most, or the simulation never stops")
    if len(changes) != len(regimes) - 1:
        raise ConfigError(f"{len(regimes)} processes need {len(regimes) - 1} times of change, got {len(changes)}")
    mu_MK, alpha_MKK, beta_MKK = (np.stack([getattr(one, name) for one in regimes]) for name in ("mu", "alpha", "beta"))
    edge_M = np.array([*changes, end])
    types = mu_MK.shape[1]
    time_N, since_N = np.zeros(keys), np.zeros(keys)  # since: compensator since the last event
    excited_NKK, regime_N, count_N = np.zeros((keys, types, types)), np.zeros(keys, np.int64), np.zeros(keys, np.int64)
    parts: list[tuple[Ints, Floats, Ints, Floats, Floats, Ints]] = []
    live = np.arange(keys)
    while len(live):
        regime = regime_N[live]
        mu, beta, excited = mu_MK[regime], beta_MKK[regime], excited_NKK[live]
        bound = mu.sum(1) + excited.sum((1, 2))
        step = rng.exponential(size=len(live)) / bound
        left = edge_M[regime] - time_N[live]
        crosses = step >= left
        step = np.minimum(step, left)
        decay = np.exp(-beta * step[:, None, None])
        since_N[live] += mu.sum(1) * step + (excited * (1 - decay) / beta).sum((1, 2))
        excited = excited * decay
        excited_NKK[live] = excited
        time_N[live] += step
        rate = mu + excited.sum(2)
        drawn = rng.random(len(live)) * bound
        cumulated = rate.cumsum(1)
        happens = ~crosses & (drawn < cumulated[:, -1])
        kind = (drawn[:, None] >= cumulated).sum(1)
        regime_N[live[crosses]] += 1
        hit, kind = live[happens], kind[happens]
        parts.append((hit, time_N[hit], kind, np.log(rate[happens, kind]), since_N[hit], regime_N[hit]))
        excited_NKK[hit, :, kind] += alpha_MKK[regime_N[hit], :, kind]
        since_N[hit] = 0.0
        count_N[hit] += 1
        live = live[(regime_N[live] < len(regimes)) & (count_N[live] < most)]
    key, *columns = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(key, kind="stable")
    time, kind, log_rate, compensator, regime = (column[order] for column in columns)
    start = np.concatenate([[0], np.cumsum(np.bincount(key.astype(np.int64), minlength=keys))]).astype(np.int64)
    events = EventSet(time, kind.astype(np.int64), start, types, tuple(str(i) for i in range(keys)))
    return Simulated(events, log_rate, compensator, regime.astype(np.int64))


def true_likelihood(process: Hawkes, time_E: Floats, type_E: Ints) -> tuple[Floats, Floats]:
    """Return log rate of each event's type just before it, and compensator increments, of one sequence that starts at 0."""
    excited_KK, last = np.zeros_like(process.alpha), 0.0
    log_rate, compensator = np.empty(len(time_E)), np.empty(len(time_E))
    for place, (time, kind) in enumerate(zip(time_E.tolist(), type_E.tolist(), strict=True)):
        decay = np.exp(-process.beta * (time - last))
        compensator[place] = process.mu.sum() * (time - last) + (excited_KK * (1 - decay) / process.beta).sum()
        excited_KK = excited_KK * decay
        log_rate[place] = np.log(process.mu[kind] + excited_KK[kind].sum())
        excited_KK[:, kind] += process.alpha[:, kind]
        last = time
    return log_rate, compensator
