"""What can be known of ``rekv`` before it is built. Imports no torch."""

from __future__ import annotations

import pyarrow as pa

from connectors import records
from operators.base import Operator
from operators.questions import GOOD_STATUSES, QUESTION
from operators.rekv.config import ReKVOptions
from operators.rekv.schemas import ANSWER, LOSSES, STATUSES
from operators.rekv.settings import check_policy, settings

__all__ = ["ReKVDeclaration"]


class ReKVDeclaration(Operator):
    """Video question answering from a bank of key/value blocks per stream (ReKV; arXiv 2503.00540)."""

    implementation = "operators.rekv.operator:ReKVOperator"
    Options = ReKVOptions
    input_schema = records.FRAME
    control_schema = QUESTION
    output_schema = ANSWER
    takes_kept_frames = True
    statuses = STATUSES
    good_statuses = GOOD_STATUSES
    losses = LOSSES

    @classmethod
    def examine(cls, options: ReKVOptions, name: str) -> pa.Schema:
        """Check the checkpoint's place, the settings and the policy; return the output schema."""
        settings(options, name)
        check_policy(options, name)
        options.check_matcher(name)
        return ANSWER
