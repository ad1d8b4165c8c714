"""Shows how a run or a training goes on: a live line in a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from connectors.notebook import NotebookLine
from pipelines.commands.summary import duration, facts

if TYPE_CHECKING:
    from pipelines.runners.report import Progress

__all__ = ["STARTING_RAY", "RateMeter", "notebook_progress", "run_progress", "training_progress"]

logger = logging.getLogger(__name__)

STARTING_RAY = "starting Ray (about 10 s)"
_LOG_EVERY_S = 30.0
_WINDOW_S = 10.0


class RateMeter:
    """Rows per second over the last seconds, and the time left at that rate."""

    def __init__(self, window_s: float = _WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, seconds: float, rows: int) -> None:
        """Take a reading. Counts that fall (a new attempt) restart the window."""
        if self._seen and (rows < self._seen[-1][1] or seconds < self._seen[-1][0]):
            self._seen.clear()
        self._seen.append((seconds, rows))
        while len(self._seen) > 2 and self._seen[1][0] <= seconds - self._window_s:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Rows per second; 0 while unknown."""
        if len(self._seen) < 2:
            return 0.0
        (start_s, start), (end_s, end) = self._seen[0], self._seen[-1]
        return (end - start) / (end_s - start_s) if end_s > start_s else 0.0

    def eta_s(self, rows_left: int | None) -> float | None:
        """Return the seconds until ``rows_left`` rows are read, None while unknown."""
        return rows_left / self.rate if rows_left is not None and self.rate > 0 else None


@contextmanager
def run_progress(*, live: bool, quiet: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Yield a function for ``on_progress``. ``live``: redraw a line on standard error; else log every half minute.

    Not ``live`` and not ``quiet`` (a pipe, a file): also print that line to standard error every half minute.
    """
    meter = RateMeter()
    if not live:
        now_and_then = _NowAndThen()

        def log(progress: Progress) -> None:
            meter.add(progress.seconds, progress.rows_read)
            if now_and_then.is_due():
                if not quiet:
                    click.echo(live_line(progress, meter), err=True)
                logger.info("%s", " ".join(f"{key}={value}" for key, value in _facts(progress, meter).items()))

        yield log
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(Text("starting"), console=Console(stderr=True), transient=True, refresh_per_second=4) as display:

        def show(progress: Progress) -> None:
            meter.add(progress.seconds, progress.rows_read)
            display.update(Text(live_line(progress, meter), no_wrap=True, overflow="ellipsis"))

        yield show


@contextmanager
def notebook_progress(starting: str = "starting") -> Iterator[Callable[[Progress], None]]:
    """Yield a function for ``on_progress`` that rewrites a line with a bar in the output of a notebook's cell."""
    meter, line = RateMeter(), NotebookLine()
    line.show(starting, None)

    def show(progress: Progress) -> None:
        meter.add(progress.seconds, progress.rows_read)
        left = progress.rows_left
        line.show(live_line(progress, meter), None if left is None else progress.rows_read / max(progress.rows_read + left, 1))

    yield show


class _NowAndThen:
    """True once every half minute."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def is_due(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._last_s < _LOG_EVERY_S:
            return False
        self._last_s = now_s
        return True


@contextmanager
def training_progress(*, live: bool, quiet: bool = True) -> Iterator[Callable[[Any], None] | None]:
    """Yield a function that takes what a training reports (``stage``, ``step``, ``steps``, ``loss``, ``note``).

    ``live``: bars; else a line every half minute unless ``quiet``. Training logs on its own besides.
    """
    if not live and quiet:
        yield None
        return
    if not live:
        now_and_then = _NowAndThen()

        def tell(progress: Any) -> None:
            if now_and_then.is_due():
                click.echo(str(progress), err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: Any) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.steps)
            description = f"{progress.stage} loss {progress.loss:.3f} {progress.note}".rstrip()
            bars.update(tasks[progress.stage], completed=progress.step, description=description)

        yield show


def live_line(progress: Progress, meter: RateMeter) -> str:
    """Return the line that stands in the terminal while a run goes on."""
    eta_s = meter.eta_s(progress.rows_left)
    parts = [
        f"{progress.rows_read:,} rows",
        f"{meter.rate:,.0f} rows/s" if meter.rate >= 10 or not meter.rate else f"{meter.rate:.2g} rows/s",
        *([] if progress.rows_left is None else [f"lag {progress.rows_left:,}"]),
        *([] if eta_s is None else [f"ETA {duration(eta_s)}"]),
        f"{progress.rows_written:,} written",
        "no epoch yet" if progress.epoch < 0 else f"epoch {progress.epoch}",
        *([] if progress.attempt <= 1 else [f"attempt {progress.attempt}"]),
        *(f"{number:,} {name.replace('_', ' ')}" for name, number in facts(progress.tallies.values()).items()),
    ]
    return " · ".join([duration(progress.seconds), *parts])


def _facts(progress: Progress, meter: RateMeter) -> dict[str, Any]:
    eta_s = meter.eta_s(progress.rows_left)
    return {
        "rows_read": progress.rows_read,
        "rows_per_s": round(meter.rate, 1),
        "lag_rows": progress.rows_left,
        "eta_s": None if eta_s is None else round(eta_s),
        "rows_written": progress.rows_written,
        "epoch": progress.epoch,
        "attempt": progress.attempt,
        **facts(progress.tallies.values()),
    }
