"""The workload of the tests of alignment: an operator whose output depends on the order of all rows, and its pipelines."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import torch

from connectors.records import KEY_FIELDS, output_schema
from operators.base import Context, Operator
from operators.state import State
from pipelines.runtime import aligner
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

DIGEST_SCHEMA = output_schema("digest", 1, [pa.field("digest", pa.int64())])
MODULUS = (1 << 61) - 1
START = 10_000
STREAMS = 5


def enter(digest: int, control: bool, stream: str, sequence: int) -> int:
    """The digest after one more row."""
    return (digest * 31 + 2 * sequence + control + 7 * sum(stream.encode())) % MODULUS


class Ledger(Operator):
    """Enters data and control rows into a digest, one over all streams; each data row is given the digest up to it."""

    Options = RunningMeanOptions
    input_schema = RunningMean.input_schema
    control_schema = RunningMean.input_schema
    output_schema = DIGEST_SCHEMA
    statuses: ClassVar[Mapping[str, str]] = {"ok": "the digest up to the row"}

    def __init__(self, options: RunningMeanOptions, context: Context) -> None:
        super().__init__(options, context)
        self.digests: dict[str, int] = {}

    def account(self, stream: str) -> str:
        """Return whose digest a row of a stream is entered into."""
        return "all"

    def _enter(self, batch: pa.RecordBatch, control: bool) -> list[int]:
        digests = []
        rows = zip(batch.column("stream_id").to_pylist(), batch.column("sequence").to_pylist(), strict=True)
        for stream, sequence in rows:
            account = self.account(stream)
            self.digests[account] = enter(self.digests.get(account, 0), control, stream, sequence)
            digests.append(self.digests[account])
        return digests

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Return a row per row."""
        self.options.play()
        digests = pa.array(self._enter(batch, False), pa.int64())
        status = pa.array(["ok"] * batch.num_rows).dictionary_encode().cast(DIGEST_SCHEMA.field("status").type)
        columns = [*batch.columns[: len(KEY_FIELDS)], digests, status, pa.nulls(batch.num_rows, pa.string())]
        return [pa.RecordBatch.from_arrays(columns, schema=DIGEST_SCHEMA)]

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Return nothing."""
        self._enter(batch, True)
        return []

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return all digests."""
        return State(streams=list(self.digests), dense={"digest": torch.tensor(list(self.digests.values()), dtype=torch.int64)})

    def restore(self, state: State) -> None:
        """Take them up."""
        self.digests = dict(zip(state.streams, state.dense["digest"].tolist(), strict=True)) if state.streams else {}

    def close_stream(self, stream_id: str) -> None:
        """Keep its digest: what comes afterwards is compared too."""


class Echo(Ledger):
    """A ledger that reads a ledger."""

    input_schema = DIGEST_SCHEMA


class TightLedger(Ledger):
    """Lets inputs run ahead by a few rows only, in whatever process it is made."""

    def __init__(self, options: RunningMeanOptions, context: Context) -> None:
        super().__init__(options, context)
        aligner.AHEAD_ROWS = 20


class TightEcho(Echo, TightLedger):
    """Does the same behind another ledger."""


class StreamLedger(Ledger):
    """A digest per stream, so that it can be cut into shards."""

    def account(self, stream: str) -> str:
        """Return the stream."""
        return stream


def write_inputs(folder: Path, rows: int) -> dict[str, list[int]]:
    """Write five streams of impressions and, each a while later, labels of most of them; one file per stream, in order of time.

    Return ``impressions/s0`` and so on → event times in tenths of a second; a row's sequence is its number within the file.
    """
    draw = random.Random(3)
    times: dict[str, list[int]] = {f"{kind}/s{n}": [] for kind in ("impressions", "labels") for n in range(STREAMS)}
    for n in range(rows):
        stream, time = draw.randrange(STREAMS), START + n // 3
        times[f"impressions/s{stream}"].append(time)
        if draw.random() < 0.8:
            times[f"labels/s{stream}"].append(time + int(draw.expovariate(0.05)))
    for name, values in times.items():
        values.sort()
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"t": 100 * time, "v": 0.5}) + "\n" for time in values))
    return times


def expected_digests(times: dict[str, list[int]], span: int, *, per_stream: bool = False) -> list[tuple[str, int, int]]:
    """What the ledger must come to: all rows sorted at once. ``span`` is in tenths of a second."""
    rows = []
    for name, values in times.items():
        kind, stream = name.split("/")
        rows += [(time // span, kind == "labels", time, stream, sequence) for sequence, time in enumerate(values)]
    digests: dict[str, int] = {}
    result = []
    for _, control, _, stream, sequence in sorted(rows):
        account = stream if per_stream else "all"
        digests[account] = enter(digests.get(account, 0), control, stream, sequence)
        if not control:
            result.append((stream, sequence, digests[account]))
    return sorted(result)


def aligned_pipeline(folder: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """A pipeline over both kinds of files; ``changes`` have dotted names, ``__`` for the dot."""
    source = {"type": "jsonl", "event_time": "t", "event_time_unit": "ms", "columns": {"v": "double"}}
    values: dict[str, Any] = {
        "name": "ledger",
        "state": str(run / "state"),
        "epoch_s": 0.05,
        "sources": {
            "impressions": {**source, "path": str(folder / "impressions")},
            "labels": {**source, "path": str(folder / "labels")},
        },
        "operators": {
            "ledger": {
                "type": "aligned_workload:Ledger",
                "input": "impressions",
                "control": "labels",
                "align_s": 1,
                "max_batch": 64,
                "max_wait_ms": 0,
                "slow_until": str(run / "hurry"),
            }
        },
        "sinks": {"rows": {"type": "jsonl", "input": "ledger", "path": str(run / "rows")}},
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        place = values
        for key in path:
            place = place[key]
        place[last] = value
    return values


def committed_digests(run: Path) -> list[tuple[str, int, int]]:
    """Stream, sequence and digest of the committed rows, sorted."""
    from connectors.sinks.read import read_committed

    table = read_committed(run / "rows")
    return sorted(zip(*(table.column(name).to_pylist() for name in ("stream_id", "sequence", "digest")), strict=True))
