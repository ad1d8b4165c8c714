"""One command per claim of speed or quality: ``python -m benchmarks.<name>``. Results land in ``benchmarks/results``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))  # for the broker and generated rows
