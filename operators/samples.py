"""Rows of ``sample.v1`` that count, found by the column. For all operators of sensor data."""

# R rows of a batch, C channels

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors import records
from connectors.records import encode_streams
from operators.event_time import event_times
from operators.streams import NEVER_US, Stream, StreamTable

__all__ = ["Samples", "read_samples"]

S = TypeVar("S", bound=Stream)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class Samples(NamedTuple):
    """The rows of a batch."""

    sequence_R: Ints
    time_us_R: Ints
    values_RC: Floats
    accepted_R: Ints
    """Rows that count, in order."""
    late_R: Bools
    """Which of all rows are out of order, but not by too much."""


def read_samples(
    batch: pa.RecordBatch,
    channels: int,
    streams: StreamTable[S],
    refuse: Callable[[int, str, str], None],
    lateness_us: int = 0,
) -> Samples:
    """Return the rows that count; ``refuse(row, status, error)`` is told of the others, in the one order of admission."""
    names, codes_R = encode_streams(batch.column("stream_id"))
    sequence_R = batch.column("sequence").to_numpy(zero_copy_only=False)
    time_us_R = event_times(batch)
    values_RC, wrong_R = records.sample_values(batch, channels)
    errors: list[str | None] | None = None
    bad_R = wrong_R.copy()
    if "error" in batch.schema.names and batch.column("error").null_count < batch.num_rows:
        errors = batch.column("error").to_pylist()
        bad_R |= batch.column("error").is_valid().to_numpy(zero_copy_only=False)
    late_R = np.zeros(batch.num_rows, np.bool_)
    if _in_order(names, codes_R, sequence_R, time_us_R, bad_R, streams):
        accepted_R = np.arange(batch.num_rows)
    else:
        given = (batch, channels, names, codes_R, sequence_R, time_us_R, wrong_R, errors, streams, refuse)
        accepted_R = _one_by_one(*given, lateness_us=lateness_us, late_R=late_R)
    full_R = streams.no_room_rows(batch.column("stream_id"), np.isin(np.arange(batch.num_rows), accepted_R))
    for row in accepted_R[full_R[accepted_R]].tolist():
        refuse(row, *streams.no_slot)
    return Samples(sequence_R, time_us_R, values_RC, accepted_R[~full_R[accepted_R]], late_R)


def _in_order(
    names: list[str], codes_R: Ints, sequence_R: Ints, time_us_R: Ints, bad_R: Bools, streams: StreamTable[S]
) -> bool:
    """Tell whether nothing has to be refused: the common case, settled by the column."""
    if bad_R.any():
        return False
    order_R = np.argsort(codes_R, kind="stable")
    codes = codes_R[order_R]
    starts = np.concatenate([[True], codes[1:] != codes[:-1]])
    known = [streams.get(name) for name in names]
    for values_R, last in (
        (sequence_R, [NEVER_US if s is None else s.last_sequence for s in known]),
        (time_us_R, [NEVER_US if s is None else s.last_time_us for s in known]),
    ):
        values = values_R[order_R]
        before = np.empty_like(values)
        before[1:] = values[:-1]
        before[starts] = np.array(last, np.int64)[codes[starts]]
        if not (values > before).all():
            return False
    return True


def _one_by_one(
    batch: pa.RecordBatch,
    channels: int,
    names: list[str],
    codes_R: Ints,
    sequence_R: Ints,
    time_us_R: Ints,
    wrong_R: Bools,
    errors: list[str | None] | None,
    streams: StreamTable[S],
    refuse: Callable[[int, str, str], None],
    *,
    lateness_us: int,
    late_R: Bools,
) -> Ints:
    """Decide row by row, for batches in which some row is refused or late; note in ``late_R`` which are late."""
    lasts: dict[int, Stream] = {}
    accepted = []
    lengths = None
    for row, (code, sequence, time_us) in enumerate(
        zip(codes_R.tolist(), sequence_R.tolist(), time_us_R.tolist(), strict=True)
    ):
        if errors is not None and (error := errors[row]) is not None:
            refuse(row, "rejected_corrupt", error)
            continue
        last = lasts.get(code)
        if last is None:
            known = streams.get(names[code])
            last = lasts[code] = Stream(-1)
            if known is not None:
                last.last_sequence, last.last_time_us = known.last_sequence, known.last_time_us
        refusal = last.refusal(sequence, time_us)
        is_late = lateness_us > 0 and last.last_time_us - lateness_us <= time_us <= last.last_time_us != NEVER_US
        if refusal is not None and not is_late:
            refuse(row, *refusal)
            continue
        if wrong_R[row]:
            refused = streams.no_room(names[code])
            if refused is not None:
                refuse(row, *refused)
                continue
            lengths = lengths or batch.column("values").to_pylist()
            given = lengths[row]
            found = "no values" if given is None else f"{len(given)} values"
            refuse(row, "rejected_corrupt", f"the row has {found}; {channels} channels are needed, in their order")
            continue
        if is_late:
            late_R[row] = True
            last.last_sequence = max(last.last_sequence, sequence)
        else:
            last.last_sequence, last.last_time_us = sequence, time_us
        accepted.append(row)
    return np.array(accepted, np.int64)
