"""Casts of whole columns that do not fail for one bad value: what cannot be cast exactly becomes null.

Types that only some writers use (views, run-end encoding) are laid out plainly first: nothing behind a source meets them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.records import PER_SECOND
from connectors.sources.time_text import times_of_text

__all__ = ["convert", "is_text", "plain", "plain_type", "sound", "tolerant"]

_DAY_S = 86_400


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is text, in whichever layout."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def convert(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast ``array``; null where a value cannot be cast. Times are cut to the unit, all other numbers stay exact."""
    array = plain(array)
    source = array.type
    if source == kind:
        return array
    if pa.types.is_null(source):
        return pa.nulls(len(array), kind)
    if pa.types.is_dictionary(source):
        return convert(_decoded(array), kind)
    if is_text(source) and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return _time_of_text(array.cast(pa.string()), kind)
    if pa.types.is_timestamp(source) and pa.types.is_timestamp(kind):
        return _time_of_time(array, kind)
    if pa.types.is_floating(source) and pa.types.is_floating(kind):
        return _narrowed(array, kind)
    if _is_list(source) and _is_list(kind):
        return tolerant(_converted_lists(array, kind.value_type), lambda part: part.cast(kind), kind)
    return tolerant(array, lambda part: part.cast(kind), kind)


def tolerant(array: pa.Array, work: Callable[[pa.Array], pa.Array], kind: pa.DataType) -> pa.Array:
    """Apply ``work``; where it fails, halve until the values that fail are alone, and make these null of ``kind``."""
    try:
        return work(array)
    except pa.ArrowNotImplementedError:  # a matter of the types, not of the values
        return pa.nulls(len(array), kind)
    except pa.ArrowException:
        if len(array) <= 1:
            return pa.nulls(len(array), kind)
        half = len(array) // 2
        return pa.concat_arrays([tolerant(array[:half], work, kind), tolerant(array[half:], work, kind)])


def sound(array: pa.Array) -> pa.Array:
    """Return ``array`` with null for values that Arrow's format forbids: text that is not UTF-8, a time of 25 o'clock."""
    try:
        array.validate(full=True)
        return array
    except pa.ArrowInvalid:
        if pa.types.is_dictionary(array.type):
            words = sound(array.dictionary)
            return words.take(array.indices).cast(array.type)
        _require_sound_offsets(array)
        return tolerant(array, _validated, array.type)


def _validated(array: pa.Array) -> pa.Array:
    if pa.types.is_nested(array.type):
        array = array.take(pa.array(np.arange(len(array))))  # else the values of all lists are checked with each of them
    array.validate(full=True)
    return array


def _require_sound_offsets(array: pa.Array) -> None:
    """Raise ``ArrowInvalid`` where lists of a damaged file point beyond their values: nothing may touch these."""
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        ends = array.offsets.to_numpy()
        if (np.diff(ends) < 0).any() or ends[0] < 0 or ends[-1] > len(array.values):
            raise pa.ArrowInvalid("lists point beyond their values")
        _require_sound_offsets(array.values)
    elif pa.types.is_fixed_size_list(kind):
        _require_sound_offsets(array.values)
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            _require_sound_offsets(array.field(index))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that ``plain`` gives to arrays of ``kind``; the same object where it stays."""
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_dictionary(kind):
        words = plain_type(kind.value_type)
        return kind if words is kind.value_type else pa.dictionary(kind.index_type, words, kind.ordered)
    if pa.types.is_struct(kind):
        fields = [_plain_field(field) for field in kind]
        return kind if all(a is b for a, b in zip(fields, kind, strict=True)) else pa.struct(fields)
    if _is_list(kind):
        value = _plain_field(kind.value_field)
        if pa.types.is_list_view(kind):
            return pa.list_(value)
        if pa.types.is_large_list_view(kind):
            return pa.large_list(value)
        if value.type is kind.value_type or value.type == kind.value_type:
            return kind
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(value, kind.list_size)
        return pa.large_list(value) if pa.types.is_large_list(kind) else pa.list_(value)
    if pa.types.is_map(kind):
        key, item = plain_type(kind.key_type), plain_type(kind.item_type)
        return kind if key == kind.key_type and item == kind.item_type else pa.map_(key, item, kind.keys_sorted)
    return kind


def plain(array: pa.Array) -> pa.Array:
    """Return ``array`` without views and run-end encoding, at any depth; itself where it has none."""
    kind = plain_type(array.type)
    if kind is array.type or kind == array.type:
        return array
    if pa.types.is_run_end_encoded(array.type):
        return plain(pc.run_end_decode(array))
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, plain(array.dictionary), ordered=kind.ordered)
    if pa.types.is_struct(kind):
        fields = [plain(array.field(index)) for index in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=array.is_null())
    if _is_list(kind):  # Arrow's own cast loses the values of list views
        return _relisted(array, plain(array.flatten())).cast(kind)
    return array.cast(kind)


def _plain_field(field: pa.Field) -> pa.Field:
    kind = plain_type(field.type)
    return field if kind is field.type or kind == field.type else field.with_type(kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _converted_lists(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return lists of ``kind``; one that holds a value that cannot be cast is null as a whole."""
    values = array.flatten()
    converted = convert(values, kind)
    lists = _relisted(array, converted)
    if converted.null_count == values.null_count:
        return lists
    lost = pc.and_(converted.is_null(), values.is_valid()).to_numpy(zero_copy_only=False)
    before = np.concatenate([[0], np.cumsum(lost)])
    ends = lists.offsets.to_numpy()
    bad = pa.array(before[ends[1:]] > before[ends[:-1]])
    return pc.if_else(bad, pa.scalar(None, lists.type), lists)


def _relisted(array: pa.Array, values: pa.Array) -> pa.Array:
    """Return the lists of ``array`` as plain ones over ``values``, which stand for its flattened values."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    missing = array.is_null() if array.null_count else None
    return pa.LargeListArray.from_arrays(pa.array(offsets), values, mask=missing)


def _decoded(array: pa.DictionaryArray) -> pa.Array:
    return array.dictionary.take(array.indices)


def _narrowed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast floats; a finite one that becomes infinite is null."""
    cast = array.cast(kind)
    lost = pc.and_(pc.is_finite(array), pc.invert(pc.is_finite(cast)))
    return pc.if_else(lost, pa.scalar(None, kind), cast) if pc.any(lost).as_py() else cast


def _time_of_text(texts: pa.StringArray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return times_of_text(texts, kind.unit).view(kind)
    seconds = times_of_text(texts, "s")
    whole = pc.equal(times_of_text(texts, "us"), pc.multiply(pc.divide(seconds, _DAY_S), _DAY_S * 1_000_000))
    dates = pc.if_else(whole, seconds, pa.scalar(None, pa.int64()))  # a time of day must not vanish
    return tolerant(dates.view(pa.timestamp("s")), lambda part: part.cast(kind), kind)


def _time_of_time(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Change unit and zone of instants; one without a zone is UTC."""
    counts, here, there = array.view(pa.int64()), PER_SECOND[array.type.unit], PER_SECOND[kind.unit]
    if here == there:
        return counts.view(kind)
    if here > there:
        numbers = counts.fill_null(0).to_numpy() // (here // there)
        return pa.array(numbers, mask=counts.is_null().to_numpy(zero_copy_only=False)).view(kind)
    grown = tolerant(counts, lambda part: pc.multiply_checked(part, there // here), pa.int64())
    return grown.view(kind)
