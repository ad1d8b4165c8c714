"""What can be known of ``memprompttss`` before it is built. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from connectors import records
from operators.base import Operator
from operators.memprompttss.config import MemPromptTSSOptions
from operators.memprompttss.schemas import OUTPUTS, PROMPT, STATUSES
from operators.memprompttss.settings import checked, settings_of
from operators.streams import STREAM_LOSSES

__all__ = ["MemPromptTSSDeclaration"]


class MemPromptTSSDeclaration(Operator):
    """States of sensor streams that follow prompts, by windows that read a bank of them (MemPromptTSS, arXiv 2510.09930)."""

    implementation = "operators.memprompttss.operator:MemPromptTSSOperator"
    Options = MemPromptTSSOptions
    input_schema = records.SAMPLE
    control_schema = PROMPT
    outputs = OUTPUTS
    statuses = STATUSES
    good_statuses = frozenset({"ok", "held", "padded"})
    losses = STREAM_LOSSES

    @classmethod
    def examine(cls, options: MemPromptTSSOptions, name: str) -> Mapping[str, pa.Schema]:
        """Check lengths and memory against the network's settings; return the output schemas."""
        checked(options, settings_of(options), name)
        return OUTPUTS
