"""Small models and streams of impressions and labels for the tests of ``operators.reloop2``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.reloop2 import checkpoint
from models.reloop2.config import DCNv2Config
from models.reloop2.feature_map import Feature, FeatureMap
from models.reloop2.model import build_model
from operators.base import Context, Operator
from operators.reloop2 import ReLoop2Operator, ReLoop2Options

FEATURES = FeatureMap(
    (
        Feature(name="user", vocab_size=22, vocabulary=tuple(range(20))),
        Feature(name="item", vocab_size=12, vocabulary=tuple(range(10))),
        Feature(name="price", kind="numeric"),
    )
)
SMALL: dict[str, Any] = {"arrays": 6, "bits": 4, "forgetting": "never", "micro_batch": 4, "pending_capacity": 1000}


def save_model(path: Path, seed: int = 0, *, hidden: tuple[int, ...] = (8,)) -> str:
    """Write a small random model with a hidden mean; return its path."""
    config = DCNv2Config(embedding_dim=4, hidden_units=hidden, dropout=0.0, batch_norm=False)
    model = build_model(config, FEATURES, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" in name:
                parameter.normal_(0.0, 0.5, generator=generator)  # the initial ones are so small that all rows look alike
    model.set_hidden_mean(torch.linspace(-0.1, 0.1, model.hidden_dim))
    checkpoint.save(model, path)
    return str(path)


def make(checkpoint_path: str, *, aligned: bool = False, **options: Any) -> ReLoop2Operator:
    """Build an operator with small settings."""
    chosen = ReLoop2Options(checkpoint=checkpoint_path, **{**SMALL, **options})
    return ReLoop2Operator(chosen, Context("ctr", aligned=aligned))


def impressions(
    ids: Sequence[Any],
    *,
    times_s: Sequence[float] | None = None,
    streams: Sequence[str] | None = None,
    seed: int = 0,
    **columns: Sequence[Any],
) -> pa.RecordBatch:
    """Make impressions with random features; ``columns`` replaces or adds some."""
    n, rng = len(ids), np.random.default_rng(seed)
    times_s = list(range(n)) if times_s is None else times_s
    given: dict[str, Any] = {
        "stream_id": pa.array(["a"] * n if streams is None else streams, pa.string()),
        "sequence": pa.array(range(n), pa.int64()),
        "event_time": pa.array([round(t * 1e6) for t in times_s], pa.timestamp("us", "UTC")),
        "impression_id": ids if isinstance(ids, pa.Array) else pa.array(ids),
        "user": pa.array(rng.integers(0, 20, n), pa.int64()),
        "item": pa.array(rng.integers(0, 10, n), pa.int64()),
        "price": pa.array(rng.normal(size=n), pa.float32()),
    }
    given |= {name: pa.array(values) if not isinstance(values, pa.Array) else values for name, values in columns.items()}
    return pa.RecordBatch.from_pydict(given)


def labels(
    ids: Sequence[Any],
    values: Sequence[float | None],
    *,
    times_s: Sequence[float] | None = None,
    streams: Sequence[str] | None = None,
    checkpoints: Sequence[str | None] | None = None,
) -> pa.RecordBatch:
    """Make control rows."""
    n = len(ids)
    times_s = [0.0] * n if times_s is None else times_s
    given: dict[str, Any] = {
        "stream_id": pa.array(["a"] * n if streams is None else streams, pa.string()),
        "sequence": pa.array(range(n), pa.int64()),
        "event_time": pa.array([round(t * 1e6) for t in times_s], pa.timestamp("us", "UTC")),
        "impression_id": pa.array(ids, pa.string() if ids and isinstance(ids[0], str) else pa.int64()),
        "label": pa.array(values, pa.float32()),
    }
    if checkpoints is not None:
        given["checkpoint"] = pa.array(checkpoints, pa.string())
    return pa.RecordBatch.from_pydict(given)


def rows_of(batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    """Return all rows as dicts."""
    return [row for batch in batches for row in batch.to_pylist()]


@dataclass(frozen=True)
class Events:
    """Impressions and labels in one order: ``order`` holds (is a label, row)."""

    impressions: pa.RecordBatch
    labels: pa.RecordBatch
    order: Sequence[tuple[bool, int]]

    def run(self, operator: Operator, cuts: np.random.Generator | None = None, start: int = 0, stop: int | None = None) -> Any:
        """Hand rows ``start`` to ``stop`` over, cut at random where ``cuts`` is given; return the output as one table."""
        outputs: list[pa.RecordBatch] = []
        group: list[tuple[bool, int]] = []
        for event in [*self.order[start:stop], None]:
            is_cut = event is None or (group and (group[-1][0] != event[0] or (cuts is not None and cuts.random() < 0.1)))
            if is_cut and group:
                source = self.labels if group[0][0] else self.impressions
                batch = source.take(pa.array([row for _, row in group]))
                outputs += operator.control(batch) if group[0][0] else operator.process(batch)
                group = []
            if event is not None:
                group.append(event)
        return pa.Table.from_batches(outputs, schema=operator.output_schema)


def drifting(count: int, *, delay: int = 10, seed: int = 0, streams: int = 1, duplicates: float = 0.0) -> Events:
    """Make a stream in which every tenth label is missing, some come early, and some impressions and labels come twice."""
    rng = np.random.default_rng(seed)
    ids = list(range(100, 100 + count))
    for i in np.flatnonzero(rng.random(count) < duplicates).tolist():
        ids[i] = ids[max(0, i - int(rng.integers(0, 8)))]
    names = [f"s{i}" for i in rng.integers(0, streams, count).tolist()]
    shown = impressions(ids, streams=names, seed=seed)
    clicks = rng.integers(0, 2, count)
    when = np.arange(count) + np.where(rng.random(count) < 0.1, -3.0, rng.exponential(delay, count))
    kept = np.flatnonzero(rng.random(count) < 0.9)
    kept = np.concatenate([kept, kept[rng.random(len(kept)) < duplicates]])
    given = labels(
        [ids[i] for i in kept],
        clicks[kept].tolist(),
        times_s=when[kept].clip(0).tolist(),
        streams=[names[i] for i in kept],
    )
    keyed = [(float(i), False, i) for i in range(count)] + [(float(when[row]) + 0.5, True, n) for n, row in enumerate(kept)]
    return Events(shown, given, [(is_label, row) for _, is_label, row in sorted(keyed)])


def column(table: pa.Table, name: str) -> list[Any]:
    """Return a column as a list."""
    values: list[Any] = table.column(name).to_pylist()
    return values
