"""How many rows a source should read at a time, from what its consumers can use at a time."""

from __future__ import annotations

from pipelines.spec import PipelineSpec

__all__ = ["read_rows"]

_SINK_ROWS = 8192
_CONTROL_ROWS = 256


def read_rows(spec: PipelineSpec, source: str) -> int:
    """Return the rows of one message: a full batch of the operator that takes the largest ones, thousands for a bare sink.

    Bytes are bounded by the source task besides, so large rows (frames) come in smaller numbers.
    """
    wanted = [operator.max_batch for operator in spec.operators if source in operator.inputs]
    wanted += [
        _CONTROL_ROWS if operator.align_s is None else max(_CONTROL_ROWS, operator.max_batch)
        for operator in spec.operators
        if source in operator.control
    ]
    return max(wanted, default=_SINK_ROWS)
