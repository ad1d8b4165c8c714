"""What a training says about itself: one record per report, to the caller's function and to the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "ProgressCallback", "report"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """State of one stage of a training."""

    stage: str
    step: int
    """Updates done, 1..``steps``."""
    steps: int
    loss: float
    """Mean of the loss since the last report."""
    note: str = ""
    """What else there is to say, such as a validation that was just made."""
    eta_s: float = 0.0
    """Seconds to the end of the stage at the pace so far."""


ProgressCallback = Callable[[Progress], None]


def report(progress: Progress, callback: ProgressCallback | None) -> None:
    """Log ``progress`` and hand it to ``callback``."""
    logger.info(
        "stage=%s step=%d/%d loss=%.4f eta_s=%.0f%s",
        *(progress.stage, progress.step, progress.steps, progress.loss, progress.eta_s),
        f" {progress.note}" if progress.note else "",
    )
    if callback is not None:
        callback(progress)
