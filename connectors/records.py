"""The records that flow between stages: Arrow schemas, their names and versions, and row status.

Every batch is a ``pyarrow.RecordBatch`` whose first three columns are :data:`KEY_FIELDS`. Outputs of operators end with
:data:`STATUS_FIELDS`. Units stand in field metadata, the schema's name and version in schema metadata. Within a version
columns are only added, and only nullable ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import SchemaError

__all__ = [
    "FRAME",
    "KEY_FIELDS",
    "NEVER_US",
    "PCM",
    "PER_SECOND",
    "RGBD",
    "SAMPLE",
    "STATUS_FIELDS",
    "TIME_TYPE",
    "align",
    "channels_of",
    "complete",
    "encode_streams",
    "field",
    "is_optional",
    "key_schema",
    "may_be_infinite",
    "output_schema",
    "require",
    "sample_schema",
    "sample_values",
    "schema_name",
]

TIME_TYPE = pa.timestamp("us", tz="UTC")

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Arrow's unit of time → how many of it a second has."""

NEVER_US = -(2**63)
"""Before all event times, in microseconds; also the sequence before all sequences."""

KEY_FIELDS: tuple[pa.Field, ...] = (
    pa.field("stream_id", pa.string(), nullable=False),
    pa.field("sequence", pa.int64(), nullable=False),
    pa.field("event_time", TIME_TYPE, nullable=False),
)
"""``stream_id`` owns state; ``sequence`` strictly increases within a stream; ``event_time`` is when it happened."""

STATUS_FIELDS: tuple[pa.Field, ...] = (
    pa.field("status", pa.dictionary(pa.int8(), pa.string())),
    pa.field("error", pa.string()),
)
"""``status`` is ``ok`` or the operator's own word; ``error`` says what was wrong with the row, null when fine."""


def field(
    name: str,
    kind: pa.DataType,
    *,
    unit: str | None = None,
    nullable: bool = True,
    optional: bool = False,
    infinite: bool = False,
) -> pa.Field:
    """Make a field that carries its physical unit in the metadata.

    ``optional``: rows may come without this column. ``infinite``: infinity is a value that it may have, as of a time that may
    never come; else a row of an operator that holds it gets the status ``not_finite``.
    """
    words = {"unit": unit, "optional": "yes" if optional else None, "infinite": "yes" if infinite else None}
    metadata = {key: word for key, word in words.items() if word}
    return pa.field(name, kind, nullable=nullable, metadata=metadata or None)


def is_optional(wanted: pa.Field) -> bool:
    """Tell whether rows may come without this column; it is null then."""
    return b"optional" in (wanted.metadata or {})


def may_be_infinite(wanted: pa.Field) -> bool:
    """Tell whether infinity is a value that this column may have."""
    return b"infinite" in (wanted.metadata or {})


def key_schema(name: str, version: int, fields: Iterable[pa.Field] = ()) -> pa.Schema:
    """Make the schema ``name.v<version>``: the key columns, then ``fields``."""
    return pa.schema([*KEY_FIELDS, *fields], metadata={"streambank.schema": f"{name}.v{version}"})


def output_schema(
    name: str, version: int, fields: Iterable[pa.Field] = (), metadata: Mapping[str, str] | None = None
) -> pa.Schema:
    """Make an operator's output schema: key columns, ``fields``, then the status columns."""
    return pa.schema(
        [*KEY_FIELDS, *fields, *STATUS_FIELDS],
        metadata={"streambank.schema": f"{name}.v{version}", **(metadata or {})},
    )


FRAME = key_schema(
    "frame",
    1,
    [
        pa.field("image", pa.binary()),
        pa.field("encoding", pa.string()),
        field("height", pa.int32(), unit="px"),
        field("width", pa.int32(), unit="px"),
        pa.field("error", pa.string()),
    ],
)
"""One video frame. ``encoding``: jpeg, png, raw_rgb8 / raw_bgr8 / raw_gray8 (height·width·channels bytes, row-major), or
raw_f32_rgb (little-endian float32 in 0..255); or device, whose ``image`` is the handle of a frame that its source keeps
(``connectors.device_frames``), an RGB image. ``error`` is set by a source that could not decode the frame; ``image`` is then
null."""


RGBD = key_schema(
    "rgbd",
    1,
    [
        *(each for each in FRAME if each not in KEY_FIELDS and each.name != "error"),
        pa.field("depth", pa.binary()),
        pa.field("depth_encoding", pa.string()),
        pa.field("depth_scale", pa.float64()),
        field("intrinsics", pa.list_(pa.float64()), unit="px"),
        field("pose", pa.list_(pa.float64()), unit="m"),
        pa.field("error", pa.string()),
    ],
)
"""One color frame with depth aligned to it. ``depth_encoding``: png (16 bit), raw_u16 (little-endian) or raw_f32; raw depth has
``height`` and ``width`` of the color. ``depth_scale``: units per meter, 1000 for millimeters. No reading: 0, 65535, NaN.
``intrinsics``: the 3x3 matrix row by row, whole numbers at pixel centers. ``pose``: the 4x4 matrix row by row, camera to world
(x right, y down, z forward, meters); null where none is known. Sources may add ``episode`` (string; a change starts the stream
over), ``instruction`` (string), ``state`` (list of float) and ``feature`` (list of float)."""


