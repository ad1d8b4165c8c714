"""What ReLoop2's memory gains on a click stream that drifts: python -m benchmarks.reloop2_drift

Four ways of serving one base network on the same stream, by progressive validation (predict, then learn when the label comes):

* frozen: the base network alone;
* memory: the base network and the error memory;
* incremental: the base network trained on every label that has arrived (Adam), no memory;
* both: the network trained so, and the error memory.

All of it goes through the real operator: impressions by ``process``, labels by ``control``, trained weights as model swaps that
keep the memory. Data: ``data/ctr`` of the shared folder beside the checkout ($STREAMBANK_DATA names another one).

* synthetic_drift: 200,000 rows train the base; labels come 1,000 impressions late; micro-batch 512. Phases: 0 nothing changes,
  1 a third of the categories changes, 2 the base rate rises as well, 3 everything back. The true probabilities are known:
  "recovered" is the share of (frozen - floor) logloss that is gone.
* ml100k: 60,000 rows train the base, 40,000 are streamed; labels come at once; micro-batch 256.

The last tenth of the training rows decides when the base's training stops. The stream begins after the training rows, with an
empty memory, and every row of it is scored. One setting per memory serves both data sets. Prints the tables, writes
results/reloop2_drift.json and plots of the logloss over windows, and fails where a claim does not hold.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks import machine
from models.reloop2 import checkpoint
from models.reloop2.base import CtrModel
from models.reloop2.config import DCNv2Config
from models.reloop2.evaluate import auc, gauc, logloss, windows
from models.reloop2.examples import Examples, encode_examples, fit_feature_map
from models.reloop2.incremental import IncrementalTrainer
from models.reloop2.model import build_model
from models.reloop2.train import Schedule, fit
from operators.base import Context
from operators.reloop2 import ReLoop2Operator, ReLoop2Options

WINDOW = 2000  # rows of a point in the plot and of rec50
HELD_OUT = 0.1
MEMORIES: dict[str, dict[str, Any]] = {
    "knn": {"mode": "knn", "gamma": 0.5, "strength": 0.65, "prior_rows": 20.0},
    "sketch": {
        "mode": "sketch",
        "gamma": 0.5,
        "strength": 0.8,
        "similarity": "count",
        "arrays": 140,
        "forget_rows": 14_000,
        "prior_rows": 5.0,
    },
}
"""Memory → options of the operator that differ from the defaults. "both" uses the first one."""
FIRST = next(iter(MEMORIES))

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One data set and its fixed setting."""

    name: str
    table: pa.Table
    categorical: list[str]
    sequences: dict[str, str | None] = field(default_factory=dict)
    training_rows: int
    min_count: int
    label_delay: int
    """Impressions between an impression and its label."""
    micro_batch: int
    learning_rate: float
    """Of the incremental training."""
    phase: NDArray[np.int64]
    """Of every row; negative: training."""
    truth: _Floats | None
    """Known click probabilities."""

    @property
    def fitted_rows(self) -> int:
        """Training rows that the base learns from; the others decide when it stops."""
        return self.training_rows - round(HELD_OUT * self.training_rows)


def synthetic_drift(folder: Path) -> Stream:
    """Read the made-up stream."""
    table = pq.read_table(folder / "synthetic_drift.parquet")
    return Stream(
        name="synthetic_drift",
        table=table.append_column("event_time", pc.cast(table.column("ts_ms"), pa.timestamp("ms", tz="UTC"))),
        categorical=["user_id", "user_group", "item_id", "cate_id"],
        training_rows=int((table.column("phase").to_numpy() < 0).sum()),
        min_count=1,
        label_delay=1000,
        micro_batch=512,
        learning_rate=3e-3,
        phase=table.column("phase").to_numpy().astype(np.int64),
        truth=table.column("p_true").to_numpy().astype(np.float64),
    )


def ml100k(folder: Path) -> Stream:
    """Read the MovieLens ratings as clicks."""
    table = pq.read_table(folder / "ml100k_stream.parquet")
    table = table.append_column("genre", pc.split_pattern(table.column("genres"), " "))
    training_rows = 60_000
    return Stream(
        name="ml100k",
        table=table.append_column("event_time", pc.cast(table.column("timestamp"), pa.timestamp("us", tz="UTC"))),
        categorical=["user_id", "item_id", "age", "gender", "occupation", "release_year"],
        sequences={"genre": None},
        training_rows=training_rows,
        min_count=5,
        label_delay=0,
        micro_batch=256,
        learning_rate=1e-3,
        phase=np.where(np.arange(table.num_rows) < training_rows, -1, 0),
        truth=None,
    )


