"""What a training says about itself: one record per report, to the caller's function and to the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from connectors.notebook import NotebookLine, in_notebook

__all__ = ["Progress", "ProgressCallback", "notebook_progress", "report"]

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

    def __str__(self) -> str:
        """Return it in one line."""
        minutes, seconds = divmod(round(self.eta_s), 60)
        eta = f" ETA {minutes}:{seconds:02d}" if self.step < self.steps else ""
        return f"{self.stage} {self.step}/{self.steps} loss {self.loss:.3f}{eta} {self.note}".rstrip()


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


def notebook_progress() -> ProgressCallback | None:
    """Return what shows a line per stage, with a bar, where this runs in a notebook; None elsewhere."""
    if not in_notebook():
        return None
    lines: dict[str, NotebookLine] = {}

    def show(progress: Progress) -> None:
        line = lines.setdefault(progress.stage, NotebookLine())
        line.show(str(progress), progress.step / progress.steps)

    return show
