"""``python -m benchmarks``: run every benchmark, one after the other, each in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SHARED = {"__init__", "__main__", "impressions", "keyed_stream_bytewax", "machine", "running_mean"}


def main() -> int:
    """Run all and return the number that failed."""
    failed = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in _SHARED:
            continue
        print(f"== python -m benchmarks.{path.stem}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], check=False).returncode:
            failed.append(path.stem)
    if failed:
        print("failed:", ", ".join(failed))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