STREAMS = {"synthetic_drift": synthetic_drift, "ml100k": ml100k}


def train_base(stream: Stream, seed: int) -> tuple[CtrModel, Examples]:
    """Train the base network; return it and all rows as tensors."""
    earlier = stream.table.slice(0, stream.fitted_rows)
    feature_map = fit_feature_map(
        earlier, categorical=stream.categorical, sequences=stream.sequences, max_len=6, min_count=stream.min_count
    )
    examples, bad = encode_examples(stream.table, feature_map, "click", stream.name)
    if bad:
        raise ValueError(f"{stream.name}: {bad} rows are bad")
    config = DCNv2Config(embedding_dim=8, hidden_units=(64, 32), cross_layers=2, batch_norm=False, dropout=0.0)
    model = build_model(config, feature_map, seed=seed)
    held_out = examples.take(slice(stream.fitted_rows, stream.training_rows))
    fit(model, examples.take(slice(0, stream.fitted_rows)), held_out, Schedule(), seed=seed)
    return model, examples


def serve(
    stream: Stream,
    model: CtrModel,
    examples: Examples,
    memory: dict[str, Any],
    *,
    incremental: bool = False,
) -> tuple[_Floats, _Floats]:
    """Stream the rows after the training rows; return base and corrected predictions."""
    base, corrected = [], []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "0.safetensors"
        checkpoint.save(model, path)
        # All labels arrive, so nothing may time out, however far apart the rows are.
        options = {"micro_batch": stream.micro_batch, "label_timeout_s": 1e9, "on_swap": "keep"} | memory
        operator = ReLoop2Operator(ReLoop2Options(checkpoint=str(path), **options), Context(stream.name))
        trainer = IncrementalTrainer(copy.deepcopy(model), learning_rate=stream.learning_rate, batch=stream.micro_batch)
        impressions, labels = rows_in(stream)
        told = stream.training_rows
        for row in range(told, stream.table.num_rows, stream.micro_batch):
            known = max(told, row - stream.label_delay)
            if known > told:
                refuse(operator.control(labels.slice(told, known - told)))
                if incremental:
                    trainer.learn(examples.take(slice(told, known)))
                    path = Path(scratch) / f"{row}.safetensors"
                    checkpoint.save(trainer.model, path)
                    refuse(operator.control(swap_row(labels.slice(known - 1, 1), str(path))))
                    path.unlink()
                told = known
            (out,) = operator.process(impressions.slice(row, stream.micro_batch))
            base.append(out.column("y_base").to_numpy())
            corrected.append(out.column("y_pred").to_numpy())
    return np.concatenate(base).astype(np.float64), np.concatenate(corrected).astype(np.float64)


