"""Prompts that stand, ``tell``: who is to be told when a stream comes into a state. A row each time that a segment begins.

Looks at the rows of segments alone, so that it follows whatever settles states. A segment that a prompt has revised tells
nobody: whoever prompted knows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from operators.base import Emitted, Output
from operators.memprompttss.schemas import ALERTS
from operators.pending import split_rows
from operators.state import Rows, State
from operators.streams import NEVER_US

__all__ = ["Tells"]

_NAME = "tells"

Item = dict[str, Any]


class Tells:
    """Who waits for which states, per stream; ``limit`` of them each."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._streams: dict[str, list[Item]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._streams.values()))

    def add(self, stream_id: str, prompt_id: str, state: int, granularity: int, debounce_s: float) -> bool:
        """Tell from now on, in the place of a prompt with the same id; False if ``limit`` of the stream are there already."""
        kept = [one for one in self._streams.get(stream_id, []) if one["prompt_id"] != prompt_id]
        if len(kept) >= self.limit:
            return False
        item = {"prompt_id": prompt_id, "state": state, "granularity": granularity, "debounce_us": round(debounce_s * 1e6)}
        self._streams[stream_id] = [*kept, {**item, "last_us": NEVER_US}]
        return True

    def withdraw(self, stream_id: str, prompt_id: str) -> bool:
        """Tell no longer; return whether there was such a prompt."""
        before = self._streams.get(stream_id, [])
        kept = [one for one in before if one["prompt_id"] != prompt_id]
        if kept:
            self._streams[stream_id] = kept
        else:
            self._streams.pop(stream_id, None)
        return len(kept) < len(before)

    def close(self, stream_id: str) -> None:
        """Forget a stream."""
        self._streams.pop(stream_id, None)

    def joined(self, emitted: Sequence[Emitted]) -> list[Emitted]:
        """Return what the operator gives out with the rows of those that are to be told."""
        out = list(emitted)
        for one in emitted if self._streams else ():
            if isinstance(one, Output) and one.name == "segments" and (rows := self._rows(one.batch)):
                arrays = [pa.array([row.get(field.name) for row in rows], _plain(field.type)) for field in ALERTS]
                out.append(
                    Output(
                        "alerts",
                        pa.RecordBatch.from_arrays(
                            [array.cast(field.type) for array, field in zip(arrays, ALERTS, strict=True)], schema=ALERTS
                        ),
                    )
                )
        return out

    def _rows(self, segments: pa.RecordBatch) -> list[Item]:
        wanted = pa.array(list(self._streams), pa.string())
        here = segments.filter(pc.is_in(segments.column("stream_id"), wanted))
        times = {name: here.column(name).cast(pa.int64()).to_pylist() for name in ("event_time", "end_time")}
        rows: list[Item] = []
        for number, row in enumerate(here.to_pylist() if here.num_rows else ()):
            begins_us, ends_us = times["event_time"][number], times["end_time"][number]
            for one in self._streams[row["stream_id"]]:
                if (one["state"], one["granularity"]) != (row["state"], row["granularity"]) or not row["n_samples"]:
                    continue
                begins = not row["final"] and row["revision"] == 0
                if begins and begins_us - one["last_us"] > one["debounce_us"]:
                    keys = ("stream_id", "sequence", "granularity", "state", "segment_id", "mean_confidence", "status", "error")
                    rows.append({name: row[name] for name in keys} | {"event_time": begins_us, "known_at": ends_us})
                    rows[-1]["prompt_id"] = one["prompt_id"]
                one["last_us"] = max(one["last_us"], ends_us)
        return rows

    # Snapshots

    def export(self, state: State) -> None:
        """Add those of the streams of ``state`` to it."""
        texts = [json.dumps(self._streams[name]).encode() if name in self._streams else b"" for name in state.streams]
        data_R = torch.from_numpy(np.frombuffer(bytearray().join(texts), np.uint8).copy())
        state.rows[_NAME] = Rows.full(torch.tensor([len(text) for text in texts], dtype=torch.int64), data_R)

    def load(self, state: State) -> None:
        """Replace all by those of a full ``state``; one that an earlier version wrote has none."""
        self._streams = {}
        if state.streams and _NAME in state.rows:
            for name, text in zip(state.streams, split_rows(state.rows[_NAME]), strict=True):
                if len(text):
                    self._streams[name] = json.loads(text.tobytes())


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_dictionary(kind) else kind
