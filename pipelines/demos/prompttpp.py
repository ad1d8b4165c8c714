"""Events of users whose habits drift and return: a network as it was trained, and the same that goes on learning its prompts.

The network of the package was trained on three regimes; ``configs/prompttpp_replay.yaml`` scores a fresh stream in which two
new regimes come and old ones return.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from connectors.charts import line_chart, write_picture
from pipelines.demos.runner import Say, Shown, Worth, run
from pipelines.registry import CONFIGS

__all__ = ["show"]

_SEED = 4242
_KEYS, _PHASE_S, _GAP_S = 30, 3600.0, 60.0
_PHASES = (0, 3, 1, 4, 3)
"""Regimes 0 to 2 are those of the training; 3 and 4 are new."""
_FIRST_NEW = 3
_POINTS = 40
_LEARN = {"off": "as it was trained", "prompts+head": "learning its prompts"}
_RATES = {"learning_rate": 0.03, "network_rate": 0.006, "learn_batch": 128, "learn_history": 28}


def show(out: Path, say: Say) -> Shown:
    """Run the demo in a folder."""
    from models.prompttpp.recipe import regimes, stream_table
    from models.prompttpp.simulate import Hawkes, simulate
    from pipelines import Pipeline

    beta = np.full((3, 3), 2.0)
    swapped = Hawkes(np.array([0.8, 0.1, 0.1]), np.diag([0.2, 1.2, 0.6]), beta)
    backwards = Hawkes(np.array([0.05, 0.15, 0.3]), 1.3 * np.roll(np.eye(3), -1, axis=0), beta)
    known = [*regimes(), swapped, backwards]
    span = _PHASE_S / _GAP_S
    changes = [span * (number + 1) for number in range(len(_PHASES) - 1)]
    say(f"Simulating events of {_KEYS} users who change their habits {len(changes)} times")
    simulated = simulate(
        [known[number] for number in _PHASES],
        keys=_KEYS,
        end=span * len(_PHASES),
        changes=changes,
        rng=np.random.default_rng(_SEED),
    )
    events = stream_table(simulated, _GAP_S)
    pq.write_table(events, out / "events.parquet")
    scores: dict[str, Any] = {}
    for learn, words in _LEARN.items():
        say(f"Scoring {events.num_rows:,} events with the network {words}")
        folder = learn.partition("+")[0]
        places: dict[str, Any] = {
            "state": f"{out / folder / 'state'}",
            "sources.events.path": f"{out / 'events.parquet'}",
            "operators.next.checkpoint": "package://prompttpp/drift",
            "operators.next.learn": learn,
            "operators.next.max_streams": _KEYS,
            **({} if learn == "off" else {f"operators.next.{name}": value for name, value in _RATES.items()}),
            "sinks.scores.path": f"{out / folder / 'scores'}",
        }
        rows = run(Pipeline.load(CONFIGS / "prompttpp_replay.yaml", overrides=places)).table("scores")
        scores[learn] = rows.select(["stream_id", "sequence", "loglik"]).join(events, ["stream_id", "sequence"])
    number = {
        learn: (np.asarray(rows.column("event_time").cast("int64")) / 1e6, np.asarray(rows.column("loglik"), np.float64))
        for learn, rows in scores.items()
    }
    start = min(float(times.min()) for times, _ in number.values())
    phase = {learn: ((times - start) // _PHASE_S).astype(int).clip(0, len(_PHASES) - 1) for learn, (times, _) in number.items()}
    lines = {}
    for learn, (times, loglik) in number.items():
        order = np.argsort(times)
        parts = np.array_split(order, _POINTS)
        lines[_LEARN[learn]] = ([(times[p].mean() - start) / 60 for p in parts], [np.nanmean(loglik[p]) for p in parts])
    marks = {
        _PHASE_S / 60 * (n + 1): "new habits" if _PHASES[n + 1] >= _FIRST_NEW else "those of the training"
        for n in range(len(changes))
    }
    write_picture(out / "picture.png", line_chart("log-likelihood of events, nats", lines, x="minutes", marks=marks))
    new = [number for number, regime in enumerate(_PHASES) if regime >= _FIRST_NEW]
    table, worse = [], []
    for kind, is_new in (("habits of the training", False), ("new habits", True)):
        chosen = {learn: np.isin(phase[learn], new) == is_new for learn in _LEARN}
        was, now = (float(np.nanmean(number[learn][1][chosen[learn]])) for learn in _LEARN)
        table.append((kind, f"{was:.3f}", f"{now:.3f}"))
        worse += [f"{kind}: {was:.3f} without, {now:.3f} with"] if now < was else []
    before, after = (float(np.nanmean(number[learn][1])) for learn in _LEARN)
    table.append(("all, and what learning gained", f"{before:.3f}", f"{after:.3f} ({after - before:+.3f})"))
    return Shown(
        title="Log-likelihood per event, nats; higher is better",
        columns=("while", *_LEARN.values()),
        rows=table,
        worth=Worth("log-likelihood of events while habits change", f"{before:.3f} nats", f"{after:.3f}", "; ".join(worse)),
        look=[(f"{out / 'picture.png'}", "log-likelihood over time")],
        next=["describe prompttpp"],
    )
