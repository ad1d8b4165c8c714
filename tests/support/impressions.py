"""Generated impressions and labels with delays, and a base model for them: what the soak and the fault tests of ReLoop2 replay.

Impressions come 50 a second of event time, labels 20 s later on average and so in another order; some never come, some come
twice. Both files are in the order of event time and written in pieces, so that any number of rows takes the same memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["IMPRESSIONS_PER_S", "impressions_pipeline", "write_impressions", "write_model"]

IMPRESSIONS_PER_S = 50

_PIECE = 1 << 16
_DELAY_S = 20.0
_LONGEST_DELAY_S = 200.0
_LOST = 0.03
_TWICE = 0.01
_FEATURES = {"user_id": 600, "user_group": 16, "item_id": 300, "cate_id": 40}
"""Feature → how many values it has."""

_TIME = pa.timestamp("us", tz="UTC")

Columns = dict[str, npt.NDArray[Any]]


def write_impressions(folder: Path, rows: int, *, streams: int = 4, seed: int = 0) -> None:
    """Write ``impressions.parquet`` and ``labels.parquet``. The click rate of every category is redrawn half-way."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    writers: dict[str, pq.ParquetWriter] = {}
    waiting: Columns = {}
    labels_written = 0
    for columns, waits in _pieces(rows, streams, draw):
        _append(writers, folder, "impressions", columns)
        waiting = {name: np.concatenate([waiting[name], waits[name]]) for name in waits} if waiting else waits
        # Labels up to the latest impression are complete: none is earlier than its impression.
        done = waiting["event_time"] <= columns["event_time"][-1]
        labels_written += _append_labels(
            writers, folder, {name: values[done] for name, values in waiting.items()}, labels_written
        )
        waiting = {name: values[~done] for name, values in waiting.items()}
    _append_labels(writers, folder, waiting, labels_written)
    for writer in writers.values():
        writer.close()


def _pieces(rows: int, streams: int, draw: np.random.Generator) -> Iterator[tuple[Columns, Columns]]:
    """Yield impressions, and the labels that they will have."""
    effect = draw.normal(0.0, 1.0, (2, _FEATURES["cate_id"]))
    bias = draw.normal(-1.0, 0.3, _FEATURES["user_group"])
    clock_us = 1_600_000_000_000_000
    for start in range(0, rows, _PIECE):
        count = min(_PIECE, rows - start)
        number = np.arange(start, start + count)
        gaps_us = draw.exponential(1e6 / IMPRESSIONS_PER_S, count).astype(np.int64) + 1
        time_us = clock_us + np.cumsum(gaps_us)
        clock_us = int(time_us[-1])
        features = {name: draw.integers(1, size + 1, count, dtype=np.int32) for name, size in _FEATURES.items()}
        logit = bias[features["user_group"] - 1] + effect[(number >= rows // 2).astype(int), features["cate_id"] - 1]
        label = (draw.random(count) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        stream = draw.integers(0, streams, count)
        times = {"stream": stream, "sequence": number, "event_time": time_us, "impression_id": number}
        delay_us = (np.minimum(draw.exponential(_DELAY_S, count), _LONGEST_DELAY_S) * 1e6).astype(np.int64)
        fate = draw.random(count)
        copies = np.where(fate < _LOST, 0, np.where(fate < _LOST + _TWICE, 2, 1))
        labels = {"stream": stream, "event_time": time_us + delay_us, "impression_id": number, "label": label}
        yield {**times, **features}, {name: np.repeat(values, copies) for name, values in labels.items()}


def _append_labels(writers: dict[str, pq.ParquetWriter], folder: Path, labels: Columns, written: int) -> int:
    order = np.lexsort((labels["impression_id"], labels["event_time"]))
    columns = {name: values[order] for name, values in labels.items()}
    _append(writers, folder, "labels", {"sequence": written + np.arange(len(order)), **columns})
    return len(order)


def _append(writers: dict[str, pq.ParquetWriter], folder: Path, name: str, columns: Columns) -> None:
    streams = pa.array([f"partition{n}" for n in range(int(columns["stream"].max(initial=0)) + 1)])
    arrays = {"stream_id": pa.DictionaryArray.from_arrays(columns["stream"], streams).cast(pa.string())}
    arrays |= {key: pa.array(values) for key, values in columns.items() if key != "stream"}
    arrays["event_time"] = arrays["event_time"].cast(_TIME)
    table = pa.table(arrays)
    if name not in writers:
        writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", table.schema)
    writers[name].write_table(table)


def write_model(path: Path, *, seed: int = 0) -> None:
    """Write a small DCNv2 for these features, as it is before training: the memory is the same work whatever it says."""
    import torch

    from models.reloop2 import checkpoint
    from models.reloop2.config import DCNv2Config
    from models.reloop2.feature_map import Feature, FeatureMap
    from models.reloop2.model import build_model

    features = FeatureMap(tuple(Feature(name=name, vocab_size=size + 2) for name, size in _FEATURES.items()))
    config = DCNv2Config(embedding_dim=8, hidden_units=(64, 32), cross_layers=2, batch_norm=False, dropout=0.0)
    model = build_model(config, features, seed=seed)
    rows = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        columns = {name: torch.randint(1, size + 1, (4096,), generator=rows) for name, size in _FEATURES.items()}
        model.set_hidden_mean(model(columns).hidden_BD.mean(0))
    checkpoint.save(model, path)


def impressions_pipeline(folder: Path, run: Path, **options: Any) -> dict[str, Any]:
    """Return the pipeline over what the two functions above have written into ``folder``, its state and rows below ``run``.

    ``options`` are those of the operator, among them the keys of the engine.
    """
    tables = {name: {"type": "parquet", "path": str(folder / f"{name}.parquet")} for name in ("impressions", "labels")}
    return {
        "name": "reloop2-soak",
        "state": str(run / "state"),
        "epoch_s": 5.0,
        "sources": tables,
        "operators": {
            "correct": {
                "type": "reloop2",
                "input": "impressions",
                "control": "labels",
                "align_s": 60,
                "max_batch": 4096,
                "checkpoint": str(folder / "model.safetensors"),
                "label_timeout_s": 120,
                **options,
            }
        },
        "sinks": {"rows": {"type": "parquet", "input": "correct", "path": str(run / "rows")}},
    }
