"""Time as the engine sees it: a monotonic reading and a way to wait. Passed in everywhere, so tests need not sleep."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Calling it returns monotonic seconds, so it also serves where only a reading is wanted."""

    def __call__(self) -> float:
        """Return monotonic seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's monotonic clock: the functions of ``time`` themselves, since tasks read it for every batch."""

    __call__ = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
