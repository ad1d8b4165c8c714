"""A real ``streambank run --resume`` over Kafka frames, whose processes are found by what they do, killed, and started again.

Knows nothing of rounds and rows; a run that ends on its own is an error with the end of its log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipelines.runtime.manifest import Manifest, read_manifests

__all__ = ["PipelineRun"]

_ROOT = Path(__file__).resolve().parents[1]
_ACTORS = {"source": "ray::SourceActor", "operator": "ray::OperatorActor", "sink": "ray::SinkActor"}
_ACTOR_COUNT = 5
"""Two sources (one alone would share the actor of the operator), an operator, two sinks."""


class PipelineRun:
    """Frames of a topic → MAMBA → another topic and a folder of Parquet, by the command line, in ``folder``."""

    def __init__(self, address: str, source: str, target: str, folder: Path, *, runner: str) -> None:
        self.rows = folder / "rows"
        self._state = folder / "state"
        self._runner = runner
        self._log = folder / "log.txt"
        self._driver: subprocess.Popen[bytes] | None = None
        self._born = 0.0
        self._ended = False
        folder.mkdir(parents=True)
        self._file = folder / "soak.yaml"
        self._file.write_text(yaml.safe_dump(_pipeline(address, source, target), sort_keys=False))

    def start(self, *settings: str) -> None:
        """Start the driver, in a session of its own."""
        command = [sys.executable, "-W", "ignore", "-m", "pipelines.cli", "run", str(self._file), "--resume", "-q"]
        command += ["--runner", self._runner, *(part for setting in settings for part in ("--set", setting))]
        # Scores are compared bit for bit: one thread everywhere, as an actor of one CPU has.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            self._born = time.time()
            self._driver = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    def kill(self, kind: str, limit_s: float) -> None:
        """Kill one process of that kind, as soon as there is one. A driver is started again at once."""
        if kind in ("driver", "coordinator"):
            driver = self._running()
            driver.kill()
            driver.wait()
            self.start()
            return
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = self._actors(kind)
            return bool(found)

        self._wait(there, limit_s, f"no {kind} actor")
        with contextlib.suppress(psutil.NoSuchProcess):
            found[0].kill()

    def settled(self) -> bool:
        """Return whether all processes of an attempt are there."""
        if self._runner == "ray":
            return sum(len(self._actors(kind)) for kind in _ACTORS) == _ACTOR_COUNT
        return self._attempt_time() > self._born

    def wait_for_commit(self, limit_s: float) -> None:
        """Wait for an epoch that is committed from now on."""
        before = self.epochs()
        self._wait(lambda: self.epochs() > before, limit_s, f"no epoch after the {before}th")

    def wait_for_rows(self, rows: int, limit_s: float) -> None:
        """Wait until that many rows are committed; ``limit_s`` without any progress is an error that says how far it came."""
        while (before := self._committed_rows()) < rows:
            lacking = f"{before} of {rows} rows committed, positions {self._positions()}, and no more"
            self._wait(lambda before=before: self._committed_rows() > before, limit_s, lacking)  # type: ignore[misc]

    def stop(self) -> None:
        """End the run as a person would, by SIGTERM."""
        driver = self._running()
        driver.send_signal(signal.SIGTERM)
        if driver.wait(240) != 0:
            raise RuntimeError(f"SIGTERM ended the run with {driver.returncode}:\n{self._tail()}")

    def finish(self, limit_s: float) -> None:
        """Run from beginning to end, undisturbed."""
        self.start("sources.frames.until=latest")
        driver = self._running()
        if driver.wait(limit_s) != 0:
            raise RuntimeError(f"the undisturbed run ended with {driver.returncode}:\n{self._tail()}")

    def end(self) -> None:
        """Leave no process behind."""
        if self._driver is not None:
            self._driver.kill()
            self._driver.wait()

    def epochs(self) -> int:
        """Return how many epochs are committed."""
        manifest = self._manifest()
        return 0 if manifest is None else manifest.epoch + 1

    def attempts(self) -> int:
        """Return how many attempts there were."""
        return int((self._state / "attempt").read_text())

    def staged_files(self) -> int:
        """Return how many files are left of staging."""
        return len([path for path in self.rows.parent.rglob("*.staged") if path.is_file()])

    def _manifest(self) -> Manifest | None:
        manifests = read_manifests(self._state)
        return manifests[0] if manifests else None

    def _committed_rows(self) -> int:
        manifest = self._manifest()
        return 0 if manifest is None else manifest.rows["rows"]

    def _positions(self) -> dict[str, Any]:
        manifest = self._manifest()
        return {} if manifest is None else {name: state.position for name, state in manifest.sources["frames"].items()}

    def _attempt_time(self) -> float:
        with contextlib.suppress(FileNotFoundError):
            return (self._state / "attempt").stat().st_mtime
        return 0.0

    def _actors(self, kind: str) -> list[psutil.Process]:
        """Return the actors of a kind that belong to the present driver: those of one killed before may be dying still."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(_ACTORS[kind]) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _wait(self, condition: Callable[[], bool], limit_s: float, lacking: str) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            self._running()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{lacking} within {limit_s:.0f} s:\n{self._tail()}")
            time.sleep(0.05)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._driver is None:
            raise RuntimeError("the run was not started")
        if self._driver.poll() not in (None, 0):
            raise RuntimeError(f"the run ended on its own with {self._driver.returncode}:\n{self._tail()}")
        return self._driver

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]


def _pipeline(address: str, source: str, target: str) -> dict[str, Any]:
    here = {"type": "kafka", "bootstrap_servers": address}
    return {
        "name": "soak",
        "state": "state",
        "epoch_s": 0.5,
        "max_attempts": 10,
        "sources": {"frames": {**here, "topic": source, "format": "frame", "parallelism": 2}},
        "operators": {
            "detect": {
                "type": "mamba",
                "input": "frames",
                "checkpoint": str(_ROOT / "models" / "mamba" / "weights" / "shapes.safetensors"),
                "max_streams": 8,
                "max_length": 600,
                "key_length": 120,
                "write_topk": 12,
                "score_threshold": 0.1,
                "max_batch": 1,  # else the last bits of a score depend on which frames were together
            }
        },
        "sinks": {
            "topic": {**here, "input": "detect", "topic": target, "path": "staged", "transactional_id": target},
            "rows": {"type": "parquet", "input": "detect", "path": "rows"},
        },
    }
