"""A run at a steady rate: what it holds of the machine does not grow with time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from abuse import plain_rows
from engine_workload import PATIENCE_S, pipeline, start_process

RATE = 50
WARM_S = 60.0
"""Until then libraries load and buffers find their size."""


def held(process: int) -> tuple[int, int, int]:
    """Return resident memory in KiB, threads and open descriptors."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(list(Path(f"/proc/{process}/fd").iterdir()))


def steady(folder: Path, seconds: float, warm_s: float) -> None:
    """Run ``seconds`` at ``RATE`` rows a second; compare what is held then with what was held after ``warm_s``."""
    count = round(seconds * RATE)
    lines = folder / "lines"
    lines.mkdir()
    with (lines / "all.jsonl").open("w") as file:
        for number in range(count):
            file.write(f'{{"k": "s{number % 23}", "v": {number % 100}, "t": {number / RATE}}}\n')
    values: dict[str, Any] = pipeline(lines, folder, epoch_s=1.0, sources__events__pace="realtime")
    process = start_process(values)
    samples: list[tuple[int, int, int]] = []
    began = time.monotonic()
    while process.is_alive() and time.monotonic() < began + seconds + PATIENCE_S:
        process.join(1.0)
        # The last seconds belong to the end of the run.
        if process.is_alive() and warm_s < time.monotonic() - began < seconds - 5:
            samples.append(held(process.pid))
    assert process.exitcode == 0
    assert len(plain_rows(folder / "rows")) == count
    third = len(samples) // 3
    early, late = samples[:third], samples[-third:]
    for what, slack in ((0, 16 << 10), (1, 0), (2, 2)):
        assert max(sample[what] for sample in late) <= max(sample[what] for sample in early) + slack


@pytest.mark.slow
@pytest.mark.timeout(4200)
def test_an_hour_at_a_steady_rate_holds_no_more_memory_threads_or_descriptors(tmp_path: Path) -> None:
    steady(tmp_path, 3600.0, WARM_S)
