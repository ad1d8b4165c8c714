"""Arrow arrays to JSON text by Arrow's kernels: no Python per row, except for binary values.

Every text is valid JSON in valid UTF-8: NaN and infinities are null, times are ISO 8601 strings, durations are exact numbers of
seconds, maps are lists of pairs, binary is base64. A value that JSON has no text for (text that is not UTF-8, a time outside of
the years 1 to 9999) is null, and the ``error`` of its row says so.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.records import PER_SECOND

__all__ = ["json_lines", "json_objects", "json_values"]

_ESCAPES = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_DAY_S = 86_400
_MIN_S, _END_S = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999, since 1970: what ISO 8601 texts of four digits hold and common readers take."""
_NO_TEXT = pa.nulls(1, pa.string())[0]  # pa.scalar would import pandas, which takes half a second

ALTERED = "hold null for a value that JSON cannot hold"
"""What became of rows that ``altered`` counts."""

_Note = Callable[[str], None]
"""Called with what is wrong, where values were replaced by null."""

logger = logging.getLogger(__name__)


def json_lines(batch: pa.RecordBatch) -> tuple[memoryview, int]:
    """Return one JSON object per row, each ended by a newline, as UTF-8 bytes, and how many rows were altered.

    Keys stand in column order. What cannot be written is null; it is named in the column ``error``, where there is one of
    text, else in the log.
    """
    if not batch.num_columns:
        return memoryview(b"{}\n" * batch.num_rows), 0
    texts, altered = _objects(batch, "}\n")
    return _bytes(texts), altered


def json_objects(batch: pa.RecordBatch) -> tuple[pa.StringArray, int]:
    """Return the object of each row, as ``json_lines`` does."""
    if not batch.num_columns:
        return pa.array(["{}"] * batch.num_rows, pa.string()), 0
    return _objects(batch, "}")


def json_values(array: pa.Array) -> pa.StringArray:
    """Return the JSON text of every element; null, and what cannot be written, become the text ``null``."""
    return _values(array, _ignore)


def _objects(batch: pa.RecordBatch, end: str) -> tuple[pa.StringArray, int]:
    columns = []
    problems: list[pa.Array] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        found: list[str] = []
        columns.append(_quoted(column, found.append))
        if found:
            problems.append(_complain(column, f"column {name!r} {found[0]}; written as null"))
    if problems:
        at = batch.schema.get_field_index("error")
        if at >= 0 and batch.schema.field(at).type == pa.string():
            told = _valid_text(batch.column(at), _ignore)
            for problem in problems:
                told = pc.coalesce(pc.binary_join_element_wise(told, problem, "; "), told, problem)
            columns[at] = _quoted(told, _ignore)
        for problem in problems:
            logger.warning("json rows=%d %s", len(problem) - problem.null_count, problem.drop_null()[0].as_py())
    parts: list[Any] = []
    literal = "{"
    for position, (name, (before, values, after)) in enumerate(zip(batch.schema.names, columns, strict=True)):
        parts += [literal + ("," if position else "") + json.dumps(name, ensure_ascii=False) + ":" + before, values]
        literal = after
    altered = len(batch) - pc.coalesce(*problems).null_count if problems else 0
    return pc.binary_join_element_wise(*parts, literal + end, ""), altered


def _complain(column: pa.Array, text: str) -> pa.StringArray:
    """Return ``text`` in the rows that hold a value without a JSON text, found by halving."""

    def bad(part: pa.Array) -> list[bool]:
        found: list[str] = []
        _quoted(part, found.append)
        if not found or len(part) == 1:
            return [bool(found)] * len(part)
        half = len(part) // 2
        return [*bad(part[:half]), *bad(part[half:])]

    return pc.if_else(pa.array(bad(column), pa.bool_()), text, _NO_TEXT)


def _ignore(_: str) -> None:
    return


def _values(array: pa.Array, note: _Note) -> pa.StringArray:
    before, values, after = _quoted(array, note)
    return pc.binary_join_element_wise(before, values, after, "") if before or after else values


