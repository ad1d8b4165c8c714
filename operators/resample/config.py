"""Options of the operator ``resample``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from connectors.options import REQUIRED, option
from operators.streams import StreamOptions

__all__ = ["ResampleOptions"]


@dataclass(frozen=True, kw_only=True)
class ResampleOptions(StreamOptions):
    """What a pipeline file can set."""

    rate_hz: float = option(REQUIRED, "Samples per second that come out.", unit="Hz", gt=0, le=1e5)
    channels: int = option(REQUIRED, "Numbers of a sample; rows with another number of them are refused.", ge=1)
    method: Literal["mean", "line"] = option(
        "mean",
        "`mean`: of the samples since the time of the row, for what comes faster than `rate_hz`; an interval without a sample "
        "has no numbers. `line`: on the line between the two samples around it, for what comes slower.",
    )
    max_gap_s: float = option(
        1.0, "After a longer pause time is counted anew from the next sample; nothing is put into the pause.", unit="s", gt=0
    )
