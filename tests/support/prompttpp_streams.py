"""Networks on disk, operators and event rows for tests of the operator ``prompttpp``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.prompttpp import checkpoint
from models.prompttpp.config import TppConfig
from models.prompttpp.model import build_model
from operators.base import Context
from operators.prompttpp import PromptTPPOperator, PromptTPPOptions
from operators.prompttpp.schemas import event_schema

SIZES: dict[str, Any] = {
    "types": 3, "hidden": 8, "time_dim": 4, "state": 4, "pool": 5, "top_k": 2, "prompt_length": 2, "time_scale": 60.0,
    "type_names": ("buy", "sell", "other"),
}  # fmt: skip


def network(folder: Path, backbone: str = "s2p2", **changes: Any) -> str:
    """Write a small random network and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{backbone}.safetensors"
    checkpoint.save(build_model(TppConfig(backbone=backbone, **{**SIZES, **changes}), seed=1), path)  # type: ignore[arg-type]
    return str(path)


def operator(path: str, *, name: str = "risk", **options: Any) -> PromptTPPOperator:
    """Build an operator of small size."""
    settings = {"max_streams": 8, "window": 6, "learn": "off", "grid": 17, "points": 5, **options}
    if settings["learn"] != "off":
        settings = {"learn_batch": 4, "learn_history": 3, **settings}
    return PromptTPPOperator(PromptTPPOptions(checkpoint=path, **settings), Context(name=name))


def rows(events: Sequence[tuple[str, int, float, Any]], *, types: str = "id") -> pa.RecordBatch:
    """Make event rows of (key, sequence, seconds, type)."""
    schema = event_schema(types)
    names, sequences, seconds, kinds = zip(*events, strict=True) if events else ((), (), (), ())
    times = pa.array([round(second * 1e6) for second in seconds], pa.int64()).cast(schema.field("event_time").type)
    columns = [pa.array(names, pa.string()), pa.array(sequences, pa.int64()), times, pa.array(kinds, schema.field("type").type)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def stream(keys: int, events: int, seed: int = 0, types: int = 3) -> pa.RecordBatch:
    """Draw a stream of many keys in time order."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(keys):
        times = rng.exponential(40.0 + 20 * number, events).cumsum()
        made += [(f"key{number}", place, 1e6 + time, int(rng.integers(types))) for place, time in enumerate(times)]
    return rows(sorted(made, key=lambda event: event[2]))


def table(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """Join outputs."""
    return pa.Table.from_batches(batches)


def single_threaded() -> None:
    """Keep sums in one order on any machine."""
    torch.set_num_threads(1)
