"""The workload of the tests of asking: an operator that answers how many rows of a stream it has seen, and a run of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import torch

from connectors import records
from connectors.options import option
from connectors.sources.columns import parse_type
from operators.base import Context, Emitted, Operator, Output
from operators.state import State
from pipelines.api import Pipeline, Result
from pipelines.runners import Progress

ROWS = 20
PATIENCE_S = 240.0
COLUMNS = {
    "question_id": "string",
    "question": "string",
    "at": "timestamp[us, UTC]",
    "at_offset_s": "double",
    "digits": "int32",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How fast it is."""

    slow_s: float = option(0.0, "Seconds that it takes to answer.", unit="s", ge=0)
    slow_until: str = option("", "A file; once it is there, nothing is slow anymore.")


ANSWER = records.output_schema(
    "answer",
    1,
    [
        pa.field("question_id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("at", records.TIME_TYPE),
        pa.field("latest", pa.list_(pa.float64())),
    ],
)


class Counting(Operator):
    """Takes values; gives one row per question and none otherwise."""

    Options = Options
    input_schema = records.key_schema("value", 1, [pa.field("v", pa.float64())])
    control_schema = records.key_schema(
        "question",
        1,
        [
            pa.field("question_id", pa.string()),
            pa.field("question", pa.string()),
            pa.field("at", records.TIME_TYPE),
            pa.field("digits", pa.int32()),
        ],
    )
    statuses: ClassVar[Mapping[str, str]] = {
        "ok": "the question was answered",
        "unknown_stream": "nothing of this stream has come",
        "bad_question": "the question cannot be read",
    }
    output_schema = ANSWER

    def __init__(self, options: Any, context: Context) -> None:
        super().__init__(options, context)
        self._sums: dict[str, tuple[int, float]] = {}

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        for stream, value in zip(batch.column("stream_id").to_pylist(), batch.column("v").to_pylist(), strict=True):
            count, total = self._sums.get(stream, (0, 0.0))
            self._sums[stream] = (count + 1, total + value)
        return []

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        if self.options.slow_s and not Path(self.options.slow_until).exists():
            time.sleep(self.options.slow_s)
        return [pa.RecordBatch.from_pylist([self._answer(row) for row in batch.to_pylist()], schema=ANSWER)]

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        count, total = self._sums.get(row["stream_id"], (0, 0.0))
        answer = {name: row[name] for name in ("stream_id", "sequence", "event_time", "question_id", "question", "at")}
        if row["error"] is not None:
            return {**answer, "status": "bad_question", "error": row["error"]}
        if not count:
            return {**answer, "status": "unknown_stream", "error": f"no rows of {row['stream_id']!r} have come"}
        mean = round(total / count, 3 if row["digits"] is None else row["digits"])
        return {**answer, "answer": f"{count} rows, mean {mean}", "rows": count, "latest": [mean], "status": "ok"}

    def snapshot(self, *, incremental: bool = False) -> State:
        sums = torch.tensor(list(self._sums.values()), dtype=torch.float64).reshape(-1, 2)
        return State(streams=list(self._sums), dense={"sums": sums})

    def restore(self, state: State) -> None:
        pairs = state.dense["sums"].tolist() if state.streams else []
        self._sums = {stream: (int(count), total) for stream, (count, total) in zip(state.streams, pairs, strict=True)}

    def close_stream(self, stream_id: str) -> None:
        self._sums.pop(stream_id, None)


class Telling(Counting):
    """Gives its answers by one of two named outputs."""

    output_schema = None
    outputs: Mapping[str, pa.Schema] = {"seen": Counting.input_schema, "answers": ANSWER}

    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        super().process(batch)
        return [Output("seen", batch.select(Counting.input_schema.names))]

    def control(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        return [Output("answers", rows) for rows in super().control(batch)]


PROMPT = {
    "prompt_id": "string",
    "kind": "string",
    "at": "timestamp[us, UTC]",
    "at_end": "timestamp[us, UTC]",
    "at_offset_s": "double",
    "state": "int32",
    "aspect": "string",
    "boundary": "bool",
    "granularity": "int8",
    "target": "string",
    "pinned": "bool",
    "author": "string",
}


class Told(Counting):
    """Takes prompts; says by one of two outputs what it was told, and refuses states above 9."""

    output_schema = None
    control_schema = records.key_schema(
        "prompt", 1, [pa.field(name, parse_type(kind)) for name, kind in PROMPT.items() if name != "at_offset_s"]
    )
    outputs: Mapping[str, pa.Schema] = {
        "seen": Counting.input_schema,
        "bank": records.output_schema(
            "bank", 1, [pa.field("prompt_id", pa.string()), pa.field("op", pa.string()), pa.field("said", pa.string())]
        ),
    }
    statuses: ClassVar[Mapping[str, str]] = {"ok": "taken", "rejected_prompt": "cannot be used"}

    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        super().process(batch)
        return [Output("seen", batch.select(Counting.input_schema.names))]

    def control(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        rows = []
        for row in batch.to_pylist():
            keys = {name: row[name] for name in ("stream_id", "sequence", "event_time", "prompt_id")}
            said = {name: row[name] for name in PROMPT if name != "prompt_id" and row.get(name) is not None}
            bad = (row["state"] or 0) > 9
            told = {"status": "rejected_prompt", "error": "state is above 9"} if bad else {"status": "ok"}
            op = "reject" if bad else "write" if row["kind"] in ("label", "boundary") else row["kind"]
            rows.append({**keys, "op": op, "said": json.dumps(said, default=str), **told})
        return [Output("bank", pa.RecordBatch.from_pylist(rows, schema=self.outputs["bank"]))]


def telling(folder: Path) -> dict[str, Any]:
    """A pipeline over values in ``folder`` that waits for prompts when it has read them all."""
    values = counting(folder, type="asking_workload:Told", control="prompts")
    del values["sources"]["questions"]
    values["sources"]["prompts"] = {"type": "requests", "path": str(folder / "prompts"), "stay": True, "columns": PROMPT}
    values["sinks"] = {
        "seen": {"type": "jsonl", "input": "count.seen", "path": str(folder / "seen")},
        "bank": {"type": "parquet", "input": "count.bank", "path": str(folder / "bank")},
    }
    return values


def write_values(folder: Path, streams: str = "ab") -> None:
    """Write a file of 20 values per stream: recordings of 2019."""
    folder.mkdir(parents=True, exist_ok=True)
    for stream in streams:
        lines = [json.dumps({"v": n / 4, "event_time": f"2019-01-01T00:00:{n:02d}Z"}) for n in range(ROWS)]
        (folder / f"{stream}.jsonl").write_text("\n".join(lines) + "\n")


def counting(folder: Path, **operator: Any) -> dict[str, Any]:
    """A pipeline over values in ``folder`` that waits for questions when it has read them all."""
    write_values(folder / "values")
    return {
        "name": "counting",
        "state": str(folder / "state"),
        "epoch_s": 0.05,
        "sources": {
            "values": {"type": "jsonl", "path": str(folder / "values")},
            "questions": {"type": "requests", "path": str(folder / "questions"), "stay": True, "columns": COLUMNS},
        },
        "operators": {"count": {"type": "asking_workload:Counting", "input": "values", "control": "questions", **operator}},
        "sinks": {"answers": {"type": "jsonl", "input": "count", "path": str(folder / "answers")}},
    }


class Run:
    """A run in a thread of this process."""

    def __init__(self, values: dict[str, Any], *, runner: str = "local", resume: bool = False, rows: int = 2 * ROWS) -> None:
        self.result: Result | None = None
        self._rows = 0 if resume else rows
        self._source = next(iter(values["sources"]))
        self._commits = values["epoch_s"] < 60
        self._stop = threading.Event()
        self._read = threading.Event()
        self._failure: BaseException | None = None
        pipeline = Pipeline.from_dict(values)
        self._thread = threading.Thread(target=self._run, args=(pipeline, runner, resume), daemon=True)

    def _run(self, pipeline: Pipeline, runner: str, resume: bool) -> None:
        try:
            self.result = pipeline.run(
                runner=runner,
                resume=resume,
                stop=self._stop,
                on_progress=self._note,
            )
        except BaseException as error:
            self._failure = error
        finally:
            self._read.set()

    def _note(self, progress: Progress) -> None:
        # What has been read may be read again after a crash; what is committed has been processed.
        rows = progress.rows_committed.get(self._source, 0) if self._commits else progress.rows_read
        if rows >= self._rows:
            self._read.set()

    def start(self) -> None:
        """Start, and wait until all rows have been processed."""
        self._thread.start()
        assert self._read.wait(PATIENCE_S), "no rows have been read"
        if self._failure is not None:
            raise self._failure

    def stop(self) -> Result:
        """Stop gracefully."""
        self._stop.set()
        return self.join()

    def join(self) -> Result:
        """Wait for the end."""
        self._thread.join(PATIENCE_S)
        if self._failure is not None:
            raise self._failure
        assert self.result is not None, "the run does not end"
        return self.result


@contextlib.contextmanager
def running(values: dict[str, Any], **options: Any) -> Iterator[Run]:
    """Run while the block does."""
    run = Run(values, **options)
    run.start()
    try:
        yield run
    finally:
        run.stop()
