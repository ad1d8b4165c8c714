"""What a report draws of a table: counts, and numbers over event time, as figures that Plotly's script shows.

Figures are plain JSON (``data`` and ``layout`` of Plotly), made here without Plotly. Nothing in them grows with the table: a
line has at most 300 points, each the mean of the rows of its part of the time.
"""

# R rows, K parts of the time

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.sinks.annotated_video import class_names

__all__ = ["Drawing", "drawings"]

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PARTS = 300
_BINS = 40
_LINES = 6
"""Up to so many streams have a line each."""
_CLASSES = 40
_PAIRED = ("_base", "_pred")
"""Columns of one name with these endings share a picture: without the memory, and with it."""
_COLORS = ("#3b6ea8", "#d1603d", "#4f9a63", "#8a5fa8", "#b08a2e", "#5c6b7a")
_HEIGHT = 260


class Drawing(NamedTuple):
    """A picture, with what it shows in words."""

    title: str
    words: str
    figure: Mapping[str, Any] | None
    """None: words say it all."""


class _Rows(NamedTuple):
    """When each row of a table was, and of which stream it is."""

    at_R: Doubles
    """Microseconds since 1970; where rows have no event time, their numbers."""
    timed: bool
    streams: Sequence[str]
    """Those that have a line each; empty where they are one or many."""
    stream_R: Ints


class _Numbers(NamedTuple):
    """A column of numbers, or what is made of one."""

    name: str
    values_R: Doubles
    """NaN where there is none."""
    row_R: Ints
    """The row of the table that each is from."""


def drawings(table: pa.Table) -> Iterator[Drawing]:
    """Yield the pictures of a table: rows by status, detections by class, then every number over event time."""
    if not table.num_rows:
        return
    yield from _statuses(table)
    yield from _classes(table)
    rows = _rows(table)
    for title, columns in _paired(list(_numbers(table))):
        yield _over_time(title, columns, rows)


# Counts


def _statuses(table: pa.Table) -> Iterator[Drawing]:
    if "status" not in table.column_names:
        return
    counts = pc.value_counts(table.column("status").cast(pa.string()).combine_chunks()).to_pylist()
    counts.sort(key=lambda entry: -entry["counts"])
    words = ", ".join(f"{entry['counts']:,} {entry['values']}" for entry in counts[:_CLASSES])
    if len(counts) < 2:
        yield Drawing("status", words, None)
    else:
        yield Drawing("status", words, _bars([(str(entry["values"]), entry["counts"]) for entry in counts[:_CLASSES]]))


def _classes(table: pa.Table) -> Iterator[Drawing]:
    if "detections" not in table.column_names or not pa.types.is_list(table.schema.field("detections").type):
        return
    flat = table.column("detections").combine_chunks().flatten()
    if not pa.types.is_struct(flat.type) or flat.type.get_field_index("label") < 0 or not len(flat):
        return
    labels, counts = np.unique(pc.struct_field(flat, "label").drop_null().to_numpy(), return_counts=True)
    names = class_names(table.schema)
    order = np.argsort(-counts, kind="stable")[:_CLASSES]
    bars = [
        (names[label] if 0 <= label < len(names) else f"class {label}", int(counts[i])) for i in order for label in [labels[i]]
    ]
    yield Drawing("detections per class", f"{counts.sum():,} detections of {len(labels)} classes", _bars(bars))


def _bars(counts: Sequence[tuple[str, int]]) -> dict[str, Any]:
    names, numbers = [_text(name) for name, _ in counts], [count for _, count in counts]
    bar = {"type": "bar", "orientation": "h", "y": names, "x": numbers, "marker": {"color": _COLORS[0]}}
    layout = _layout(80 + 22 * len(counts))
    return {"data": [bar], "layout": layout | {"yaxis": {"autorange": "reversed", "automargin": True, "type": "category"}}}


# Numbers


def _numbers(table: pa.Table) -> Iterator[_Numbers]:
    """Yield the columns of numbers; of detections how many there are and their scores; of ``rows`` per level their sum."""
    every_R = np.arange(table.num_rows)
    for field in table.schema:
        column, unit = table.column(field.name).combine_chunks(), (field.metadata or {}).get(b"unit", b"").decode()
        name = f"{field.name} ({unit})" if unit else field.name
        if field.name == "detections" and pa.types.is_list(field.type):
            counts_R = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            yield _Numbers("detections per row", counts_R.astype(np.float64), every_R)
            scores = pc.struct_field(column.flatten(), "score")
            yield _Numbers("score of detections", _doubles(scores), np.repeat(every_R, counts_R))
        elif unit == "rows" and pa.types.is_list(field.type) and pa.types.is_integer(field.type.value_type):
            counts_R = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            sums_R: Doubles = np.zeros(table.num_rows)
            np.add.at(sums_R, np.repeat(every_R, counts_R), _doubles(column.flatten()))
            yield _Numbers(name, sums_R, every_R)
        elif field.name == "state" or field.name.endswith(("sequence", "_id")):
            continue
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_boolean(field.type):
            yield _Numbers(name, _doubles(column), every_R)


def _doubles(column: pa.Array) -> Doubles:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values: Doubles = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(values), values, np.nan)


