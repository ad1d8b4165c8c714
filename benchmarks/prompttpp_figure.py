"""Pictures of ``prompttpp``: rates of one key over time, calibration of its scores, likelihood over time of four schemes.

The first two run the network that comes with the package over the simulated stream of the recipe; the third draws
results/prompttpp_drift.json.

    python -m benchmarks.prompttpp_figure [--out docs/images]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks.machine import RESULTS
from models.prompttpp.checkpoint import load
from models.prompttpp.recipe import RECIPES, drifting, stream_table
from models.prompttpp.small import SMALL_WEIGHTS
from operators.base import Context
from operators.prompttpp import PromptTPPOperator, PromptTPPOptions

OUT = Path(__file__).resolve().parents[1] / "docs" / "images"
COLORS = ((200, 90, 30), (40, 140, 60), (40, 40, 210), (160, 60, 160))  # BGR
WIDTH, HEIGHT, MARGIN = 900, 260, 44


class Panel:
    """A plot with axes of its own."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
        self._x, self._y = x, y
        cv2.rectangle(self.image, (MARGIN, MARGIN // 2), (WIDTH - 8, HEIGHT - MARGIN // 2), (170, 170, 170), 1)
        self.write(title, MARGIN, 15)
        for value in np.linspace(*y, 3):
            self.write(f"{value:.2f}", 4, self.place(x[0], float(value))[1] + 4)
        for value in np.linspace(*x, 5):
            self.write(f"{value:.4g}", self.place(float(value), y[0])[0] - 12, HEIGHT - 6)

    def place(self, x: float, y: float) -> tuple[int, int]:
        """Return the pixel of a value."""
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return (
            round(MARGIN + across * (WIDTH - 8 - MARGIN)),
            round(HEIGHT - MARGIN // 2 - float(np.clip(up, 0, 1)) * (HEIGHT - MARGIN)),
        )

    def line(self, xs: Sequence[float], ys: Sequence[float], color: tuple[int, int, int], width: int = 1) -> None:
        """Draw a curve."""
        points = np.array([self.place(float(x), float(y)) for x, y in zip(xs, ys, strict=True)], np.int32)
        cv2.polylines(self.image, [points], False, color, width, cv2.LINE_AA)

    def write(self, text: str, x: int, y: int, color: tuple[int, int, int] = (60, 60, 60)) -> None:
        """Write."""
        cv2.putText(self.image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.36, color, 1, cv2.LINE_AA)


def rates_of_one_key(table: pa.Table, events: int) -> np.ndarray:
    """Draw the rates of the busiest key, its events, and after the last one the predicted next."""
    names = table.column("stream_id").to_pylist()
    key = max(set(names), key=names.count)
    mine = table.filter(pc.equal(table.column("stream_id"), key)).slice(0, events)
    model = load(SMALL_WEIGHTS)
    scale = model.config.time_scale
    time = mine.column("event_time").cast("int64").to_numpy() / 1e6 / scale
    time = torch.from_numpy(time - time[0])[None]
    kind = torch.from_numpy(mine.column("type").to_numpy().astype(np.int64))[None]
    gap = torch.cat([time.diff(dim=1), torch.full((1, 1), 6.0, dtype=torch.float64)], dim=1)
    lag = gap[:, :, None] * torch.linspace(0, 1, 40, dtype=torch.float64)
    with torch.no_grad():
        rate = model.run(time, kind, lag).rate_BLGK[0].numpy()
    panel = Panel(
        f"rates of {key} (events per {scale:.0f} s), its events, the next one predicted",
        (0, float(time[0, -1]) + 6),
        (0, rate.max()),
    )
    moments = (time[0, :, None] + lag[0]).flatten().tolist()
    for type_ in range(model.config.types):
        panel.line(moments, rate[..., type_].flatten().tolist(), COLORS[type_])
        panel.write(f"type {type_}", WIDTH - 190 + 60 * type_, 15, COLORS[type_])
    for moment, type_ in zip(time[0].tolist(), kind[0].tolist(), strict=True):
        cv2.circle(panel.image, (panel.place(moment, 0)[0], HEIGHT - MARGIN // 2), 3, COLORS[type_], cv2.FILLED, cv2.LINE_AA)
    operator = PromptTPPOperator(PromptTPPOptions(checkpoint=str(SMALL_WEIGHTS), learn="off"), Context())
    found = operator.process(mine.drop_columns(["phase"]).combine_chunks().to_batches()[0])[0]
    assert isinstance(found, pa.RecordBatch)
    last = found.slice(found.num_rows - 1).to_pylist()[0]
    end = float(time[0, -1])
    low, middle, high = (end + last[f"next_dt_{name}"] / scale for name in ("p10", "median", "p90"))
    y = HEIGHT - MARGIN // 2 - 8
    cv2.line(panel.image, (panel.place(low, 0)[0], y), (panel.place(min(high, end + 6), 0)[0], y), (0, 0, 0), 2)
    cv2.circle(panel.image, (panel.place(middle, 0)[0], y), 4, COLORS[last["next_type"]], cv2.FILLED, cv2.LINE_AA)
    return panel.image


def calibration(table: pa.Table) -> np.ndarray:
    """Draw the histogram of PIT values, which is flat where waiting times are right."""
    operator = PromptTPPOperator(PromptTPPOptions(checkpoint=str(SMALL_WEIGHTS), learn="prompts", predict=False), Context())
    values = [
        np.asarray(out.column("pit").drop_null())
        for batch in table.drop_columns(["phase"]).combine_chunks().to_batches(max_chunksize=1024)
        for out in operator.process(batch)
        if isinstance(out, pa.RecordBatch)
    ]
    pit = np.concatenate(values)
    counts, edges = np.histogram(pit, bins=20, range=(0, 1))
    density = counts / counts.mean()
    panel = Panel(f"calibration: PIT of {len(pit)} events (1.00 is perfect)", (0, 1), (0, max(2.0, float(density.max()))))
    for value, left, right in zip(density, edges[:-1], edges[1:], strict=True):
        cv2.rectangle(panel.image, panel.place(left, 0), panel.place(right, float(value)), COLORS[0], 1)
    panel.line([0, 1], [1, 1], (60, 60, 60))
    return panel.image


def schemes(path: Path) -> np.ndarray:
    """Draw the likelihood over time of the schemes, first seed."""
    content = json.loads(path.read_text())
    curves, phases = content["curves_seed_0"], content["settings"]["phases"]
    every = np.concatenate([np.array(curve) for curve in curves.values()])
    low, high = float(np.percentile(every, 2)), float(every.max())
    panel = Panel("nats per event from the truth over time (phases and their regimes below)", (0, len(phases)), (low, high))
    for number, regime in enumerate(phases):
        x = panel.place(number, low)[0]
        cv2.line(panel.image, (x, MARGIN // 2), (x, HEIGHT - MARGIN // 2), (220, 220, 220), 1)
        panel.write(f"regime {regime}", x + 6, HEIGHT - MARGIN // 2 - 4)
    for number, (name, curve) in enumerate(curves.items()):
        panel.line(np.linspace(0, len(phases), len(curve)).tolist(), curve, COLORS[number])
        panel.write(name, WIDTH - 330 + 80 * number, 15, COLORS[number])
    return panel.image


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=12, help="of the simulated stream, for the calibration")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    drift = RECIPES["drift"].drift
    table = stream_table(drifting(dataclasses.replace(drift, keys=arguments.keys), np.random.default_rng(100)), drift.gap_s)
    pictures = {"prompttpp_rates": rates_of_one_key(table, 40), "prompttpp_calibration": calibration(table)}
    if (RESULTS / "prompttpp_drift.json").exists():
        pictures["prompttpp_schemes"] = schemes(RESULTS / "prompttpp_drift.json")
    for name, image in pictures.items():
        cv2.imwrite(str(arguments.out / f"{name}.png"), image)
        print("written:", arguments.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
