"""Drift that comes and returns: `prompt` against `online`, `pretrained` and `retrained` on simulated streams.

Every key changes its regime at the same times. The networks are pre-trained on three regimes, on keys of their own; the stream
then brings two new ones and returns to four. All scores are differences from the truth on the same events, in nats per event,
so that the noise of the events drops out:

* current: over the second half of each phase, scored before it is learned;
* forgotten: on new sequences of a regime that the schemes never see, right after its last visit less right before the next one;
* lost on return: over the second half of the last visit less over the first tenth of the next one. No scheme can have 0: that
  the regime has changed must first be noticed, by each key for itself where prompts are chosen.

``--tune`` runs the settings in TRIED, as many for `prompt` as for `online`, on seeds 100 and up. What is asked for, of means of
paired differences: `prompt` is not worse than `online` on the current regime, and forgets at most half as much.

    python -m benchmarks.prompttpp_drift --seeds 5
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.intervals import interval
from benchmarks.machine import RESULTS, write
from benchmarks.prompttpp_protocols import SCHEMES, Outcome, Setting, pretrained_network, run_scheme
from models.prompttpp.events import Batch, EventSet
from models.prompttpp.losses import log_likelihood
from models.prompttpp.process import PointProcess
from models.prompttpp.recipe import regimes
from models.prompttpp.simulate import Hawkes, Simulated, simulate

PHASES = (0, 1, 2, 3, 0, 4, 3, 1, 4)
"""Regimes 0, 1, 2 are pre-trained on; 3 and 4 are new; 0, 3, 1 and 4 return."""
PRETRAIN = 3
PRETRAINED = 200
"""Keys of the pre-training, none of them in the stream: 40 networks know by heart, and fall by 0.1 nats an event on others."""
GAP_S = 60.0
EVENTS, FIRST = 30, 8
"""Events of a sequence on which regimes are remembered, and how many of them only make the history."""
NETWORK = {
    "backbone": "s2p2", "hidden": 24, "state": 8, "slowest": 0.1, "pool": 16, "top_k": 2, "prompt_length": 5,
    "query_events": 12, "prompt_head": True,
}  # fmt: skip
LEARNING = {"learn_batch": 128, "learn_history": 28}
TUNED: dict[str, dict[str, Any]] = {
    "online": {"network_rate": 0.006, "learn_steps": 3},
    "prompt": {"learning_rate": 0.04, "learn_steps": 2, "common_share": 0.7, "novelty": 0.7},
}
TRIED: dict[str, list[dict[str, Any]]] = {
    "online": [
        {"network_rate": 0.01},
        {"network_rate": 0.006, "learn_steps": 2},
        {"network_rate": 0.01, "learn_steps": 2},
        {"network_rate": 0.003, "learn_steps": 3},
        {"network_rate": 0.006, "learn_steps": 3},
    ],
    "prompt": [
        {"learning_rate": 0.04},
        {"learning_rate": 0.04, "learn_steps": 2, "common_share": 0.7},
        {"learning_rate": 0.04, "learn_steps": 2, "common_share": 0.5, "novelty": 0.7},
        {"learning_rate": 0.03, "learn_steps": 3, "common_share": 0.7, "novelty": 0.7},
        {"learning_rate": 0.04, "learn_steps": 2, "common_share": 0.7, "novelty": 0.7},
    ],
}


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


def earlier(seed: int, span: float) -> EventSet:
    """Simulate what the networks are pre-trained on, seconds."""
    known, changes = world(), [span * (number + 1) for number in range(PRETRAIN - 1)]
    rng = np.random.default_rng(50_000 + seed)
    processes = [known[number] for number in PHASES[:PRETRAIN]]
    return scaled(simulate(processes, keys=PRETRAINED, end=span * PRETRAIN, changes=changes, rng=rng).events)


def scaled(events: EventSet) -> EventSet:
    """Return events with times in seconds."""
    return EventSet(events.time_E * GAP_S, events.type_E, events.start_N, events.types, events.keys)


def held_out() -> list[tuple[Batch, float]]:
    """Return sequences of each regime alone, and their true nats per event behind the first events."""
    found = []
    for number, process in enumerate(world()):
        simulated = simulate(process, keys=40, most=EVENTS, rng=np.random.default_rng(9_000 + number))
        found.append((simulated.events.batch(range(40), 1.0), simulated.log_likelihood(FIRST + 1)))
    return found


class Remembered:
    """Scores of every regime after every task, as differences from the truth."""

    def __init__(self) -> None:
        self._held_out = held_out()
        self.score: dict[tuple[int, int], float] = {}
        """(task, regime) → nats per event."""

    @torch.no_grad()
    def __call__(self, task: int, model: PointProcess) -> None:
        """Score a network after a task."""
        for regime, (batch, truth) in enumerate(self._held_out):
            found = log_likelihood(model, batch, points=16)
            late = (found.event_BL - found.integral_BL)[:, FIRST:][found.real_BL[:, FIRST:]]
            self.score[task, regime] = float(late.mean()) - truth

    def forgotten(self) -> list[float]:
        """Return what was forgotten of each regime that returns, between its visits."""
        return [self.score[max(last, PRETRAIN - 1), regime] - self.score[task - 1, regime] for task, regime, last in returns()]


def returns() -> list[tuple[int, int, int]]:
    """Return (task, regime, last visit) of each return to a regime behind the pre-training."""
    found, last = [], dict[int, int]()
    for task, regime in enumerate(PHASES):
        if task >= PRETRAIN and regime in last:
            found.append((task, regime, last[regime]))
        last[regime] = task
    return found


def difference(found: Outcome, simulated: Simulated) -> npt.NDArray[np.float64]:
    """Return each event's score less the true one, in the order of the stream; NaN where a key begins."""
    order = np.argsort(simulated.events.time_E, kind="stable")
    truth_E = (simulated.log_rate_E - simulated.compensator_E)[order]
    return np.asarray(found.rows.column("loglik").to_numpy(zero_copy_only=False) + np.log(GAP_S) - truth_E)