def _paired(columns: Sequence[_Numbers]) -> Iterator[tuple[str, list[_Numbers]]]:
    """Yield columns that belong together, under one name."""
    by_name = {column.name: column for column in columns}
    done: set[str] = set()
    for column in columns:
        if column.name in done:
            continue
        stem = next((column.name.removesuffix(end) for end in _PAIRED if column.name.endswith(end)), "")
        both = [by_name[stem + end] for end in _PAIRED if stem and stem + end in by_name]
        group = both if len(both) == len(_PAIRED) else [column]
        done.update(one.name for one in group)
        yield (f"{stem}: base and pred" if len(group) > 1 else column.name), group


def _over_time(title: str, columns: Sequence[_Numbers], rows: _Rows) -> Drawing:
    """Draw means over time, and beside them how often each value is there."""
    given = np.concatenate([column.values_R for column in columns])
    given = given[~np.isnan(given)]
    if not given.size:
        return Drawing(title, "no numbers", None)
    if given.min() == given.max():
        return Drawing(title, f"always {given[0]:.6g}", None)
    low, middle, high = np.quantile(given, [0.05, 0.5, 0.95])
    words = f"median {middle:.4g}, 5 % below {low:.4g}, 5 % above {high:.4g}, range {given.min():.4g} to {given.max():.4g}"
    data: list[dict[str, Any]] = []
    for name, values, at in _lines(columns, rows):
        color = _COLORS[len(data) % len(_COLORS)]
        at_K, mean_K = _means(at, values, rows)
        data.append(
            {
                "type": "scatter",
                "mode": "lines" if len(at_K) > 2 else "lines+markers",
                "name": _text(name),
                "x": _instants(at_K) if rows.timed else at_K.tolist(),
                "y": [float(f"{mean:.6g}") for mean in mean_K],
                "line": {"color": color, "width": 1.5},
            }
        )
    counts, edges = np.histogram(given, bins=_BINS)
    bar = {"type": "bar", "orientation": "h", "x": counts.tolist(), "y": ((edges[1:] + edges[:-1]) / 2).tolist()}
    data.append(bar | {"xaxis": "x2", "name": "values", "marker": {"color": "#b8c4d2"}, "showlegend": False})
    layout = _layout(_HEIGHT) | {
        "xaxis": {"domain": [0, 0.78], "type": "date" if rows.timed else "linear"},
        "xaxis2": {"domain": [0.81, 1], "title": {"text": "values"}},
        "showlegend": len(data) > 2,
        "bargap": 0.1,
    }
    return Drawing(title, words, {"data": data, "layout": layout})


def _lines(columns: Sequence[_Numbers], rows: _Rows) -> Iterator[tuple[str, Doubles, Doubles]]:
    """Yield name, values and times of each line: of a stream each where they are few, else of all rows."""
    for column in columns:
        if len(columns) > 1 or not rows.streams:
            yield column.name, column.values_R, rows.at_R[column.row_R]
            continue
        for number, name in enumerate(rows.streams):
            mine = rows.stream_R[column.row_R] == number
            yield name, column.values_R[mine], rows.at_R[column.row_R[mine]]


def _means(at: Doubles, values: Doubles, rows: _Rows) -> tuple[Doubles, Doubles]:
    """Return when the values of each part of the time were on average, and their mean; parts without any are left out."""
    there = ~np.isnan(values) & ~np.isnan(at)
    at, values = at[there], values[there]
    start, end = np.nanmin(rows.at_R), np.nanmax(rows.at_R)
    width = max(end - start, 1.0) / _PARTS
    part = np.minimum(((at - start) / width).astype(np.int64), _PARTS - 1)
    counts = np.bincount(part, minlength=_PARTS)
    used_K = counts > 0
    mean_K: Doubles = np.bincount(part, values, _PARTS)[used_K] / counts[used_K]
    at_K: Doubles = np.bincount(part, at - start, _PARTS)[used_K] / counts[used_K] + start
    return at_K, mean_K


def _rows(table: pa.Table) -> _Rows:
    at_R, timed = np.arange(table.num_rows, dtype=np.float64), False
    if "event_time" in table.column_names and pa.types.is_timestamp(table.schema.field("event_time").type):
        column = table.column("event_time").combine_chunks()
        if timed := column.null_count < len(column):
            micros = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
            at_R = micros.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    names: list[str] = []
    stream_R = np.zeros(table.num_rows, np.int64)
    if "stream_id" in table.column_names:
        coded = table.column("stream_id").cast(pa.string()).combine_chunks().dictionary_encode()
        if 2 <= len(coded.dictionary) <= _LINES:
            names = coded.dictionary.to_pylist()
            stream_R = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return _Rows(at_R, timed, names, stream_R)


def _instants(at_K: Doubles) -> list[str]:
    return [str(instant) for instant in at_K.astype("datetime64[us]")]


def _layout(height: int) -> dict[str, Any]:
    font = {"family": "system-ui, sans-serif", "size": 12, "color": "#1c2026"}
    return {"height": height, "margin": {"l": 60, "r": 20, "t": 10, "b": 40}, "font": font, "template": "none"}


def _text(name: str) -> str:
    """Return a name that Plotly, which reads a few tags in labels, shows as it is."""
    return html.escape(name, quote=False)
