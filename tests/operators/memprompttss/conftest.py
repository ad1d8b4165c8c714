"""Networks are loaded once: they hold weights alone, and operators hold all that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.memprompttss.model import MemPromptTSS
from operators.memprompttss import weights

_LOADED: dict[tuple[bytes, str], MemPromptTSS] = {}


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(file: str, settings: Any, *, device: Any) -> MemPromptTSS:
        key = Path(file).read_bytes(), f"{settings} {device}"
        if key not in _LOADED:
            _LOADED[key] = _load(file, settings, device=device)
        return _LOADED[key]

    _load = weights.load_network
    monkeypatch.setattr(weights, "load_network", load)
