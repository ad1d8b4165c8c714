"""Pictures of streams of which somebody says in which state they are: signals, states as colored bands, prompts, revisions.

Takes committed rows of several sinks of one folder and knows them by their columns: segments (``segment_id``, ``state``) or
states of samples (``state``), samples (``values``), prompts (``kind``, ``prompt_id``). Only one of the first two is needed.
"""

# N samples, C channels, P pixels

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.canvas import Canvas, Color, color_of
from connectors.records import channels_of

__all__ = ["Band", "StreamPicture", "Track", "draw", "has_states", "needed", "pictures"]

WIDTH = 1100
_LEFT = 130
_LANE, _BAND, _GAP, _TOP, _AXIS = 44, 20, 6, 22, 24
_MOST_CHANNELS = 16
_TICKS = 5
_INK: Color = (59, 110, 168)
_MARK: Color = (200, 40, 40)

_COLUMNS = frozenset(
    {
        *("stream_id", "event_time", "end_time", "at", "state", "granularity", "segment_id", "n_samples", "final", "revision"),
        *("values", "kind", "prompt_id", "at_offset_s", "aspect", "boundary"),
    }
)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Band:
    """A state that lasts."""

    start_us: int
    end_us: int
    state: int


@dataclass(slots=True)
class Track:
    """The states of one level of detail: as they stand, and as they were first said where something was revised."""

    name: str
    after: list[Band]
    before: list[Band] = field(default_factory=list)


@dataclass(slots=True)
class StreamPicture:
    """What is known of one stream."""

    stream: str
    tracks: list[Track] = field(default_factory=list)
    times_N: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    values_NC: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    channels: list[str] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    """Times in microseconds and what was said of them."""

    @property
    def begin_us(self) -> int:
        """Of the first sample or state."""
        starts = [band.start_us for track in self.tracks for band in track.after]
        return min([*starts, *self.times_N[:1].tolist()], default=0)

    @property
    def end_us(self) -> int:
        """Of the last sample or state."""
        ends = [band.end_us for track in self.tracks for band in track.after]
        return max([*ends, *self.times_N[-1:].tolist()], default=0)

    @property
    def height(self) -> int:
        """Of the picture, in pixels."""
        bands = sum(2 if track.before else 1 for track in self.tracks)
        return _TOP + _LANE * min(len(self.channels), _MOST_CHANNELS) + (_BAND + _GAP) * bands + _AXIS + 10


def has_states(table: pa.Table) -> bool:
    """Tell whether rows say in which state streams are."""
    names = set(table.column_names)
    return {"stream_id", "event_time", "state"} <= names and pa.types.is_integer(table.schema.field("state").type)


def needed(table: pa.Table) -> pa.Table | None:
    """Return the columns of a table that a picture may need, None where none of it is of use."""
    names = set(table.column_names)
    if not {"stream_id", "event_time"} <= names or names.isdisjoint(("state", "values", "kind")):
        return None
    return table.select([name for name in table.column_names if name in _COLUMNS])


def pictures(tables: Iterable[pa.Table]) -> list[StreamPicture]:
    """Put together what the tables say of each stream; sorted by stream. Empty where none holds states."""
    tables = list(tables)
    segments = [table for table in tables if has_states(table) and "segment_id" in table.column_names]
    chosen = segments or [table for table in tables if has_states(table) and "kind" not in table.column_names]
    found: dict[str, StreamPicture] = {}
    for table in chosen:
        for stream, part in _by_stream(table):
            picture = found.setdefault(stream, StreamPicture(stream))
            picture.tracks += _tracks(part, of_segments=bool(segments))
    for table in tables if found else ():
        for stream, part in _by_stream(table) if "values" in table.column_names else ():
            if stream in found:
                _add_samples(found[stream], part)
    for table in tables if found else ():
        for stream, part in _by_stream(table) if {"kind", "prompt_id"} <= set(table.column_names) else ():
            if stream in found:
                found[stream].marks += _prompts(part, found[stream].begin_us, found[stream].end_us)
    return [found[stream] for stream in sorted(found)]


