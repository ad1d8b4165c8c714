"""Clicks that shift: a frozen network, and the same with a memory of its errors that fills as labels arrive.

A small network is trained on the quiet beginning of a made-up stream; then a third of the categories changes, the base rate
rises, and all goes back. ``configs/reloop2_replay.yaml`` predicts the rest, labels 20 s late.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.charts import line_chart, write_picture
from pipelines.demos.runner import Say, Shown, Worth, run
from pipelines.registry import CONFIGS

__all__ = ["show"]

_SEED = 7
_POINTS = 50
_WINDOWS = {"window_s": 60.0, "label_timeout_s": 150.0}
"""Of the metrics: the stream is 17 minutes long, and the labels end 134 s behind it."""
_PHASES = ("as trained", "a third of the categories changed", "and clicks more common", "all as before")


def show(out: Path, say: Say) -> Shown:
    """Run the demo in a folder."""
    from models.reloop2.drifting_clicks import DriftConfig, make_stream
    from models.reloop2.recipe import write_data
    from models.reloop2.train import train
    from pipelines import Pipeline

    world = DriftConfig(training_rows=60_000, steady_rows=6000, shifted_rows=20_000, raised_rows=15_000, back_rows=9000)
    say(f"Making {sum(world.phase_rows):,} impressions, and training a network on the first {world.training_rows:,}")
    options: dict[str, Any] = write_data(world, out, _SEED)
    weights = train(out / "network", epochs=3, seed=_SEED, **options).weights
    say("Predicting the rest, with a memory of the errors beside the frozen network")
    places = {
        "state": f"{out / 'state'}",
        "sources.shown.path": f"{out / 'impressions.parquet'}",
        "sources.labels.path": f"{out / 'labels.parquet'}",
        "operators.predict.checkpoint": f"{weights}",
        **{f"operators.quality.{name}": value for name, value in _WINDOWS.items()},
        "sinks.predictions.path": f"{out / 'predictions'}",
        "sinks.windows.path": f"{out / 'windows'}",
    }
    rows = run(Pipeline.load(CONFIGS / "reloop2_replay.yaml", overrides=places)).table("predictions")
    truth = make_stream(world, _SEED).select(["impression_id", "click", "phase"])
    joined = rows.select(["impression_id", "y_base", "y_pred"]).join(truth, "impression_id").sort_by("impression_id")
    phase_R = joined.column("phase").to_numpy()
    loss = {name: _loss(joined, name) for name in ("y_base", "y_pred")}
    _draw(out / "picture.png", loss, phase_R)
    table, worse = [], []
    for phase, words in enumerate(_PHASES):
        was, now = (float(values[phase_R == phase].mean()) for values in loss.values())
        table.append((words, f"{was:.4f}", f"{now:.4f}"))
        worse += [f"{words}: {was:.4f} without, {now:.4f} with"] if now > was else []
    base, corrected = (float(values.mean()) for values in loss.values())
    table.append(("all, and what the memory gained", f"{base:.4f}", f"{corrected:.4f} ({corrected - base:+.4f})"))
    return Shown(
        title="Logloss of click predictions; lower is better",
        columns=("while", "frozen network", "with its memory"),
        rows=table,
        worth=Worth("logloss of clicks while habits shift and return", f"{base:.4f}", f"{corrected:.4f}", "; ".join(worse)),
        look=[(f"{out / 'picture.png'}", "logloss over time")],
        next=[f"view {out / 'windows'}", "describe reloop2"],
    )


def _loss(rows: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    click_R = rows.column("click").to_numpy().astype(np.float64)
    p_R = np.clip(pc.fill_null(rows.column(name), 0.5).to_numpy().astype(np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(-(click_R * np.log(p_R) + (1 - click_R) * np.log(1 - p_R)))


def _draw(path: Path, loss: dict[str, Any], phase_R: Any) -> None:
    parts = [np.arange(len(phase_R))[part] for part in np.array_split(np.arange(len(phase_R)), _POINTS)]
    middle = [float(part.mean()) / 1000 for part in parts]
    named = {"y_base": "frozen network", "y_pred": "with its memory"}
    lines = {named[name]: (middle, [float(values[part].mean()) for part in parts]) for name, values in loss.items()}
    marks = {float(np.argmax(phase_R == phase)) / 1000: _PHASES[phase] for phase in range(1, len(_PHASES))}
    write_picture(path, line_chart("logloss of click predictions", lines, x="thousand impressions", marks=marks))