PCM = key_schema(
    "pcm",
    1,
    [
        field("sample_rate", pa.int32(), unit="Hz"),
        pa.field("channels", pa.int8()),
        pa.field("samples", pa.list_(pa.int16())),
        pa.field("error", pa.string()),
    ],
)
"""A piece of sound. ``samples``: those of all channels at one moment side by side, -32768..32767. ``sequence`` is the number of
the first moment in the stream, ``event_time`` when it is heard. ``error`` is set where sound could not be decoded; ``samples``
is then null."""


SAMPLE = key_schema("sample", 1, [pa.field("values", pa.list_(pa.float32())), pa.field("error", pa.string())])
"""One sample of several channels of a machine, a body or another thing that sensors are on. ``values``: one number per channel,
null where a channel has none. The names of the channels, in this order, stand in the schema's metadata (``channels_of``)."""

_CHANNELS = b"streambank.channels"


def sample_schema(channels: Sequence[str], others: Iterable[pa.Field] = ()) -> pa.Schema:
    """Make the schema of samples of these channels; ``others`` are further columns beside ``values``."""
    fields = [*(each for each in SAMPLE if each.name != "error"), *others]
    if "error" not in (each.name for each in fields):
        fields.append(SAMPLE.field("error"))
    return pa.schema(fields, metadata={**SAMPLE.metadata, _CHANNELS: json.dumps(list(channels))})


def channels_of(schema: pa.Schema) -> list[str] | None:
    """Return the names of the channels of samples, None where the schema does not tell."""
    text = (schema.metadata or {}).get(_CHANNELS)
    return None if text is None else [str(name) for name in json.loads(text)]


def sample_values(batch: pa.RecordBatch, channels: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the values of samples, [rows, channels], NaN where there is none, and which rows have another number of them.

    Rows of the wrong length, and those without ``values``, are NaN as a whole.
    """
    column = batch.column("values")
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
    wrong: npt.NDArray[np.bool_] = lengths != channels
    good = column.filter(pa.array(~wrong)) if wrong.any() else column
    flat = good.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, channels)
    if not wrong.any():
        return flat, wrong
    values = np.full((batch.num_rows, channels), np.nan, np.float32)
    values[~wrong] = flat
    return values, wrong


def schema_name(schema: pa.Schema) -> str:
    """Return ``name.vN`` from the schema's metadata, or ``unnamed``."""
    name: bytes = (schema.metadata or {}).get(b"streambank.schema", b"unnamed")
    return name.decode()


def require(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> None:
    """Raise ``SchemaError`` unless ``batch`` holds every column of ``schema`` with its type.

    Extra columns are fine, and missing ones where they are optional (``complete`` puts those in).
    """
    problems, declare = [], []
    for wanted in schema:
        index = batch.schema.get_field_index(wanted.name)
        if index < 0 and is_optional(wanted):
            continue
        if index < 0:
            problems.append(f"column {wanted.name!r} ({wanted.type}) is missing")
        elif batch.schema.field(index).type != wanted.type:
            problems.append(f"column {wanted.name!r} is {batch.schema.field(index).type}, not {wanted.type}")
            if wanted not in KEY_FIELDS and not pa.types.is_nested(wanted.type):
                declare.append(f"{wanted.name}: {str(wanted.type).replace('tz=', '')}")
    if problems:
        listed = f"columns: {{{', '.join(declare)}, …}}"
        remedy = f"; where a source reads it from tables or messages, declare {listed} there, with all others"
        raise SchemaError(
            f"{where}: {'; '.join(problems)}; got {batch.schema.names}, need {schema_name(schema)} {schema.names}"
            f"{remedy if declare else ''}"
        )


def complete(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return ``batch`` with the optional columns of ``schema`` that it lacks, null; extra ones stay."""
    missing = [wanted for wanted in schema if is_optional(wanted) and batch.schema.get_field_index(wanted.name) < 0]
    if not missing:
        return batch
    columns = [*batch.columns, *(pa.nulls(batch.num_rows, wanted.type) for wanted in missing)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema([*batch.schema, *missing], metadata=batch.schema.metadata))


def align(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return ``batch`` with exactly the columns of ``schema``: extra ones dropped, missing nullable ones null."""
    columns = []
    for wanted in schema:
        index = batch.schema.get_field_index(wanted.name)
        if index >= 0:
            columns.append(batch.column(index).cast(wanted.type))
        elif wanted.nullable:
            columns.append(pa.nulls(batch.num_rows, wanted.type))
        else:
            raise SchemaError(f"column {wanted.name!r} is missing; got {batch.schema.names}")
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def encode_streams(column: pa.Array) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the distinct stream ids of a column and, per row, the index of its own among them."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