def measure(score_E: npt.NDArray[np.float64], task_E: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return (current, lost on return) of differences from the truth."""
    by_task = [score_E[task_E == task] for task in range(len(PHASES))]
    late = [float(np.nanmean(score[len(score) // 2 :])) for score in by_task]
    first = [float(np.nanmean(score[: len(score) // 10])) for score in by_task]
    return float(np.mean(late[PRETRAIN:])), float(np.mean([late[last] - first[task] for task, _, last in returns()]))


def run(seed: int, scheme: str, keys: int, span: float, options: dict[str, Any], cache: dict[Any, Any]) -> dict[str, Any]:
    """Run one scheme on the stream of one seed."""
    if ("stream", seed) not in cache:
        cache.clear()
        cache["stream", seed] = make(seed, keys, span)
    simulated = cache["stream", seed]
    setting = Setting(
        edges=[span * GAP_S * number for number in range(len(PHASES) + 1)],
        pretrain=PRETRAIN,
        time_scale=GAP_S,
        network=NETWORK,
        length=96,
        learn=options.get("learn", "prompts"),
        options=LEARNING | {name: value for name, value in options.items() if name != "learn"},
    )
    prompts = scheme == "prompt"
    if ("network", prompts) not in cache:
        tasks = list(range(PRETRAIN))
        cache["network", prompts] = pretrained_network(earlier(seed, span), setting, tasks, seed, prompts=prompts)
    remembered = Remembered()
    models = {prompts: cache["network", prompts]}
    found = run_scheme(scaled(simulated.events), setting, scheme, seed, models, matrix=False, after=remembered)
    score_E = difference(found, simulated)
    current, lost = measure(score_E, found.task_E)
    bins = np.array_split(np.nan_to_num(score_E, nan=float(np.nanmean(score_E))), 12 * len(PHASES))
    return {
        "current": current,
        "forgotten": float(np.mean(remembered.forgotten())),
        "lost_on_return": lost,
        "curve": [round(float(part.mean()), 4) for part in bins],
    }


def kept(
    folder: Path | None, seed: int, scheme: str, keys: int, span: float, options: dict[str, Any], cache: dict[Any, Any]
) -> Any:
    """Return what ``run`` does, from ``folder`` where a run of the same settings has left it there."""
    settings = {"keys": keys, "span": span, "pretrained_keys": PRETRAINED, "network": NETWORK, "learning": LEARNING | options}
    if folder is None:
        return run(seed, scheme, keys, span, options, cache)
    path = folder / f"{seed}_{scheme}.json"
    if path.exists() and (content := json.loads(path.read_text(encoding="utf-8")))["settings"] == settings:
        return content["result"]
    result = run(seed, scheme, keys, span, options, cache)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "result": result}), encoding="utf-8")
    return result


def main() -> None:
    """Run and write results/prompttpp_drift.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--span", type=float, default=40.0)
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES), choices=SCHEMES)
    parser.add_argument("--retrained", type=int, default=1, help="seeds of `retrained`, which trains a network for each phase")
    parser.add_argument(
        "--tune", action="store_true", help="print scores of all settings in TRIED on seeds 100 and up; no result"
    )
    parser.add_argument("--keep", type=Path, help="folder of the results of each seed, so that a run that was stopped goes on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, Any] = {}
    cache: dict[Any, Any] = {}
    for seed in range(arguments.seeds):
        for scheme in arguments.schemes:
            if scheme == "retrained" and seed >= arguments.retrained:
                continue
            for options in TRIED.get(scheme, []) if arguments.tune else [TUNED.get(scheme, {})]:
                number = seed + 100 * arguments.tune
                folder = None if arguments.tune else arguments.keep
                result = dict(kept(folder, number, scheme, arguments.keys, arguments.span, options, cache))
                curve = result.pop("curve")
                curves.setdefault(scheme, curve)
                name = f"{scheme} {options}" if arguments.tune else scheme
                for measured, value in result.items():
                    found.setdefault(name, {}).setdefault(measured, []).append(value)
                print(number, name, {key: round(value, 4) for key, value in result.items()}, flush=True)
        if seed and not arguments.tune and "prompt" in found:
            save(found, curves, arguments)


def save(found: dict[str, dict[str, list[float]]], curves: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write what there is of two seeds or more."""
    result: dict[str, Any] = {
        "settings": {"seeds": len(found["prompt"]["current"]), "keys": arguments.keys, "span": arguments.span, "phases": PHASES}
        | {"pretrained_keys": PRETRAINED, "network": NETWORK, "learning": LEARNING, "tuned": TUNED, "tried": TRIED},
        "nats_per_event_from_the_truth": {
            scheme: {name: interval(values) for name, values in parts.items() if len(values) > 1}
            for scheme, parts in found.items()
        },
        "each_seed": found,
        "curves_seed_0": curves,
    }
    if {"prompt", "online"} <= found.keys():
        prompt, online = found["prompt"], found["online"]
        current = interval([a - b for a, b in zip(prompt["current"], online["current"], strict=True)])
        half = interval([0.5 * b - a for a, b in zip(prompt["forgotten"], online["forgotten"], strict=True)])
        result["paired"] = {"current: prompt less online": current, "forgotten: half of online's less prompt's": half}
        result["holds"] = {"current": current[0] >= 0, "forgotten": half[0] >= 0}
    write("prompttpp_drift", result, folder=arguments.out)


if __name__ == "__main__":
    main()
