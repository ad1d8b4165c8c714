"""A clock that moves only when told to, or when someone sleeps on it."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """Reads ``now_s``; a sleep returns at once and moves it on. Not thread-safe."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Move the time on."""
        if seconds < 0:
            raise ValueError(f"a clock does not go back: advance({seconds})")
        self.now_s += seconds

    def sleep(self, seconds: float) -> None:
        """Move the time on, without waiting."""
        self.advance(max(0.0, seconds))
