"""Badges of StackOverflow and edits of Wikipedia, ten tasks each: schemes of learning against trivial floors.

An event belongs to the task that its own time falls in; histories reach back; a key's first event is no target. Floors are
fitted on all earlier tasks and scored on the next; tasks 1 to 9 are pooled. ``--keys`` takes that many keys, evenly spread, for
all rows of a table. Types of Wikipedia (editors) beyond the nineteen most frequent of the first task count as one.

    python -m benchmarks.prompttpp_tables --data ../shared/data/tpp
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import RESULTS, write
from benchmarks.prompttpp_protocols import Outcome, Setting, pretrained_network, run_scheme
from models.prompttpp.events import EventSet, read_table

DAY_S = 86_400.0


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
    """Run and write results/prompttpp_tables.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=["stackoverflow", "wikipedia"])
    parser.add_argument("--schemes", nargs="*", default=["pretrained", "online", "prompt"])
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for name in arguments.sets:
        if name == "stackoverflow":
            events = read_table(arguments.data / "stackoverflow_badges_fold1.parquet")
            edges = np.linspace(1325376000, 1388534400, 11)
        else:
            events = read_table(arguments.data / "wikipedia_edits.parquet")
            edges = np.linspace(0, float(events.time_E.max()) + 1, 11)
            events = bucketed(events, edges[1], 20)
        result[name] = {"floors, all keys": floors(events, edges, DAY_S)} if arguments.keys < len(events) else {}
        events = subset(events, arguments.keys)
        result[name] |= {"keys": len(events), "events": len(events.time_E), "floors": floors(events, edges, DAY_S)}
        print(name, result[name], flush=True)
        setting = Setting(
            edges=edges.tolist(),
            pretrain=1,
            time_scale=events.mean_gap(),
            network={"backbone": "s2p2", "hidden": 32, "state": 8, "pool": 16, "top_k": 2, "query_events": 12},
            steps=arguments.steps,
            learn="prompts+head",
            options={"learn_batch": 256, "learn_history": 16, "learning_rate": 0.02, "network_rate": 3e-3},
            predict=True,
        )
        models = {
            prompts: pretrained_network(events, setting, [0], arguments.seed, prompts=prompts) for prompts in (False, True)
        }
        for scheme in arguments.schemes:
            outcome = run_scheme(events, setting, scheme, arguments.seed, models)
            result[name][scheme] = judge(outcome, DAY_S) | {
                "prequential_by_task": [outcome.prequential(task) + float(np.log(DAY_S)) for task in range(len(edges) - 1)],
                "after_the_last_task": (outcome.score_TT[-1] + float(np.log(DAY_S))).tolist(),
                "forgetting": outcome.forgetting().tolist(),
            }
            print(
                name,
                scheme,
                {key: value for key, value in result[name][scheme].items() if isinstance(value, float)},
                flush=True,
            )
    write("prompttpp_tables", {"days": True, "sets": result}, folder=arguments.out)


if __name__ == "__main__":
    main()
