"""Comparisons that say where two outputs or two states differ. Knows Arrow and State, nothing about operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from operators.state import Patch, Rows, State

__all__ = ["ColumnCompare", "array_difference", "clone_state", "state_difference", "table_difference"]

ColumnCompare = Callable[[pa.Array, pa.Array], str | None]
"""Takes the same column of two outputs, wanted first; returns what differs, or None."""


def table_difference(
    wanted: pa.Table, got: pa.Table, *, ignore: frozenset[str], atol: float, rtol: float, compare: Mapping[str, ColumnCompare]
) -> str | None:
    """Say how two outputs of one stream differ; None if they do not."""
    if wanted.schema.names != got.schema.names:
        return f"columns {got.schema.names} instead of {wanted.schema.names}"
    if wanted.num_rows != got.num_rows:
        return f"{got.num_rows} rows instead of {wanted.num_rows}"
    for name in wanted.schema.names:
        if name in ignore:
            continue
        a, b = (_one_array(table.column(name)) for table in (wanted, got))
        difference = compare[name](a, b) if name in compare else array_difference(a, b, atol=atol, rtol=rtol)
        if difference is not None:
            return f"column {name!r}: {difference}"
    return None


def array_difference(wanted: pa.Array, got: pa.Array, *, atol: float = 0.0, rtol: float = 0.0) -> str | None:
    """Say how two arrays differ: floats beyond ``atol + rtol·|wanted|``, everything else at all, nested types part by part."""
    if pa.types.is_dictionary(wanted.type) and pa.types.is_dictionary(got.type):
        wanted, got = wanted.dictionary_decode(), got.dictionary_decode()
    if wanted.type != got.type:
        return f"type {got.type} instead of {wanted.type}"
    if len(wanted) != len(got):
        return f"{len(got)} values instead of {len(wanted)}"
    if not wanted.is_null().equals(got.is_null()):
        row = int(np.flatnonzero(wanted.is_null().to_numpy(False) != got.is_null().to_numpy(False))[0])
        return f"row {row}: {got[row].as_py()!r} instead of {wanted[row].as_py()!r}"
    wanted, got = wanted.drop_null(), got.drop_null()
    if pa.types.is_list(wanted.type) or pa.types.is_large_list(wanted.type):
        lengths = [pc.list_value_length(array) for array in (wanted, got)]
        if not lengths[0].equals(lengths[1]):
            row = int(np.flatnonzero(lengths[0].to_numpy() != lengths[1].to_numpy())[0])
            return f"row {row}: {lengths[1][row]} entries instead of {lengths[0][row]}"
    if pa.types.is_nested(wanted.type):
        parts = (
            [(pc.struct_field(wanted, [i]), pc.struct_field(got, [i])) for i in range(wanted.type.num_fields)]
            if pa.types.is_struct(wanted.type)
            else [(wanted.flatten(), got.flatten())]
        )
        for i, (a, b) in enumerate(parts):
            difference = array_difference(a, b, atol=atol, rtol=rtol)
            if difference is not None:
                return f"{wanted.type.field(i).name}: {difference}"
        return None
    if pa.types.is_floating(wanted.type):
        a, b = (array.to_numpy(zero_copy_only=False).astype(np.float64) for array in (wanted, got))
        bad = ~np.isclose(b, a, rtol=rtol, atol=atol, equal_nan=True)
        if not bad.any():
            return None
        row, worst = int(np.flatnonzero(bad)[0]), np.nanmax(abs(a - b))
        return f"value {row}: {b[row]!r} instead of {a[row]!r} ({int(bad.sum())} of {len(bad)} differ, by up to {worst:.3g})"
    if wanted.equals(got):
        return None
    row = next(i for i in range(len(wanted)) if wanted[i] != got[i])
    return f"value {row}: {got[row].as_py()!r} instead of {wanted[row].as_py()!r}"


def state_difference(wanted: State, got: State) -> str | None:
    """Say how two full states differ, bit for bit; the order of streams does not count."""
    if sorted(wanted.streams) != sorted(got.streams):
        return f"streams {sorted(got.streams)} instead of {sorted(wanted.streams)}"
    for part, a, b in (
        ("dense", wanted.dense, got.dense),
        ("rows", wanted.rows, got.rows),
        ("shared", wanted.shared, got.shared),
        ("additive", wanted.additive, got.additive),
        ("meta", wanted.meta, got.meta),
    ):
        if a.keys() != b.keys() and (wanted.streams or part == "additive"):
            return f"{part} {sorted(b)} instead of {sorted(a)}"
    if wanted.meta != got.meta:
        return f"meta {got.meta} instead of {wanted.meta}"
    for part, tensors, others in (("shared", wanted.shared, got.shared), ("additive", wanted.additive, got.additive)):
        for name, tensor in tensors.items():
            if not _same_bits(tensor, others[name]):
                return f"{part}[{name!r}] differs"
    place = {stream: i for i, stream in enumerate(got.streams)}
    for i, stream in enumerate(wanted.streams):
        j = place[stream]
        for name, tensor in wanted.dense.items():
            if not _same_bits(tensor[i], got.dense[name][j]):
                return f"stream {stream!r}: dense[{name!r}] is {got.dense[name][j].tolist()} instead of {tensor[i].tolist()}"
    for name, rows in wanted.rows.items():
        a_of, b_of = _per_stream(rows), _per_stream(got.rows[name])
        for i, stream in enumerate(wanted.streams):
            if not _same_bits(a_of[i], b_of[place[stream]]):
                return f"stream {stream!r}: rows[{name!r}] differ ({len(b_of[place[stream]])} instead of {len(a_of[i])} rows)"
    return None


def clone_state(state: State) -> State:
    """Copy a state with all tensors."""
    return State(
        streams=list(state.streams),
        dense={name: tensor.clone() for name, tensor in state.dense.items()},
        rows={
            name: Rows(rows.length_N.clone(), rows.count_N.clone(), rows.index_R.clone(), rows.values_R.clone())
            for name, rows in state.rows.items()
        },
        shared={name: tensor.clone() for name, tensor in state.shared.items()},
        additive={name: tensor.clone() for name, tensor in state.additive.items()},
        meta=dict(state.meta),
        incremental=state.incremental,
        closed=list(state.closed),
        patches={name: Patch(patch.index_C.clone(), patch.values_C.clone()) for name, patch in state.patches.items()},
    )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _per_stream(rows: Rows) -> list[Tensor]:
    return list(torch.split(rows.values_R, rows.count_N.tolist()))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare bytes, so that NaN equals NaN and -0 differs from 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (a, b)))
