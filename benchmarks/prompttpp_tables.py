"""Badges of StackOverflow and edits of Wikipedia, ten tasks each: schemes of learning against trivial floors.

An event belongs to the task that its own time falls in; histories reach back; a key's first event is no target. Floors are
fitted on all earlier tasks and scored on the next; tasks 1 to 9 are pooled. All schemes begin with a network that has learned
the first task of all keys; the stream, and so what they learn from then on, is of ``--keys`` keys, as are all rows of a table
but for the floors of all keys, which stand beside them. Nothing was tuned on these streams. Types of Wikipedia (editors) beyond
the nineteen most frequent of the first task count as one.

    python -m benchmarks.prompttpp_tables --data ../shared/data/tpp
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import RESULTS, write
from benchmarks.prompttpp_protocols import SCHEMES, Outcome, Setting, pretrained_network, run_scheme
from models.prompttpp.events import EventSet, read_table
from models.prompttpp.process import PointProcess

DAY_S = 86_400.0
SETS = ("stackoverflow", "wikipedia")
NETWORK = {"backbone": "s2p2", "hidden": 32, "state": 8, "pool": 16, "top_k": 2, "query_events": 12}
LEARNING = {"learn_batch": 256, "learn_history": 16}
ONLINE: dict[str, Any] = {"learn": "all", "network_rate": 3e-3}
PROMPT: dict[str, Any] = {"learn": "prompts+head", "learning_rate": 0.02, "network_rate": 3e-3}


def subset(events: EventSet, keys: int) -> EventSet:
    """Return ``keys`` sequences, evenly spread."""
    chosen = np.unique(np.linspace(0, len(events) - 1, min(keys, len(events))).astype(int))
    every = list(events.sequences())
    return EventSet.of([every[number] for number in chosen], events.types)


def bucketed(events: EventSet, end: float, most: int) -> EventSet:
    """Merge all types but the ``most`` - 1 most frequent ones before ``end`` into one."""
    counts = np.bincount(events.type_E[events.time_E < end], minlength=events.types)
    kept = np.argsort(-counts, kind="stable")[: most - 1]
    to = np.full(events.types, most - 1)
    to[kept] = np.arange(len(kept))
    return EventSet(events.time_E, to[events.type_E], events.start_N, most, events.keys)


def floors(events: EventSet, edges: np.ndarray, unit_s: float) -> dict[str, float]:
    """Return type errors (most frequent, Markov), RMSE of the mean gap, nats of a constant rate with Markov marks."""
    gap, before, kind, time = [], [], [], []
    for times, kinds in events.sequences():
        gap.append(np.diff(times))
        before.append(kinds[:-1])
        kind.append(kinds[1:])
        time.append(times[1:])
    gap_E, before_E, kind_E, time_E = (np.concatenate(part) for part in (gap, before, kind, time))
    task_E = np.searchsorted(edges[1:-1], time_E, side="right")
    frequent, markov, square, nats = [], [], [], []
    for task in range(1, len(edges) - 1):
        past, now = task_E < task, task_E == task
        counts = np.ones((events.types, events.types))
        np.add.at(counts, (before_E[past], kind_E[past]), 1.0)
        chain = counts / counts.sum(1, keepdims=True)
        frequent.append(kind_E[now] != np.bincount(kind_E[past], minlength=events.types).argmax())
        markov.append(kind_E[now] != chain.argmax(1)[before_E[now]])
        mean = gap_E[past].mean()
        square.append((gap_E[now] - mean) ** 2)
        rate = unit_s / mean
        nats.append(np.log(rate) - rate * gap_E[now] / unit_s + np.log(chain[before_E[now], kind_E[now]]))
    pooled = [np.concatenate(part) for part in (frequent, markov, square, nats)]
    return {
        "error_most_frequent": float(pooled[0].mean()),
        "error_markov": float(pooled[1].mean()),
        "rmse_mean_gap": float(np.sqrt(pooled[2].mean()) / unit_s),
        "nats_constant_rate_markov": float(pooled[3].mean()),
    }


def judge(found: Outcome, unit_s: float) -> dict[str, float]:
    """Return nats per event, type error and RMSE over tasks 1 to the last."""
    columns = {
        name: found.rows.column(name).to_numpy(zero_copy_only=False) for name in ("loglik", "next_dt_mean", "next_type", "type")
    }
    names = np.array(found.rows.column("stream_id").to_pylist())
    time = found.rows.column("event_time").cast("int64").to_numpy() / 1e6
    order = np.lexsort((np.arange(len(names)), names))
    follows = names[order][1:] == names[order][:-1]
    this, last = order[1:][follows], order[:-1][follows]
    wanted = found.task_E[this] >= 1
    this, last = this[wanted], last[wanted]
    gap = time[this] - time[last]
    predicted = columns["next_dt_mean"][last]
    return {
        "nats": float(np.nanmean(columns["loglik"][this]) + np.log(unit_s)),
        "type_error": float((columns["next_type"][last] != columns["type"][this]).mean()),
        "rmse": float(np.sqrt(np.mean((predicted - gap) ** 2)) / unit_s),
    }


def main() -> None:
    """Run and write results/prompttpp_tables.json after each scheme."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES), choices=SCHEMES)
    parser.add_argument("--keys", type=int, default=100, help="of each stream, evenly spread; 0: all")
    parser.add_argument("--steps", type=int, default=100, help="updates of each pre-training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "settings": {"keys": arguments.keys, "steps": arguments.steps, "seed": arguments.seed}
        | {"network": NETWORK, "online": ONLINE, "prompt": PROMPT},
        "unit": "days",
        "sets": {},
    }
    for name in arguments.sets:
        whole, edges = read_set(name, arguments.data)
        events = subset(whole, arguments.keys or len(whole))
        found = result["sets"][name] = {
            "keys": len(events),
            "events": len(events.time_E),
            "floors": floors(events, edges, DAY_S),
            "floors, all keys": floors(whole, edges, DAY_S),
            "schemes": {},
        }
        print(name, found, flush=True)
        models: dict[bool, PointProcess] = {}
        for scheme in arguments.schemes:
            prompts = scheme == "prompt"
            setting = setting_of(whole, edges, arguments.steps, PROMPT if prompts else ONLINE)
            if prompts not in models:
                models[prompts] = pretrained_network(whole, setting, [0], arguments.seed, prompts=prompts)
            outcome = run_scheme(events, setting, scheme, arguments.seed, models)
            judged = judge(outcome, DAY_S)
            found["schemes"][scheme] = judged | {
                "prequential_by_task": [outcome.prequential(task) + float(np.log(DAY_S)) for task in range(len(edges) - 1)],
                "after_the_last_task": (outcome.score_TT[-1] + float(np.log(DAY_S))).tolist(),
                "forgetting": outcome.forgetting().tolist(),
            }
            print(name, scheme, {key: round(value, 4) for key, value in judged.items()}, flush=True)
            write("prompttpp_tables", result, folder=arguments.out)


def read_set(name: str, data: Path) -> tuple[EventSet, np.ndarray]:
    """Return the events of a stream and the edges of its ten tasks, seconds."""
    if name == "stackoverflow":
        return read_table(data / "stackoverflow_badges_fold1.parquet"), np.linspace(1325376000, 1388534400, 11)
    events = read_table(data / "wikipedia_edits.parquet")
    edges = np.linspace(0, float(events.time_E.max()) + 1, 11)
    return bucketed(events, edges[1], 20), edges


def setting_of(events: EventSet, edges: np.ndarray, steps: int, learning: dict[str, Any]) -> Setting:
    """Return how a scheme is run. The unit of time is the mean gap of the first task."""
    first = [(time[time < edges[1]], kind[time < edges[1]]) for time, kind in events.sequences()]
    return Setting(
        edges=edges.tolist(),
        pretrain=1,
        time_scale=EventSet.of([one for one in first if len(one[0])], events.types).mean_gap(),
        network=NETWORK,
        steps=steps,
        learn=learning["learn"],
        options=LEARNING | {name: value for name, value in learning.items() if name != "learn"},
        predict=True,
        held_out=0.2,
    )


if __name__ == "__main__":
    main()