def rows_in(stream: Stream) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Return all impressions and all labels as the operator takes them."""
    number = pa.array(np.arange(stream.table.num_rows))
    time = stream.table.column("event_time").combine_chunks().cast(pa.timestamp("us", tz="UTC"))
    key = {"stream_id": pa.array(["clicks"] * len(number)), "sequence": number, "event_time": time, "impression_id": number}
    features = [*stream.categorical, *stream.sequences]
    columns = {name: stream.table.column(name).combine_chunks() for name in features}
    label = stream.table.column("click").combine_chunks().cast(pa.float32())
    checkpoints = pa.nulls(len(number), pa.string())
    return pa.RecordBatch.from_pydict(key | columns), pa.RecordBatch.from_pydict(
        key | {"label": label, "checkpoint": checkpoints}
    )


def swap_row(label: pa.RecordBatch, path: str) -> pa.RecordBatch:
    """Return a control row that brings a model."""
    columns = dict(zip(label.schema.names, label.columns, strict=True))
    return pa.RecordBatch.from_pydict(columns | {"label": pa.nulls(1, pa.float32()), "checkpoint": pa.array([path])})


def refuse(answers: list[pa.RecordBatch]) -> None:
    """Fail where a control row was not taken."""
    wrong = [row for batch in answers for row in batch.to_pylist() if row["status"] != "model_swapped"]
    if wrong:
        raise RuntimeError(f"control rows were refused: {wrong[:3]}")


def measure(stream: Stream, seed: int) -> dict[str, Any]:
    """Train one base, serve it in every way, and return metrics per way and phase, and logloss per window."""
    began = time.monotonic()
    model, examples = train_base(stream, seed)
    trained_s = time.monotonic() - began
    frozen, corrected = {}, {}
    for mode, memory in MEMORIES.items():
        frozen[mode], corrected[f"memory ({mode})"] = serve(stream, model, examples, memory)
    if not all(np.array_equal(predictions, frozen[FIRST]) for predictions in frozen.values()):
        raise RuntimeError("the frozen network has changed its predictions")
    trained = serve(stream, model, examples, MEMORIES[FIRST], incremental=True)
    predictions = {"frozen": frozen[FIRST], **corrected} | dict(zip(("incremental", f"both ({FIRST})"), trained, strict=True))
    rows = slice(stream.training_rows, None)
    label, phase = examples.label_R[rows].double().numpy(), stream.phase[rows]
    user = stream.table.column("user_id").to_numpy()[rows]
    if stream.truth is not None:
        predictions["floor"] = stream.truth[rows]
    table = {
        way: _row(label, p, phase, user, predictions["frozen"], predictions.get("floor")) for way, p in predictions.items()
    }
    curves = {way: [window.logloss for window in windows(label, p, WINDOW)] for way, p in predictions.items()}
    return {"seed": seed, "training_s": round(trained_s, 1), "ways": table, "windows": curves}


def _row(
    label: _Floats, p: _Floats, phase: NDArray[np.int64], user: Any, frozen: _Floats, floor: _Floats | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"logloss": logloss(label, p), "auc": auc(label, p), "gauc": gauc(label, p, user)}
    for number in np.unique(phase).tolist() if floor is not None else []:
        here = phase == number
        found, before = logloss(label[here], p[here]), logloss(label[here], frozen[here])
        least = logloss(label[here], floor[here]) if floor is not None else None
        assert found is not None and before is not None and least is not None
        row[f"phase{number}"] = {
            "logloss": found,
            "auc": auc(label[here], p[here]),
            "recovered": (before - found) / (before - least),
            "cost": found - before,
        }
    return row


def mean_rows(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean over seeds of every number."""

    def mean(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: mean([value[key] for value in values]) for key in values[0]}
        return float(np.mean(values))

    return {way: mean([run["ways"][way] for run in runs]) for way in runs[0]["ways"]}


def check(stream: Stream, runs: list[dict[str, Any]]) -> list[str]:
    """Return the claims that do not hold; each is about every seed, with the one setting of the stream."""
    failures = []

    def claim(holds: bool, text: str) -> None:
        if not holds:
            failures.append(f"{stream.name}: {text}")

    for run in runs:
        ways, seed = run["ways"], run["seed"]
        if stream.name == "synthetic_drift":
            for mode in MEMORIES:
                memory = ways[f"memory ({mode})"]
                for number, needed in ((1, 0.25), (2, 0.40)):
                    found = memory[f"phase{number}"]["recovered"]
                    claim(found >= needed, f"seed {seed}: {mode} recovers {found:.1%} in phase {number}, needed {needed:.0%}")
                cost = memory["phase0"]["cost"]
                claim(cost <= 0.002, f"seed {seed}: {mode} costs {cost:.4f} logloss in phase 0, allowed 0.002")
            four = {way: ways[way]["logloss"] for way in ("frozen", f"memory ({FIRST})", "incremental", f"both ({FIRST})")}
            best = min(four, key=four.__getitem__)
            claim(best == f"both ({FIRST})", f"seed {seed}: best over the whole stream is {best}: {four}")
        else:
            gain = 100 * (ways["memory (knn)"]["auc"] - ways["frozen"]["auc"])
            claim(gain >= 0.4, f"seed {seed}: knn gains {gain:+.2f} AUC points, needed +0.4")
            gain = 100 * (ways["memory (sketch)"]["auc"] - ways["frozen"]["auc"])
            claim(gain >= 0.0, f"seed {seed}: sketch gains {gain:+.2f} AUC points, needed 0")
    return failures


