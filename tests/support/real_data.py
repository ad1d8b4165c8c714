"""Where real recordings lie: the folder that ``$STREAMBANK_DATA`` names, else the shared data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["REAL_DATA"]

REAL_DATA = Path(os.environ.get("STREAMBANK_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