def _quoted(array: pa.Array, note: _Note) -> tuple[str, pa.Array, str]:
    """Return (prefix, texts without null, suffix). The quotes of a column without nulls go into the constant parts."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _quoted(array.storage, note)
    if pa.types.is_dictionary(kind):
        return _quoted(array.dictionary_decode(), note)
    if pa.types.is_run_end_encoded(kind):
        ends = array.run_ends.to_numpy()
        places = np.searchsorted(ends, np.arange(array.offset, array.offset + len(array)), side="right")
        return _quoted(array.values.take(pa.array(places)), note)
    quotes = True
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = _escaped(_valid_text(array, note))
    elif pa.types.is_timestamp(kind):
        texts = _times(array, note)
    elif pa.types.is_date(kind):
        texts = _dates(array, note)
    elif pa.types.is_time(kind):
        day = _DAY_S * PER_SECOND[kind.unit]
        texts = _within(array, 0, day, "holds a time of day that is not within 24 hours", note).cast(pa.string())
    elif pa.types.is_decimal(kind):
        texts = array.cast(pa.string())  # in quotes: most readers would make a float of it
    elif _is_binary(kind):
        texts = pa.array([None if v is None else base64.b64encode(v).decode("ascii") for v in array.to_pylist()], pa.string())
    else:
        texts, quotes = _unquoted(array, note), False
    if not texts.null_count:
        return ('"', texts, '"') if quotes else ("", texts, "")
    if quotes:
        texts = pc.binary_join_element_wise('"', texts, '"', "")
    return "", pc.fill_null(texts, "null"), ""


def _unquoted(array: pa.Array, note: _Note) -> pa.Array:
    """Return texts that need no quotes; null where the value is null."""
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_floating(kind):
        return _floats(array)
    if pa.types.is_duration(kind):
        return _durations(array)
    if pa.types.is_interval(kind):  # months, days, nanoseconds
        texts = [None if value is None else f"[{','.join(map(str, value))}]" for value in array.to_pylist()]
        return pa.array(texts, pa.string())
    if pa.types.is_struct(kind):
        return _structs(array, note)
    if pa.types.is_union(kind):
        return _unions(array, note)
    if pa.types.is_map(kind):
        return _maps(array, note)
    if pa.types.is_nested(kind):
        return _lists(array, note)
    raise AssertionError(f"no JSON text is defined for {kind}")


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


def _times(array: pa.Array, note: _Note) -> pa.Array:
    """Return ISO 8601 text; instants (with a time zone) in UTC."""
    per_second = PER_SECOND[array.type.unit]
    # Without its zone first: the cast to text is 20 times slower with one.
    array, zone = array.cast(pa.timestamp(array.type.unit)), array.type.tz
    if array.type.unit != "ns":  # which do not reach beyond the years 1677 to 2262
        array = _within(array, _MIN_S * per_second, _END_S * per_second, "holds a time outside of the years 1 to 9999", note)
    return pc.binary_join_element_wise(pc.replace_substring(array.cast(pa.string()), " ", "T"), "Z" if zone else "", "")


def _dates(array: pa.Array, note: _Note) -> pa.Array:
    day = 1 if pa.types.is_date32(array.type) else _DAY_S * 1000
    array = _within(array, _MIN_S // _DAY_S * day, _END_S // _DAY_S * day, "holds a date outside of the years 1 to 9999", note)
    return array.cast(pa.string())


def _within(array: pa.Array, first: int, end: int, problem: str, note: _Note) -> pa.Array:
    """Return the array with null for values outside of ``first`` to ``end``, which is not included."""
    numbers = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    ends = pc.min_max(numbers)
    if ends["min"].as_py() is None or (ends["min"].as_py() >= first and ends["max"].as_py() < end):
        return array
    note(problem)
    fine = pc.and_(pc.greater_equal(numbers, first), pc.less(numbers, end))
    return pc.if_else(fine, array, pa.scalar(None, array.type))


def _durations(array: pa.Array) -> pa.Array:
    """Return seconds, exact to the last digit; whole ones end in ``.0``."""
    per_second = PER_SECOND[array.type.unit]
    numbers = array.view(pa.int64())
    missing = numbers.is_null().to_numpy(zero_copy_only=False)
    signed = numbers.fill_null(0).to_numpy()
    size = np.where(signed < 0, -signed.view(np.uint64), signed.view(np.uint64))  # the smallest int64 has no negative
    whole, part = np.divmod(size, np.uint64(per_second))
    digits = pc.utf8_lpad(pa.array(part).cast(pa.string()), len(str(per_second)) - 1, "0")
    digits = pc.utf8_rtrim(digits, "0")
    digits = pc.if_else(pc.equal(digits, ""), "0", digits)
    sign = pc.if_else(pa.array(signed < 0), "-", "")
    texts = pc.binary_join_element_wise(sign, pa.array(whole).cast(pa.string()), ".", digits, "")
    return pc.if_else(pa.array(missing), _NO_TEXT, texts) if missing.any() else texts


def _structs(array: pa.StructArray, note: _Note) -> pa.Array:
    parts: list[Any] = []
    children = array.flatten()  # null where the struct is: what stands there may be anything
    literal = "{"
    for position, field in enumerate(array.type):
        literal += ("," if position else "") + json.dumps(field.name, ensure_ascii=False) + ":"
        before, values, after = _quoted(children[position], note)
        parts += [literal + before, values]
        literal = after
    texts = pc.binary_join_element_wise(*parts, literal + "}", "") if parts else pa.repeat("{}", len(array))
    return pc.if_else(array.is_valid(), texts, _NO_TEXT) if array.null_count else texts


def _unions(array: pa.UnionArray, note: _Note) -> pa.Array:
    """Return the text of the child that each element chooses."""
    # Not by array.type_codes and .offsets, which do not know that the array is a slice.
    _, type_codes, offsets = array.buffers()[:3]
    part = slice(array.offset, array.offset + len(array))
    codes = np.frombuffer(type_codes, np.int8)[part]
    places = np.frombuffer(offsets, np.int32)[part] if array.type.mode == "dense" else np.arange(len(array))
    texts = pa.array([""] * len(array), pa.string())
    for position, code in enumerate(array.type.type_codes):
        chosen = codes == code
        if chosen.any():
            child = _values(array.field(position).take(pa.array(places[chosen])), note)
            texts = pc.replace_with_mask(texts, pa.array(chosen), child)
    return texts


def _maps(array: pa.MapArray, note: _Note) -> pa.Array:
    """Return lists of pairs: the keys of a map need not be text."""
    kind = array.type
    entries = pa.struct([pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)])
    pairs = array.cast(pa.list_(pa.field("entries", entries, nullable=False)))
    flat = pairs.flatten()
    texts = pc.binary_join_element_wise("[", _values(flat.field(0), note), ",", _values(flat.field(1), note), "]", "")
    return _joined(pairs, texts)


def _lists(array: pa.Array, note: _Note) -> pa.Array:
    if pa.types.is_fixed_size_list(array.type):
        # Its flatten() leaves out null lists, and a slice keeps the whole child: the cast handles both.
        array = array.cast(pa.list_(array.type.value_type))
    return _joined(array, _values(array.flatten(), note))


def _joined(array: pa.Array, children: pa.StringArray) -> pa.Array:
    """Return the lists of ``array``, whose elements have the texts ``children``."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), children)
    texts = pc.binary_join_element_wise("[", pc.binary_join(lists, ","), "]", "")
    return pc.if_else(array.is_valid(), texts, _NO_TEXT) if array.null_count else texts


def _valid_text(array: pa.Array, note: _Note) -> pa.StringArray:
    """Return the column as strings, with null for what is not UTF-8: files of other writers may hold any bytes as text."""
    try:
        array.validate(full=True)
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        note("is not UTF-8")
        kind = pa.binary_view() if pa.types.is_string_view(array.type) else pa.large_binary()
        values = [None if value is None else _decode(value) for value in array.cast(kind).to_pylist()]
        return pa.array(values, pa.string())


def _decode(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


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
