"""Small networks, streams of samples and prompts for tests of the operator."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from connectors import records
from models.memprompttss.checkpoint import save_network
from models.memprompttss.config import MemPromptTSSConfig
from models.memprompttss.model import MemPromptTSS
from operators.base import Context, Emitted, Output
from operators.memprompttss.config import MemPromptTSSOptions
from operators.memprompttss.operator import MemPromptTSSOperator
from operators.memprompttss.schemas import PROMPT

CHANNELS, CLASSES = 2, 4
STEP_US = 10_000


def network(path: Path, seed: int = 0, **settings: Any) -> str:
    """Write a tiny network with random weights that tell states and prompts apart; return its file."""
    file = path / "tiny.safetensors"
    file.write_bytes(_network(seed, tuple(sorted(settings.items()))))
    return str(file)


@functools.cache
def _network(seed: int, settings: tuple[tuple[str, Any], ...]) -> bytes:
    """Return the file of a network; one that many tests use is made once."""
    sizes: dict[str, Any] = {"channels": CHANNELS, "classes": CLASSES, "width": 16, "encoder_layers": 1, "decoder_blocks": 2}
    sizes |= {"patch": 4, "patch_stride": 2, "window": 16, "context": 12, "stride": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MemPromptTSS(MemPromptTSSConfig(**(sizes | dict(settings)))).eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        # Random networks prefer one state; this one shall have all of them.
        config, head = model.config, model.state_decoder.head
        head.weight.data *= 3
        x_LC = torch.from_numpy(wave(200, channels=config.channels))
        tokens = model.ts_encoder(x_LC.unfold(0, config.window, 4).transpose(1, 2))
        empty, of_W = torch.zeros(1, 0, config.width), torch.zeros(len(tokens), dtype=torch.int64)
        head.bias.data = -(model.state_decoder(tokens, empty, None, of_W) - head.bias).mean((0, 1)).detach()
    with TemporaryDirectory() as folder:
        save_network(model, Path(folder) / "tiny.safetensors")
        return (Path(folder) / "tiny.safetensors").read_bytes()


def operator(checkpoint: str, *, aligned: bool = False, **options: Any) -> MemPromptTSSOperator:
    """Build an operator over a short history."""
    given: dict[str, Any] = {"history": 64, "max_streams": 4, "capacity": 8, "bank_gib": 0.5, "checkpoint": checkpoint}
    return MemPromptTSSOperator(MemPromptTSSOptions(**(given | options)), Context(name="states", aligned=aligned))


def wave(length: int, seed: int = 0, channels: int = CHANNELS) -> np.ndarray:
    """Return samples [L, C] whose looks change every so often."""
    rng = np.random.default_rng(seed)
    rate = np.repeat(rng.uniform(0.1, 1.5, length // 10 + 1), 10)[:length, None] * np.arange(1, channels + 1)
    return (np.sin(rate.cumsum(0)) + 0.1 * rng.normal(size=(length, channels))).astype(np.float32)


def samples(stream: str, x_LC: np.ndarray, first: int = 0, step_us: int = STEP_US) -> pa.RecordBatch:
    """Return a stream's samples as rows."""
    number = np.arange(first, first + len(x_LC))
    values = pa.array([[None if np.isnan(v) else float(v) for v in row] for row in x_LC], pa.list_(pa.float32()))
    columns = [pa.array([stream] * len(x_LC)), pa.array(number), pa.array(number * step_us).cast(records.TIME_TYPE)]
    return pa.RecordBatch.from_arrays([*columns, values, pa.nulls(len(x_LC), pa.string())], schema=records.SAMPLE)


def together(*batches: pa.RecordBatch) -> pa.RecordBatch:
    """Return batches as one, by time."""
    table = pa.Table.from_batches(batches)
    order = pc.sort_indices(table, [("event_time", "ascending"), ("stream_id", "ascending")])
    return table.take(order).combine_chunks().to_batches()[0]


def prompts(*rows: dict[str, Any]) -> pa.RecordBatch:
    """Return control rows; ``at`` and ``said`` are numbers of samples, ``kind`` a label by default."""
    made = []
    for number, row in enumerate(rows):
        given = dict(row)
        one: dict[str, Any] = dict.fromkeys(PROMPT.names)
        said = given.pop("said", given.get("at") or 0)
        one |= {"stream_id": "a", "sequence": number, "event_time": int(said * STEP_US), "kind": "label"}
        for name in ("at", "at_end"):
            if given.get(name) is not None:
                given[name] = int(given[name] * STEP_US)
        made.append(one | given)
    return pa.RecordBatch.from_arrays(
        [pa.array([row[field.name] for row in made], field.type) for field in PROMPT], schema=PROMPT
    )


def tables(emitted: list[Emitted]) -> dict[str, pa.Table]:
    """Return the rows of each output."""
    found: dict[str, list[pa.RecordBatch]] = {}
    for one in emitted:
        assert isinstance(one, Output)
        found.setdefault(one.name, []).append(one.batch)
    return {name: pa.Table.from_batches(batches) for name, batches in found.items()}


def closed(op: MemPromptTSSOperator, *streams: str) -> list[Emitted]:
    """Close streams; return their last rows."""
    for stream in streams:
        op.close_stream(stream)
    return op.flush()


def final_states(table: pa.Table, stream: str = "a", granularity: int = 0) -> dict[int, int]:
    """Return sample → state, the last revision of each."""
    rows = table.select(["stream_id", "sequence", "granularity", "state", "final"]).to_pylist()
    return {
        row["sequence"]: row["state"]
        for row in rows
        if row["final"] and row["stream_id"] == stream and row["granularity"] == granularity
    }


def final_segments(table: pa.Table, stream: str = "a") -> list[tuple[int, int, int]]:
    """Return (first sample, last sample, state) of the segments that count in the end, in order."""
    last = {row["segment_id"]: row for row in table.to_pylist() if row["stream_id"] == stream}
    rows = [row for row in last.values() if row["n_samples"] and row["final"]]
    return sorted((row["sequence"], row["end_sequence"], row["state"]) for row in rows)
