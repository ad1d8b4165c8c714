"""The small recipe: a network for a made-up stream whose clicks drift, and the rest of that stream for a replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.reloop2.drifting_clicks import DriftConfig, make_stream

__all__ = ["RECIPES", "write_data"]

RECIPES: dict[str, DriftConfig] = {"drift": DriftConfig()}
"""Ready recipes by name."""


def write_data(world: DriftConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Write the training rows, and the rest as the two streams of a replay; return the options to train with."""
    table = make_stream(world, seed)
    table = table.append_column("stream_id", pa.array(["impressions"] * table.num_rows))
    table = table.append_column("sequence", table.column("impression_id"))
    training, rest = table.slice(0, world.training_rows), table.slice(world.training_rows)
    pq.write_table(training, folder / "training.parquet")
    pq.write_table(rest.drop_columns(["label_time", "click"]), folder / "impressions.parquet")
    labels = rest.select(["stream_id", "impression_id", "label_time", "click"]).sort_by("label_time")
    labels = labels.rename_columns(["stream_id", "impression_id", "event_time", "label"])
    labels = labels.set_column(3, "label", labels.column("label").cast(pa.float32()))
    labels = labels.append_column("sequence", pa.array(range(labels.num_rows), pa.int64()))
    pq.write_table(labels, folder / "labels.parquet")
    return {"data": str(folder / "training.parquet"), "categorical": ["user_id", "user_group", "item_id", "cate_id"]}
