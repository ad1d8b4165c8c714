"""What can be known of ``resample`` before it is built. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pyarrow as pa

from connectors import records
from operators.base import Operator
from operators.resample.config import ResampleOptions
from operators.streams import STREAM_LOSSES, STREAM_STATUSES

__all__ = ["OUTPUTS", "ResampleDeclaration"]

OUTPUTS: Mapping[str, pa.Schema] = {"samples": records.output_schema("sample", 1, [records.SAMPLE.field("values")])}


class ResampleDeclaration(Operator):
    """Samples at even times, by means or by lines."""

    implementation = "operators.resample.operator:ResampleOperator"
    Options = ResampleOptions
    input_schema = records.SAMPLE
    outputs = OUTPUTS
    statuses: ClassVar[Mapping[str, str]] = {"ok": "the numbers at an even time", **STREAM_STATUSES}
    losses = STREAM_LOSSES
