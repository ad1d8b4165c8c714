"""Claim: with coordinates a tiny policy's pointing error falls to at most half of that without; with memory bank sampling it
answers at least 0.9 of the questions about a frame of the past, where the newest frames alone leave it at chance.

Policies of 0.16 million weights learn rendered tasks of ``models.fourd_vla.tasks`` (``streambank train fourd_vla``): the same
network, samples, updates and seed each time; what differs is coordinates or not, and how the frames are sampled.

Each task is one part of the result, with its seeds, its updates and when it was measured; tasks that are not run keep theirs.

    python -m benchmarks.fourd_vla_tasks [--seeds 0,1,2] [--steps N] [--tasks point,past,count,seen]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from typing import Any

from benchmarks import machine
from models.fourd_vla.recipe import SmallSchedule, measure, train_task
from models.fourd_vla.tasks import TASKS
from models.training import one_thread

NAME = "fourd_vla_tasks"
SAMPLINGS = ("window", "uniform", "last_k")


def outcomes(task: str, seeds: list[int], schedule: SmallSchedule) -> dict[str, list[float]]:
    """Return for each variant of a task the outcome of each seed: an error in meters, or the share of right answers."""
    if TASKS[task].answers == 0:
        variants: list[tuple[str, dict[str, Any]]] = [
            ("with coordinates", {"coordinates": True}),
            ("without", {"coordinates": False}),
        ]
    else:
        variants = [(sampling, {"sampling": sampling}) for sampling in SAMPLINGS]
    found: dict[str, list[float]] = {name: [] for name, _ in variants}
    for seed in seeds:
        for name, settings in variants:
            policy = train_task(task, seed, schedule, **settings)
            found[name].append(measure(policy, task, schedule.fresh, settings.get("sampling", "window")))
            print(f"{task:<6} {name:<17} seed {seed}  {found[name][-1]:.3f}", flush=True)
    return found


def holds(task: str, found: dict[str, list[float]]) -> bool:
    """Return whether the claim holds for a task; of ``count`` and ``seen`` only that sampling helps."""
    if TASKS[task].answers == 0:
        return max(found["with coordinates"]) <= min(found["without"]) / 2
    if task == "past":
        return min(found["window"]) >= 0.9 and max(found["last_k"]) <= 1 / TASKS[task].answers + 0.1
    return statistics.fmean(found["window"]) > statistics.fmean(found["last_k"])


def main() -> int:
    """Train, measure, print, write the result after each task; 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=None, help="updates; default: of each task's recipe")
    parser.add_argument("--tasks", default=",".join(TASKS))
    arguments = parser.parse_args()
    seeds, schedule = [int(seed) for seed in arguments.seeds.split(",")], SmallSchedule(steps=arguments.steps)
    file = machine.RESULTS / f"{NAME}.json"
    parts: dict[str, Any] = json.loads(file.read_text()).get("tasks", {}) if file.is_file() else {}
    asked = arguments.tasks.split(",")
    for task in asked:
        began_s = time.process_time()
        with one_thread():
            found = outcomes(task, seeds, schedule)
        parts[task] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seeds": seeds,
            "steps": schedule.steps or TASKS[task].steps,
            "fresh": schedule.fresh,
            "cpu_s": round(time.process_time() - began_s, 1),
            "outcomes": found,
            "holds": holds(task, found),
        }
        machine.write(NAME, {"tasks": {name: parts[name] for name in TASKS if name in parts}})
    verdict = {task: parts[task]["holds"] for task in asked}
    print(f"holds: {verdict}; {file}")
    return 0 if all(verdict.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
