"""Arrow arrays to JSON text by Arrow's kernels: no Python per row for numbers, strings, times, lists and structs.

Only types that JSON has no word for (binary, map, union, ...) take the slow path through Python objects. Every text is valid
JSON: NaN and infinities are null, times are ISO 8601 strings, binary is base64.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["json_lines", "json_values"]

_ESCAPES = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def json_lines(batch: pa.RecordBatch) -> memoryview:
    """Return one JSON object per row, each ended by a newline, as UTF-8 bytes. Keys stand in column order."""
    parts: list[Any] = []
    literal = "{"
    for position, field in enumerate(batch.schema):
        literal += ("," if position else "") + json.dumps(field.name, ensure_ascii=False) + ":"
        before, values, after = _quoted(batch.column(position))
        parts += [literal + before, values]
        literal = after
    if not parts:
        return memoryview(b"{}\n" * batch.num_rows)
    lines = pc.binary_join_element_wise(*parts, literal + "}\n", "")
    return _bytes(lines)


def json_values(array: pa.Array) -> pa.StringArray:
    """Return the JSON text of every element; null becomes the text ``null``."""
    before, values, after = _quoted(array)
    return pc.binary_join_element_wise(before, values, after, "") if before or after else values


def _quoted(array: pa.Array) -> tuple[str, pa.Array, str]:
    """Return (prefix, texts without null, suffix). The quotes of a column without nulls go into the constant parts."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _quoted(array.storage)
    if pa.types.is_dictionary(kind):
        return _quoted(array.dictionary_decode())
    quotes = True
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = _escaped(array.cast(pa.string()))
    elif pa.types.is_timestamp(kind):
        texts = _times(array)
    elif pa.types.is_date(kind) or pa.types.is_time(kind):
        texts = array.cast(pa.string())
    else:
        texts, quotes = _unquoted(array), False
    if not texts.null_count:
        return ('"', texts, '"') if quotes else ("", texts, "")
    if quotes:
        texts = pc.binary_join_element_wise('"', texts, '"', "")
    return "", pc.fill_null(texts, "null"), ""


def _unquoted(array: pa.Array) -> pa.Array:
    """Return texts that need no quotes; null where the value is null."""
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(pa.string())
    if pa.types.is_floating(kind):
        return _floats(array)
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(array)
    return pa.array([None if value is None else _dump(value) for value in array.to_pylist()], pa.string())


def _floats(array: pa.Array) -> pa.Array:
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    texts = array.cast(pa.string())  # the shortest text that reads back as the same float
    # Arrow writes 1.0 as "1", which a reader would take for an integer; from 1e10 on it writes an exponent.
    whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 1e10))
    if pc.any(whole).as_py():
        texts = pc.if_else(whole, pc.binary_join_element_wise(texts, ".0", ""), texts)
    finite = pc.is_finite(array)
    if not pc.all(finite).as_py() and array.null_count < len(array):
        texts = pc.if_else(finite, texts, pa.scalar(None, pa.string()))
    return texts


def _times(array: pa.Array) -> pa.Array:
    """Return ISO 8601 text; instants (with a time zone) in UTC."""
    # Without its zone first: the cast to text is 20 times slower with one.
    texts = array.cast(pa.timestamp(array.type.unit)).cast(pa.string())
    return pc.binary_join_element_wise(pc.replace_substring(texts, " ", "T"), "Z" if array.type.tz else "", "")


def _structs(array: pa.StructArray) -> pa.Array:
    parts: list[Any] = []
    literal = "{"
    for position, field in enumerate(array.type):
        literal += ("," if position else "") + json.dumps(field.name, ensure_ascii=False) + ":"
        before, values, after = _quoted(array.field(position))
        parts += [literal + before, values]
        literal = after
    if not parts:
        return pa.array(["{}"] * len(array), pa.string())
    texts = pc.binary_join_element_wise(*parts, literal + "}", "")
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, pa.string())) if array.null_count else texts


def _lists(array: pa.Array) -> pa.Array:
    if pa.types.is_fixed_size_list(array.type):
        # Its flatten() leaves out null lists, and a slice keeps the whole child: the cast handles both.
        array = array.cast(pa.list_(array.type.value_type))
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    children = pa.ListArray.from_arrays(pa.array(offsets), json_values(array.flatten()))
    texts = pc.binary_join_element_wise("[", pc.binary_join(children, ","), "]", "")
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, pa.string())) if array.null_count else texts


def _escaped(array: pa.StringArray) -> pa.StringArray:
    """Escape quotes, backslashes and control characters, only where the column holds any."""
    present = np.bincount(np.frombuffer(_bytes(array), np.uint8), minlength=128)
    if present[ord("\\")]:
        array = pc.replace_substring(array, "\\", "\\\\")
    if present[ord('"')]:
        array = pc.replace_substring(array, '"', '\\"')
    for code in np.flatnonzero(present[:32]).tolist():
        array = pc.replace_substring(array, chr(code), _ESCAPES.get(chr(code), f"\\u{code:04x}"))
    return array


def _bytes(array: pa.StringArray) -> memoryview:
    """Return the text of all elements back to back, without a copy. What stands under a null is included."""
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return memoryview(b"")
    starts = np.frombuffer(offsets, np.int32)
    return memoryview(data)[starts[array.offset] : starts[array.offset + len(array)]]


def _dump(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)
