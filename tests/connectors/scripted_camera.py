"""A camera whose frames come, and whose time passes, when the test says so."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.sources.camera import CameraOptions, CameraReader, CameraSource
from connectors.sources.grabber import Capture, Timing
from pipelines.testing import FakeClock

WALL_S = 1_700_000_000.0
_PATIENCE_S = 60.0


class ScriptedCamera:
    """Opened by ``open``; each step returns when the thread that grabs has dealt with it. ``wall_offset_s`` shifts the day."""

    def __init__(self) -> None:
        self.clock = FakeClock(100.0)
        self.wall_offset_s = WALL_S
        self._asked: queue.Queue[str] = queue.Queue()
        self._answers: queue.Queue[Any] = queue.Queue()
        self._image: npt.NDArray[np.uint8] | None = None
        self._waits_for = ""
        self._reader: CameraReader | None = None
        self._ended = False

    @property
    def wall_s(self) -> float:
        return self.clock.now_s + self.wall_offset_s - 100.0

    def open(self, position: dict[str, Any] | None = None, **options: Any) -> CameraReader:
        given = CameraOptions(cameras={"gate": "http://scripted/"}, reconnect_s=0.001, reconnect_max_s=0.001, **options)
        source = CameraSource(given, connect=self._connect, clock=self.clock, wall_clock=lambda: self.wall_s)
        self._reader = source.open("gate", position)
        self._waits_for = self._asked.get(timeout=_PATIENCE_S)
        return self._reader

    def frames(self, count: int = 1, *, every_s: float = 0.02, value: int = 0, size: tuple[int, int] = (4, 6)) -> None:
        """Send frames, ``every_s`` after one another, whose pixels count up from ``value``."""
        if self._waits_for == "connect":
            self._answer(True)
        for number in range(count):
            self.clock.advance(every_s)
            self._answer(np.full((*size, 3), value + number, np.uint8))

    def fail(self) -> None:
        """Give no frame where one is waited for, and no connection where that is."""
        self._answer(None)

    def close(self) -> None:
        self._ended = True
        self._answers.put(None)
        if self._reader is not None:
            self._reader.close()

    def _answer(self, answer: Any) -> None:
        self._answers.put(answer)
        self._waits_for = self._asked.get(timeout=_PATIENCE_S)

    def _ask(self, what: str) -> Any:
        self._asked.put(what)
        return None if self._ended else self._answers.get()

    def _connect(self, address: str | int, timing: Timing) -> Capture | None:
        return self if self._ask("connect") else None

    def grab(self) -> bool:
        self._image = self._ask("grab")
        return self._image is not None

    def retrieve(self) -> tuple[bool, npt.NDArray[np.uint8] | None]:
        return True, self._image

    def release(self) -> None:
        pass
