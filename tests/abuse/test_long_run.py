"""A run at a steady rate: what it holds of the machine does not grow with time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from abuse import plain_rows
from engine_workload import PATIENCE_S, ROOT, pipeline
from ray_actors import KINDS, Actors

RATE = 50
THREADS_OF_RAY = 4
"""gRPC inside Ray adds a thread when all of its own are late, as on a busy machine: in an hour 35 became 36."""
SAMPLED_S = 5.0
"""Looking for the actors among all processes costs more than the run itself: not every second."""
WARM_S = 60.0
"""Until then libraries load and buffers find their size."""

_RUN = "import ast, sys; from engine_workload import run_here; run_here(ast.literal_eval(sys.argv[1]), runner=sys.argv[2])"


def held(process: int) -> tuple[int, int, int]:
    """Return resident memory in KiB, threads and open descriptors."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(list(Path(f"/proc/{process}/fd").iterdir()))


def steady(folder: Path, runner: str, seconds: float, warm_s: float, ray_address: str = "") -> None:
    """Run ``seconds`` at ``RATE`` rows a second; compare what each process holds then with what it held after ``warm_s``."""
    count = round(seconds * RATE)
    lines = folder / "lines"
    lines.mkdir()
    with (lines / "all.jsonl").open("w") as file:
        for number in range(count):
            file.write(f'{{"k": "s{number % 23}", "v": {number % 100}, "t": {number / RATE}}}\n')
    values = pipeline(lines, folder, epoch_s=2.0, sources__events__pace="realtime")
    actors = Actors()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _RUN, repr(values), runner],
        env={**os.environ, "PYTHONPATH": paths, "RAY_ADDRESS": ray_address},
        stderr=subprocess.DEVNULL,
    )
    samples: dict[str, list[tuple[int, int, int]]] = {}
    began = time.monotonic()
    while driver.poll() is None and time.monotonic() < began + seconds + PATIENCE_S:
        time.sleep(SAMPLED_S)
        # The last seconds belong to the end of the run.
        if warm_s < time.monotonic() - began < seconds - 5:
            own = {kind: process.pid for kind in KINDS if (process := actors.find(kind)) is not None} if runner == "ray" else {}
            for name, process in {"driver": driver.pid, **own}.items():
                samples.setdefault(f"{name} {process}", []).append(held(process))
    assert driver.wait(PATIENCE_S) == 0
    assert len(plain_rows(folder / "rows")) == count
    assert len(samples) == (1 + len(KINDS) if runner == "ray" else 1)
    grown = {}
    for name, taken in samples.items():
        third = len(taken) // 3
        early, late = ([max(column) for column in zip(*part, strict=True)] for part in (taken[:third], taken[-third:]))
        slack = (16 << 10, THREADS_OF_RAY if runner == "ray" else 0, 2)
        if any(after > before + more for after, before, more in zip(late, early, slack, strict=True)):
            grown[name] = f"KiB, threads, descriptors: first {early}, last {late}"
    assert not grown


@pytest.mark.slow
@pytest.mark.timeout(4200)
def test_an_hour_at_a_steady_rate_holds_no_more_memory_threads_or_descriptors(tmp_path: Path) -> None:
    steady(tmp_path, "local", 3600.0, WARM_S)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(4200)
def test_an_hour_at_a_steady_rate_on_ray_holds_no_more_in_any_of_its_processes(tmp_path: Path, ray_address: str) -> None:
    steady(tmp_path, "ray", 3600.0, WARM_S, ray_address)
