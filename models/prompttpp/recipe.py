"""The small recipes: simulated streams of Hawkes processes, steady or with regimes that change and return."""

# K types, R regimes

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.prompttpp.simulate import Hawkes, Simulated, simulate

__all__ = ["RECIPES", "Drift", "Recipe", "drifting", "hawkes1", "regimes", "stream_table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """A stream of many keys that all change their regime at the same times."""

    keys: int = 40
    phases: tuple[int, ...] = (0, 1, 2, 0, 1, 2)
    """Regime of each phase."""
    phase_s: float = 3600.0
    gap_s: float = 60.0
    """Mean time between a key's events, about."""
    training_phases: int = 3
    """Phases that the recipe learns from; the rest is for a replay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a recipe learns from, and with which network."""

    drift: Drift
    backbone: str = "s2p2"
    hidden: int = 24
    state: int = 12
    steps: int = 200


RECIPES: dict[str, Recipe] = {"drift": Recipe(drift=Drift())}
"""Ready recipes by name."""


def hawkes1() -> Hawkes:
    """Return the self-exciting process on which networks are compared (μ 0.2, α 0.8, β 1)."""
    return Hawkes(np.array([0.2]), np.array([[0.8]]), np.array([[1.0]]))


def regimes() -> list[Hawkes]:
    """Return three processes of three types, in gaps of about one: bursts of one type, a cycle of types, and noise."""
    beta = np.full((3, 3), 2.0)
    bursts = Hawkes(np.array([0.25, 0.1, 0.05]), np.diag([1.5, 0.4, 0.2]), beta)
    cycle = Hawkes(np.array([0.1, 0.1, 0.1]), 1.4 * np.roll(np.eye(3), 1, axis=0), beta)
    noise = Hawkes(np.array([0.1, 0.3, 0.9]), np.full((3, 3), 0.05), beta)
    return [bursts, cycle, noise]


def drifting(drift: Drift, rng: np.random.Generator) -> Simulated:
    """Simulate the stream in units of ``gap_s``."""
    span = drift.phase_s / drift.gap_s
    known = regimes()
    changes = [span * (number + 1) for number in range(len(drift.phases) - 1)]
    return simulate(
        [known[number] for number in drift.phases], keys=drift.keys, end=span * len(drift.phases), changes=changes, rng=rng
    )


def stream_table(simulated: Simulated, gap_s: float, start_us: int = 1_767_225_600_000_000) -> pa.Table:
    """Return simulated events as rows of a stream, in time order: the keys, ``type``, and ``phase``."""
    events = simulated.events
    key_E = np.repeat(np.arange(len(events)), events.lengths)
    sequence_E = np.arange(len(events.time_E)) - np.repeat(events.start_N[:-1], events.lengths)
    order = np.argsort(events.time_E, kind="stable")
    time_us = start_us + np.rint(events.time_E[order] * gap_s * 1e6).astype(np.int64)
    return pa.table(
        {
            "stream_id": pa.array([f"user{number}" for number in key_E[order]]),
            "sequence": pa.array(sequence_E[order]),
            "event_time": pa.array(time_us).cast(pa.timestamp("us", tz="UTC")),
            "type": pa.array(events.type_E[order].astype(np.int32)),
            "phase": pa.array(simulated.regime_E[order].astype(np.int16)),
        }
    )


def write_data(recipe: Recipe, folder: Path, seed: int) -> tuple[Path, float]:
    """Write ``training.parquet`` and ``events.parquet`` (the phases after it); return the first and its mean gap."""
    drift = recipe.drift
    table = stream_table(drifting(drift, np.random.default_rng(seed)), drift.gap_s)
    earlier = np.asarray(table.column("phase")) < drift.training_phases
    pq.write_table(table.filter(pa.array(earlier)), folder / "training.parquet")
    pq.write_table(table.filter(pa.array(~earlier)), folder / "events.parquet")
    return folder / "training.parquet", drift.gap_s
