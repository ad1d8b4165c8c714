"""One type for a column that files show with different ones: the type that holds the values of all of them.

pandas writes a column that is null throughout as type null and narrows numbers file by file; Polars and others write categories
or views for text. Where two types have no common one the first stays, and values that do not fit it are errors in their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from connectors.sources.casting import is_text, plain_type

__all__ = ["widen", "widest"]

_UNITS = ("s", "ms", "us", "ns")


def widest(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns of the first schema, each with the type that holds the values of the same column in all of them."""
    first = schemas[0]
    fields = [field.with_type(plain_type(field.type)) for field in first]
    for schema in schemas[1:]:
        for index, field in enumerate(fields):
            if schema.names.count(field.name) == 1:
                fields[index] = field.with_type(widen(field.type, schema.field(field.name).type))
    return pa.schema(fields, metadata=first.metadata)


def widen(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the type that holds the values of both; ``first`` where there is none."""
    first, second = plain_type(first), plain_type(second)
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    for rule in _RULES:
        kind = rule(first, second)
        if kind is not None:
            return kind
    return first


def _numbers(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if types.is_integer(first) and types.is_integer(second):
        return _integers(first, second)
    if types.is_floating(first) and types.is_floating(second):
        return max(first, second, key=lambda kind: kind.bit_width)
    if types.is_floating(first) or types.is_floating(second):
        other = second if types.is_floating(first) else first
        if not types.is_integer(other):
            return None
        narrow = other.bit_width <= 16 and pa.float32() in (first, second)
        return pa.float32() if narrow else pa.float64()
    return _decimals(first, second)


def _integers(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    signed = [kind for kind in (first, second) if pa.types.is_signed_integer(kind)]
    if len(signed) != 1:
        return max(first, second, key=lambda kind: kind.bit_width)
    unsigned = second if signed[0] is first else first
    bits = max(signed[0].bit_width, unsigned.bit_width * 2)
    return pa.decimal128(20, 0) if bits > 64 else {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]


def _decimals(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    shapes = [_digits(kind) for kind in (first, second)]
    if None in shapes:
        return None
    whole = max(shape[0] for shape in shapes if shape)
    scale = max(shape[1] for shape in shapes if shape)
    if whole + scale > 76:
        return None
    return pa.decimal128(whole + scale, scale) if whole + scale <= 38 else pa.decimal256(whole + scale, scale)


def _digits(kind: pa.DataType) -> tuple[int, int] | None:
    """Return the digits before and behind the point."""
    if pa.types.is_decimal(kind):
        return kind.precision - kind.scale, kind.scale
    if pa.types.is_integer(kind):
        return {8: 3, 16: 5, 32: 10, 64: 20}[kind.bit_width], 0
    return None


def _texts(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if not (is_text(first) and is_text(second)):
        return None
    return pa.large_string() if pa.large_string() in (first, second) else pa.string()


def _bytes(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if not (_is_bytes(first) and _is_bytes(second)):
        return None
    return pa.large_binary() if pa.large_binary() in (first, second) else pa.binary()


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _categories(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    values = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (first, second)]
    return None if values == [first, second] else widen(*values)


def _times(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    types = pa.types
    for is_kind, make in ((types.is_duration, pa.duration), (types.is_time, _time_of_day)):
        if is_kind(first) and is_kind(second):
            return make(_finer(first, second))
    if types.is_date(first) and types.is_date(second):
        return pa.date64()
    if types.is_timestamp(first) and types.is_timestamp(second):
        return pa.timestamp(_finer(first, second), first.tz if first.tz == second.tz else "UTC")
    if types.is_timestamp(first) and types.is_date(second):
        return first
    return second if types.is_date(first) and types.is_timestamp(second) else None


def _finer(first: pa.DataType, second: pa.DataType) -> str:
    return _UNITS[max(_UNITS.index(first.unit), _UNITS.index(second.unit))]


def _time_of_day(unit: str) -> pa.DataType:
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


def _lists(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if not all(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) for kind in (first, second)):
        return None
    value = first.value_field.with_type(widen(first.value_type, second.value_type))
    if types.is_fixed_size_list(first) and types.is_fixed_size_list(second) and first.list_size == second.list_size:
        return pa.list_(value, first.list_size)
    return pa.large_list(value) if types.is_large_list(first) or types.is_large_list(second) else pa.list_(value)


def _structs(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_struct(first) and pa.types.is_struct(second)):
        return None
    fields = {field.name: field.with_nullable(True) for field in first}
    for field in second:
        known = fields.get(field.name)
        kind = field.type if known is None else widen(known.type, field.type)
        fields[field.name] = (known or field.with_nullable(True)).with_type(kind)
    return pa.struct(list(fields.values()))


def _maps(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if not (pa.types.is_map(first) and pa.types.is_map(second)):
        return None
    return pa.map_(widen(first.key_type, second.key_type), widen(first.item_type, second.item_type))


_Rule = Callable[[pa.DataType, pa.DataType], pa.DataType | None]
_RULES: tuple[_Rule, ...] = (_categories, _numbers, _texts, _bytes, _times, _lists, _structs, _maps)