def draw(picture: StreamPicture, canvas: Canvas) -> None:
    """Draw one stream: its signals, below them its states, over all of it the prompts."""
    ends = [band for track in picture.tracks for band in (*track.after, *track.before)]
    times = [*picture.times_N[[0, -1]].tolist()] if len(picture.times_N) else []
    times += [time for band in ends for time in (band.start_us, band.end_us)]
    low, high = min(times, default=0), max(times, default=1)
    span = max(1, high - low)

    def across(time_us: float) -> float:
        return _LEFT + (time_us - low) / span * (WIDTH - _LEFT - 10)

    y: float = _TOP
    canvas.text(4, 15, picture.stream)
    for place, name in enumerate(picture.channels[:_MOST_CHANNELS]):
        canvas.text(4, y + _LANE / 2, name[:18])
        canvas.line(_curve(picture.times_N, picture.values_NC[:, place], across, y), _INK)
        y += _LANE
    for track in picture.tracks:
        for word, bands in (("before", track.before), ("after" if track.before else "", track.after)):
            if not bands:
                continue
            canvas.text(4, y + 14, f"{track.name} {word}".strip())
            for band in bands:
                left, right = across(band.start_us), across(band.end_us)
                told = f"state {band.state}, {_clock(band.start_us)} to {_clock(band.end_us)}"
                canvas.rect(left, y, max(1.0, right - left), _BAND, color_of(band.state), told)
                if right - left > 8 * len(str(band.state)) + 4:
                    canvas.text(left + 3, y + 14, str(band.state))
            y += _BAND + _GAP
    for time_us, text in picture.marks:
        if low <= time_us <= high:
            canvas.rect(across(time_us), _TOP - 4, 1.5, y - _TOP + 4, _MARK, f"{text}, {_clock(time_us)}")
            canvas.text(min(across(time_us) + 3, WIDTH - 90), _TOP - 6, text, _MARK)
    one_day = _clock(low)[:10] == _clock(high)[:10]
    canvas.text(4, y + 17, _clock(low)[:10] if one_day else "")
    for tick in range(_TICKS):
        time_us = low + span * tick // (_TICKS - 1)
        canvas.rect(across(time_us), y, 1, 4, (120, 120, 120))
        canvas.text(min(across(time_us), WIDTH - 100), y + 17, _clock(time_us)[11:] if one_day else _clock(time_us)[5:16])


def _by_stream(table: pa.Table) -> Iterable[tuple[str, pa.Table]]:
    for stream in table.column("stream_id").unique().to_pylist():
        yield stream, table.filter(pc.equal(table.column("stream_id"), stream))


def _tracks(table: pa.Table, *, of_segments: bool) -> list[Track]:
    """Return the tracks of one stream, by granularity."""
    levels_N = np.maximum(_numbers(table, "granularity"), 0)  # null: the first one
    levels, tracks = np.unique(levels_N).tolist(), []
    for level in levels:
        own = table.filter(pa.array(levels_N == level))
        revision = _numbers(own, "revision")
        first = own.filter(pa.array(revision == 0))
        bands = _segment_bands if of_segments else _sample_bands
        after, before = bands(own), bands(first)
        name = f"level {level}" if len(levels) > 1 else "states"
        tracks.append(Track(name, after, before if bool((revision > 0).any()) and before != after else []))
    return tracks


def _segment_bands(table: pa.Table) -> list[Band]:
    """Return the segments that stand: of each the last row counts, and one without samples was withdrawn."""
    last: dict[int, Mapping[str, Any]] = {}
    starts, ends = _times(table, "event_time"), _times(table, "end_time")
    counts = _numbers(table, "n_samples") if "n_samples" in table.column_names else np.ones(table.num_rows, np.int64)
    states = _numbers(table, "state")
    for row, id in enumerate(table.column("segment_id").to_pylist()):
        last[id] = {"start": int(starts[row]), "end": int(ends[row]), "state": int(states[row]), "n": int(counts[row])}
    bands = [Band(row["start"], row["end"], row["state"]) for row in last.values() if row["n"] > 0]
    return sorted(bands, key=lambda band: band.start_us)


