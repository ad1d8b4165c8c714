"""``python -m benchmarks``: run every benchmark, one after the other, each in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PARTS = {"__main__", "memprompttss_claspy", "tables", "training_hashes_run"}
"""What other commands run, or what measures nothing; files without a ``main`` are shared by others."""
_CANNOT_RUN = 2
"""Status of a benchmark that lacks what it measures, such as a GPU; it has said so."""


def main() -> int:
    """Run all and return the number that failed."""
    failed = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in _PARTS or "\ndef main(" not in path.read_text(encoding="utf-8"):
            continue
        print(f"== python -m benchmarks.{path.stem}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], check=False).returncode not in (0, _CANNOT_RUN):
            failed.append(path.stem)
    if failed:
        print("failed:", ", ".join(failed))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
