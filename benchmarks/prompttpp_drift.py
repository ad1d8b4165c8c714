"""Drift that comes and returns: `prompt` against `online`, `pretrained` and `retrained` on simulated streams.

Every key changes its regime at the same times. The networks are pre-trained on three regimes; the stream then brings new ones
and returns to old ones. Current: mean log-likelihood over the second half of a phase. Lost on return: score over the second
half of the last visit of a regime less the score over the first tenth of the next one.

    python -m benchmarks.prompttpp_drift --seeds 5
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import RESULTS, write
from benchmarks.prompttpp_protocols import SCHEMES, Outcome, Setting, pretrained_network, run_scheme
from models.prompttpp.recipe import regimes
from models.prompttpp.simulate import Hawkes, Simulated, simulate

PHASES = (0, 1, 2, 3, 0, 4, 3, 1, 4)
"""Regimes 0, 1, 2 are pre-trained on; 3 and 4 are new; 0, 3, 1 and 4 return."""
PRETRAIN = 3
GAP_S = 60.0


def world() -> list[Hawkes]:
    """Return five regimes of three types."""
    beta = np.full((3, 3), 2.0)
    swapped = Hawkes(np.array([0.8, 0.1, 0.1]), np.diag([0.2, 1.2, 0.6]), beta)
    backwards = Hawkes(np.array([0.05, 0.15, 0.3]), 1.3 * np.roll(np.eye(3), -1, axis=0), beta)
    return [*regimes(), swapped, backwards]


def make(seed: int, keys: int, span: float) -> Simulated:
    """Simulate a stream in model time."""
    known = world()
    changes = [span * (number + 1) for number in range(len(PHASES) - 1)]
    rng = np.random.default_rng(seed)
    return simulate([known[number] for number in PHASES], keys=keys, end=span * len(PHASES), changes=changes, rng=rng)


def measure(found: Outcome) -> tuple[float, float]:
    """Return (current, lost on return) in nats per event."""
    now, lost = [], []
    last: dict[int, float] = {}
    for task, regime in enumerate(PHASES):
        rows = int((found.task_E == task).sum())
        score = found.rows.column("loglik").to_numpy(zero_copy_only=False)[found.task_E == task]
        late = float(np.nanmean(score[rows // 2 :]))
        if task >= PRETRAIN:
            now.append(late)
            if regime in last:
                lost.append(last[regime] - float(np.nanmean(score[: rows // 10])))
        last[regime] = late
    return float(np.mean(now)), float(np.mean(lost))


def interval(values: list[float]) -> list[float]:
    """Return mean and half width of the 95 % interval (Student)."""
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    return [round(float(np.mean(values)), 4), round(float(t * np.std(values, ddof=1) / len(values) ** 0.5), 4)]


def main() -> None:
    """Run and write results/prompttpp_drift.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--span", type=float, default=40.0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES))
    parser.add_argument("--learn", default="prompts")
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--online-rate", type=float, default=0.005)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {scheme: {"current": [], "lost": []} for scheme in (*arguments.schemes, "truth")}
    curves: dict[str, Any] = {}
    for seed in range(arguments.seeds):
        simulated = make(seed, arguments.keys, arguments.span)
        events = simulated.events
        scaled = type(events)(events.time_E * GAP_S, events.type_E, events.start_N, events.types, events.keys)
        base: dict[str, Any] = {
            "edges": [arguments.span * GAP_S * number for number in range(len(PHASES) + 1)],
            "pretrain": PRETRAIN,
            "time_scale": GAP_S,
            "network": {
                "backbone": "s2p2",
                "hidden": 24,
                "state": 8,
                "pool": 16,
                "top_k": 2,
                "prompt_length": 2,
                "query_events": 12,
            },
            "steps": arguments.steps,
            "learn": arguments.learn,
        }
        tasks = list(range(PRETRAIN))
        setting = Setting(**base)
        models = {prompts: pretrained_network(scaled, setting, tasks, seed, prompts=prompts) for prompts in (False, True)}
        for scheme in arguments.schemes:
            rate = arguments.rate if scheme == "prompt" else arguments.online_rate
            options = {"learn_batch": 128, "learn_history": 12, "learning_rate": rate}
            outcome = run_scheme(scaled, Setting(**base, options=options), scheme, seed, models, matrix=False)
            current, lost = measure(outcome)
            found[scheme]["current"].append(current)
            found[scheme]["lost"].append(lost)
            if seed == 0:
                score = outcome.rows.column("loglik").to_numpy(zero_copy_only=False)
                bins = np.array_split(np.nan_to_num(score, nan=float(np.nanmean(score))), 9 * 12)
                curves[scheme] = [round(float(part.mean()), 4) for part in bins]
            print(seed, scheme, round(current, 4), round(lost, 4), flush=True)
    result = {
        "settings": {name: value for name, value in vars(arguments).items() if name != "out"} | {"phases": PHASES},
        "nats_per_event": {
            scheme: {name: interval(values) for name, values in parts.items() if len(values) > 1}
            for scheme, parts in found.items()
        },
        "each_seed": found,
        "curves_seed_0": curves,
    }
    write("prompttpp_drift", result, folder=arguments.out)


if __name__ == "__main__":
    main()
