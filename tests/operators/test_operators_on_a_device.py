"""Operators whose tensors lie on a device: none is in the wrong place, and the host waits no more often than it does today."""

from pathlib import Path
from types import ModuleType

import memprompttss_streams
import prompttpp_streams
import pytest
from launches import DEVICE, on_device

from operators.base import Context


def on(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Context", lambda **given: Context(**{**given, "device": DEVICE}))


def test_memprompttss_waits_for_the_device_at_most_6_times_per_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on(memprompttss_streams, monkeypatch)
    waves = [memprompttss_streams.wave(16, seed) for seed in (0, 1)]
    with on_device() as launches:
        operator = memprompttss_streams.operator(memprompttss_streams.network(tmp_path))
        for first in (0, 8):
            parts = [
                memprompttss_streams.samples(name, x[first : first + 8], first=first)
                for name, x in zip("ab", waves, strict=True)
            ]
            launches.clear()
            operator.process(memprompttss_streams.together(*parts))
            assert len(launches.of("read")) <= 6, launches.places("read")


def test_prompttpp_waits_for_the_device_at_most_9_times_per_event(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on(prompttpp_streams, monkeypatch)
    events = prompttpp_streams.stream(3, 4)
    with on_device() as launches:
        operator = prompttpp_streams.operator(prompttpp_streams.network(tmp_path))
        for first in (0, 6):
            launches.clear()
            operator.process(events.slice(first, 6))
            assert len(launches.of("read")) <= 9 * 6, launches.places("read")