def show(stream: Stream, ways: dict[str, Any], title: str) -> None:
    """Print one table."""
    phases = [name for name in next(iter(ways.values())) if name.startswith("phase")]
    print(f"\n{stream.name}, {title}")
    print(f"{'':30} " + " ".join(f"{name + ' logloss/AUC':>20} {'recov.':>7}" for name in phases) + "   whole logloss/AUC/gAUC")
    for way, row in ways.items():
        cells = [f"{row[n]['logloss']:13.4f}/{row[n]['auc']:.4f} {row[n]['recovered']:7.1%}" for n in phases]
        print(f"{way:30} " + " ".join(cells) + f"   {row['logloss']:.4f}/{row['auc']:.4f}/{row['gauc']:.4f}", flush=True)


def plot(stream: Stream, run: dict[str, Any], path: Path) -> None:
    """Draw the logloss over windows of one run as PNG."""
    height, width, left, right, top, bottom = 560, 1100, 70, 190, 40, 50
    image = np.full((height, width, 3), 255, np.uint8)
    colors = [(60, 60, 60), (180, 105, 30), (80, 160, 60), (40, 110, 220), (150, 60, 150), (160, 160, 160)]  # BGR
    curves = {way: np.array(values) for way, values in run["windows"].items()}
    low, high = (f(np.concatenate(list(curves.values()))) for f in (np.min, np.max))
    count = len(next(iter(curves.values())))

    def point(i: float, value: float) -> tuple[int, int]:
        x = left + (width - left - right) * i / max(1, count - 1)
        y = top + (height - top - bottom) * (high - value) / (high - low)
        return round(float(x)), round(float(y))

    def write(text: str, x: int, y: int, color: tuple[int, int, int] = (0, 0, 0)) -> None:
        cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)

    for value in np.linspace(low, high, 6):
        y = point(0, value)[1]
        cv2.line(image, (left, y), (width - right, y), (225, 225, 225), 1)
        write(f"{value:.3f}", 15, y + 4)
    phase = stream.phase[stream.training_rows :]
    for change in np.flatnonzero(np.diff(phase)) + 1:
        x = point(change / WINDOW - 0.5, low)[0]
        cv2.line(image, (x, top), (x, height - bottom), (0, 0, 0), 1)
        write(f"phase {phase[change]}", x + 4, top + 12)
    for number, (way, values) in enumerate(curves.items()):
        color = colors[number % len(colors)]
        points = np.array([point(i, value) for i, value in enumerate(values)], np.int32)
        cv2.polylines(image, [points], False, color, 2, cv2.LINE_AA)
        write(way, width - right + 15, top + 20 + 22 * number, color)
    write(f"{stream.name}, seed {run['seed']}: logloss over windows of {WINDOW:,} impressions", left, 22)
    write("impressions since the training rows", left, height - 12)
    for rows in range(0, len(phase) + 1, 10_000 if len(phase) < 50_000 else 20_000):
        write(f"{rows // 1000}k", point(rows / WINDOW - 0.5, low)[0] - 10, height - 30)
    cv2.imwrite(str(path), image)


def data_folder() -> Path:
    """Return the folder with the click data."""
    named = os.environ.get("STREAMBANK_DATA")
    return (Path(named) if named else Path(__file__).resolve().parents[1] / "../shared/data") / "ctr"


def main() -> int:
    """Train, serve, print, write; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--streams", default=",".join(STREAMS), help="which data sets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = data_folder()
    if not folder.is_dir():
        print(f"{folder} is not there: set STREAMBANK_DATA to the folder that holds ctr/")
        return 1
    results, failures = {}, []
    for name in arguments.streams.split(","):
        stream = STREAMS[name](folder)
        runs = []
        for seed in (int(text) for text in arguments.seeds.split(",")):
            runs.append(measure(stream, seed))
            show(stream, runs[-1]["ways"], f"seed {seed} (base trained in {runs[-1]['training_s']} s)")
        mean = mean_rows(runs)
        show(stream, mean, f"mean of {len(runs)} seeds")
        machine.RESULTS.mkdir(parents=True, exist_ok=True)
        plot(stream, runs[0], machine.RESULTS / f"reloop2_drift_{name}.png")
        failures += check(stream, runs)
        results[name] = {
            "incremental": {"optimizer": "adam", "learning_rate": stream.learning_rate},
            "mean": mean,
            "seeds": runs,
        }
    for failure in failures:
        print("FAILED:", failure)
    print(
        "written:",
        machine.write("reloop2_drift", {"memories": MEMORIES, "streams": results, "window": WINDOW, "holds": not failures}),
    )
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
