"""Claim: on fresh clips of moving shapes the detector with causal memory beats the same detector without by ≥ 0.08 mAP50.

For every seed the small recipe is trained from nothing, then the real operator runs over fresh clips: the detector before the
memory was added, the fair control (the same extra training without memory), memory as a live stream has it (causal), memory
cleared before every frame (isolated), that of a clip of another class, read but not written (wrong), and memory started from
14 frames spread over the whole clip (spread; looks ahead). mAP at IoU 0.5 with plain overlap over all frames of all clips.

    python -m benchmarks.mamba_memory_gain [--seeds 0,1,2] [--clips 60] [--weights FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks import machine
from connectors.records import FRAME
from models.mamba import checkpoint
from models.mamba.evaluate import Found, Objects, mean_average_precision
from models.mamba.recipe import SHAPES_MEMORY, ShapesWeights, train_shapes
from models.mamba.shapes import Scene, ShapesConfig, make_scene
from models.training import Progress, Training
from operators.base import Context
from operators.mamba import MambaOperator, MambaOptions

NEEDED = 0.08
STANDARD_ERRORS = 3.0
MODES = ("base", "control", "causal", "isolated", "wrong", "spread")
REFERENCES = 14
_WITH_ROLE = FRAME.append(pa.field("role", pa.string()))


def frames(
    scene: Scene, stream_ids: Sequence[str], sequences: Sequence[int], times: Sequence[int], role: str | None = None
) -> pa.RecordBatch:
    """Return frames ``times`` of a clip as rows."""
    size, rows = scene.config.size, len(times)
    columns = {
        "stream_id": pa.array(stream_ids, pa.string()),
        "sequence": pa.array(sequences, pa.int64()),
        "event_time": pa.array([40_000 * (1000 + s) for s in sequences], pa.int64()).cast(FRAME.field("event_time").type),
        "image": pa.array([scene.frame(t).tobytes() for t in times], pa.binary()),
        "encoding": pa.array(["raw_rgb8"] * rows, pa.string()),
        "height": pa.array([size] * rows, pa.int32()),
        "width": pa.array([size] * rows, pa.int32()),
        "error": pa.nulls(rows, pa.string()),
        "role": pa.array([role] * rows, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns, schema=_WITH_ROLE)


def detect(weights: Path, mode: str, scenes: Sequence[Scene]) -> list[pa.RecordBatch]:
    """Run the operator over all clips; return per clip its rows of detections, one per frame."""
    options = MambaOptions(
        checkpoint=str(weights),
        memory=mode not in ("base", "control"),
        init="spread" if mode == "spread" else "self",
        write_topk=SHAPES_MEMORY.write_topk,
        max_length=SHAPES_MEMORY.max_length,
        key_length=SHAPES_MEMORY.key_length,
        max_streams=scenes[0].config.frames if mode == "isolated" else 1,
        late="read_only",
    )
    operator = MambaOperator(options, Context(name=mode))
    length = scenes[0].config.frames
    times = range(length)
    results = []
    for i, scene in enumerate(scenes):
        stream = f"clip{i}"
        if mode == "isolated":
            streams = [f"{stream}/{t}" for t in times]
            batch = frames(scene, streams, times, times)
        else:
            streams = [stream]
            batch = frames(scene, streams * length, times, times)
        if mode == "wrong":
            other = next(s for s in (*scenes[i + 1 :], *scenes[:i]) if s.labels_O[0] != scene.labels_O[0])
            operator.process(frames(other, streams * length, range(length, 2 * length), times))
        if mode == "spread":
            spread = [round(k * (length - 1) / (REFERENCES - 1)) for k in range(REFERENCES)]
            operator.process(frames(scene, streams * REFERENCES, range(-REFERENCES, 0), spread, "reference"))
        (rows,) = operator.process(batch)  # in mode `wrong` older than what the stream has seen: read, not written
        results.append(rows)
        for name in streams:
            operator.close_stream(name)
    return results


def precision(scenes: Sequence[Scene], results: Sequence[pa.RecordBatch]) -> float:
    """Return mAP at IoU 0.5 over all frames."""
    truth, found = [], []
    length = scenes[0].config.frames
    for i, (scene, rows) in enumerate(zip(scenes, results, strict=True)):
        column = rows.column("detections")
        if rows.num_rows != length:
            raise RuntimeError(f"clip {i}: {rows.num_rows} rows for {length} frames")
        flat = column.flatten()
        image_D = np.repeat(np.arange(length), np.diff(column.offsets.to_numpy()))
        boxes_D4 = np.stack([flat.field(edge).to_numpy() for edge in ("x1", "y1", "x2", "y2")], axis=1)
        found.append((image_D + i * length, boxes_D4, flat.field("label").to_numpy(), flat.field("score").to_numpy()))
        objects = len(scene.labels_O)
        image_N = np.repeat(np.arange(length), objects) + i * length
        truth.append((image_N, scene.boxes_TO4.reshape(-1, 4), np.tile(scene.labels_O, length)))
    return mean_average_precision(
        Objects(*(np.concatenate(part) for part in zip(*truth, strict=True))),
        Found(*(np.concatenate(part) for part in zip(*found, strict=True))),
        classes=scenes[0].config.classes,
        published=False,
    ).mean


def trained(seed: int, folder: Path) -> tuple[dict[str, Path], float | None]:
    """Return the weights of a seed by name, and the processor seconds of their training (None: they were in ``folder``)."""
    paths = {name: folder / f"{name}_{seed}.safetensors" for name in ("memory", "control", "base")}
    seconds = None
    if not all(path.is_file() for path in paths.values()):
        began = time.process_time()
        models: ShapesWeights = train_shapes(seed=seed, training=Training(progress=_show))
        for name, path in paths.items():
            checkpoint.save(getattr(models, name), path)
        seconds = round(time.process_time() - began, 1)
    return paths, seconds


def _show(progress: Progress) -> None:
    end = "\n" if progress.step == progress.steps else "\r"
    if sys.stderr.isatty() or end == "\n":
        print(f"  {progress.stage} {progress.step}/{progress.steps} loss {progress.loss:.3f}", end=end, file=sys.stderr)


def summarize(table: list[dict[str, float]]) -> tuple[dict[str, Any], list[str]]:
    """Return means, margins with their standard errors, and what does not hold."""
    mean = {mode: statistics.mean(row[mode] for row in table) for mode in MODES}
    failures, margins = [], {}
    for against in ("base", "control"):
        values = [row["causal"] - row[against] for row in table]
        margin = statistics.mean(values)
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        margins[f"causal-{against}"] = {"mean": margin, "standard_error": error}
        if margin < NEEDED:
            failures.append(f"causal - {against} is {margin:.3f}, at least {NEEDED} is needed")
        if len(values) > 1 and not margin > STANDARD_ERRORS * error:
            failures.append(
                f"causal - {against} is {margin:.3f} with standard error {error:.3f}; {STANDARD_ERRORS} of them needed"
            )
    for row in table:
        if not row["causal"] > row["isolated"]:
            failures.append(f"seed {row['seed']:.0f}: causal {row['causal']:.3f} is not above isolated {row['isolated']:.3f}")
        if not row["wrong"] <= row["isolated"]:
            failures.append(f"seed {row['seed']:.0f}: wrong {row['wrong']:.3f} is above isolated {row['isolated']:.3f}")
    return {"mean": mean, "margins": margins}, failures


def main() -> int:
    """Train, measure, print the table, write the result; return 1 if the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--weights", type=Path, help="keep the weights here and use those that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the recipe's figures are those of one thread
    scenes = [make_scene(ShapesConfig(), number) for number in range(arguments.clips)]
    table, seconds = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = arguments.weights or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'seed':>4} " + " ".join(f"{mode:>8}" for mode in MODES))
        for seed in (int(text) for text in arguments.seeds.split(",")):
            paths, spent = trained(seed, folder)
            seconds.append(spent)
            row: dict[str, float] = {"seed": seed}
            for mode in MODES:
                weights = paths.get(mode, paths["memory"])
                row[mode] = precision(scenes, detect(weights, mode, scenes))
            table.append(row)
            print(f"{seed:>4} " + " ".join(f"{row[mode]:8.3f}" for mode in MODES), flush=True)
    summary, failures = summarize(table)
    print("mean " + " ".join(f"{summary['mean'][mode]:8.3f}" for mode in MODES))
    for name, margin in summary["margins"].items():
        print(
            f"{name}: {margin['mean']:+.3f} ± {margin['standard_error']:.3f} (standard error over seeds; needed {NEEDED:+.2f})"
        )
    for failure in failures:
        print("FAILED:", failure)
    document = {
        "clips": arguments.clips,
        "frames_per_clip": scenes[0].config.frames,
        "needed": NEEDED,
        "seeds": table,
        **summary,
        "training_processor_s": seconds,
        "holds": not failures,
    }
    print("written:", machine.write("mamba_memory_gain", document))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
