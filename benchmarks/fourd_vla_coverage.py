"""Claim: on a still stream with events of one frame, memory bank sampling keeps every event (worst coverage above 0.99) where
as many evenly spaced frames lose most (below 0.5). On a camera that moves steadily it only ties; that is in the table, too.

Coverage of a window by the frames kept: for each frame the largest cosine to a kept one; its mean and its minimum over the
window, averaged over the stream (the least of them for "worst" of the made stream). Redundancy: the highest cosine of neighbors
among the kept. Frames go through the operator as they do in a pipeline: window 20, keep 5, a 16x9 grid of colors. The real
recording is redkitchen30 of the shared data, left out where it is not there.

    python -m benchmarks.fourd_vla_coverage [--data FOLDER] [--figure FILE.png [--of FOLDER]]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import machine
from connectors.records import TIME_TYPE
from connectors.sources.rgbd import RgbdOptions, RgbdSource
from models.fourd_vla.recordings import write_tour
from operators.base import Context
from operators.fourd_vla import FourDVLAOperator, FourDVLAOptions
from operators.fourd_vla.config import Given
from operators.fourd_vla.schemas import FEATURE

MODES = ("window", "incremental", "uniform", "last_k", "single")
WINDOW, KEEP, EVENT_EVERY = 20, 5, 13
DATA = Path(os.environ.get("STREAMBANK_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "rgbd"


def still_stream(seed: int, length: int = 400) -> NDArray[np.float32]:
    """Return features [length, 64] of a still view with a little noise and another view every 13th frame."""
    rng = np.random.default_rng(seed)
    view = rng.normal(size=64)
    rows = [rng.normal(size=64) if t % EVENT_EVERY == 6 else view + 1e-3 * rng.normal(size=64) for t in range(length)]
    return np.array(rows, np.float32)


def feature_rows(features: NDArray[np.float32]) -> pa.RecordBatch:
    """Return FEATURE rows of one stream."""
    count = len(features)
    columns = [
        pa.array(["still"] * count),
        pa.array(range(count), pa.int64()),
        pa.array([t * 100_000 for t in range(count)], TIME_TYPE),
        pa.array(features.tolist(), pa.list_(pa.float32())),
        pa.nulls(count, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FEATURE)


def recording(folder: Path) -> pa.RecordBatch:
    """Return all frames of a recording."""
    source = RgbdSource(RgbdOptions(path=str(folder)))
    batch = source.open(source.splits()[0], None).read(1 << 20, 1 << 30)
    assert batch is not None
    return batch


def choose(batch: pa.RecordBatch, mode: str, **options: Any) -> list[dict[str, Any]]:
    """Return what the operator says of each frame."""
    made = FourDVLAOperator(FourDVLAOptions(sampling=mode, window=WINDOW, keep=KEEP, max_gap_s=None, **options), Context())
    return [row for out in made.process(batch) for row in out.to_pylist()]


def summary(rows: Sequence[dict[str, Any]], skip: int) -> dict[str, float]:
    """Return means over the frames of full windows, and the least worst coverage."""
    rows = rows[skip:]
    redundancy = [max(row["similarity"]) for row in rows if row["similarity"]]
    return {
        "mean_coverage": statistics.fmean(row["coverage"] for row in rows),
        "worst_coverage": statistics.fmean(row["worst_coverage"] for row in rows),
        "least_worst_coverage": min(row["worst_coverage"] for row in rows),
        "redundancy": statistics.fmean(redundancy) if redundancy else float("nan"),
    }


def figure(file: Path, recorded: Path | None) -> int:
    """Draw what is kept of a recording, of a rendered one where none is given."""
    from benchmarks.fourd_vla_figure import draw

    with tempfile.TemporaryDirectory() as folder:
        if recorded is None:
            write_tour(Path(folder) / "tour")
        batch = recording(recorded or Path(folder) / "tour")
    draw(batch, choose(batch, "window"), choose(batch, "uniform"), file)
    print(file)
    return 0


def main() -> int:
    """Measure, print, write the result; 1 where the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--figure", type=Path, help="only draw what is kept of a recording, as PNG")
    parser.add_argument("--of", type=Path, help="recording for the figure; default: a rendered tour around a table")
    arguments = parser.parse_args()
    if arguments.figure is not None:
        return figure(arguments.figure, arguments.of)

    table: dict[str, dict[str, dict[str, float]]] = {"still_with_events": {}}
    for mode in MODES:
        streams = [
            summary(choose(feature_rows(still_stream(seed)), mode, features=Given(size=64)), WINDOW) for seed in range(3)
        ]
        table["still_with_events"][mode] = {name: statistics.fmean(one[name] for one in streams) for name in streams[0]}
    kitchen = arguments.data / "redkitchen30"
    if kitchen.is_dir():
        batch = recording(kitchen)
        table["redkitchen30"] = {mode: summary(choose(batch, mode), WINDOW - 1) for mode in MODES}
    for name, modes in table.items():
        print(name)
        for mode, values in modes.items():
            print(f"  {mode:<12}" + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    still = table["still_with_events"]
    holds = still["window"]["least_worst_coverage"] > 0.99 and still["uniform"]["least_worst_coverage"] < 0.5
    path = machine.write("fourd_vla_coverage", {"window": WINDOW, "keep": KEEP, "holds": holds, "table": table})
    print(f"{'holds' if holds else 'DOES NOT HOLD'}; {path}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