def _sample_bands(table: pa.Table) -> list[Band]:
    """Return runs of equal states of samples: of each sample the last final row counts, or the last one where none is."""
    if not table.num_rows:
        return []
    times, states = _times(table, "event_time"), _numbers(table, "state")
    final = _numbers(table, "final") if "final" in table.column_names else np.ones(len(times), np.int64)
    order = np.lexsort((np.arange(len(times)), final, times))
    times, states = times[order], states[order]
    kept = np.append(times[1:] != times[:-1], True)
    times, states = times[kept], states[kept]
    starts = np.flatnonzero(np.append(True, states[1:] != states[:-1]))
    stops = np.append(starts[1:], len(times)) - 1
    return [
        Band(int(times[start]), int(times[min(stop + 1, len(times) - 1)]), int(states[start]))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]


def _add_samples(picture: StreamPicture, table: pa.Table) -> None:
    """Take the signals, in the order of time."""
    lists = table.column("values").combine_chunks()
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    width = int(lengths.max(initial=0))
    rows = np.flatnonzero(lengths == width)
    if not width or not len(rows):
        return
    flat = lists.take(pa.array(rows)).flatten().to_numpy(zero_copy_only=False)
    times = _times(table, "event_time")[rows]
    order = np.argsort(times, kind="stable")
    picture.times_N, picture.values_NC = times[order], flat.reshape(-1, width)[order]
    names = channels_of(table.schema)
    picture.channels = names if names is not None and len(names) == width else [f"channel {place}" for place in range(width)]


def _prompts(table: pa.Table, begin_us: int, end_us: int) -> list[tuple[int, str]]:
    """Return what was said and of which time: ``at``, or ``at_offset_s`` after the first or before the newest row then.

    Of a stream that is live the newest row is about as old as what is said of it; of one that had ended it is the last one.
    """
    never = np.iinfo(np.int64).min
    said = _times(table, "event_time")
    about = _times(table, "at") if "at" in table.column_names else np.full(len(said), never)
    marks = []
    for row, values in enumerate(table.drop_columns(["event_time"]).to_pylist()):
        offset_s = values.get("at_offset_s") or 0.0
        relative_us = round(offset_s * 1e6) + (begin_us if offset_s > 0 else min(int(said[row]), end_us))
        text = str(values["kind"])
        if values.get("state") is not None:
            text = f"{'not ' if values.get('aspect') == 'incorrect' else ''}{values['state']}"
        elif values.get("boundary") is False:
            text = "no boundary"
        marks.append((int(about[row]) if about[row] != never else relative_us, text))
    return marks


def _curve(times_N: Ints, values_N: npt.NDArray[np.float32], across: Any, top: float) -> npt.NDArray[np.float64]:
    """Return the points of a signal: of each pixel its lowest and its highest value, scaled by 1 and 99 %."""
    finite = values_N[np.isfinite(values_N)]
    if not len(finite):
        return np.empty((0, 2))
    low, high = np.percentile(finite, [1, 99])
    x_N = across(times_N.astype(np.float64))
    heights = (np.clip(values_N, low, high) - low) / (high - low if high > low else 1.0)
    y_N = top + (_LANE - 8) * (1 - heights) + 2
    pixel_N = x_N.astype(np.int64)
    if len(x_N) <= 2 * WIDTH:
        return np.stack([x_N, y_N.astype(np.float64)], axis=1)
    starts = np.flatnonzero(np.append(True, pixel_N[1:] != pixel_N[:-1]))
    lowest, highest = np.fmin.reduceat(y_N, starts), np.fmax.reduceat(y_N, starts)
    points = np.stack([np.repeat(x_N[starts], 2), np.stack([lowest, highest], axis=1).reshape(-1)], axis=1)
    return points.astype(np.float64)


def _times(table: pa.Table, name: str) -> Ints:
    column = table.column(name).combine_chunks().cast(pa.timestamp("us", "UTC")).view(pa.int64())
    times: Ints = column.fill_null(np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    return times


def _numbers(table: pa.Table, name: str) -> Ints:
    if name not in table.column_names:
        return np.zeros(table.num_rows, np.int64)
    numbers: Ints = table.column(name).combine_chunks().cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return numbers


def _clock(time_us: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(time_us))
    return moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
