"""Ending by Ctrl-C as one should: the first signal asks, the second one acts as usual."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["graceful"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def graceful(stop: Callable[[], None], then: str) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM call ``stop``; the log says ``then``. Only the main thread can do so.

    No exception is raised: it would be lost where Python ignores those, in a weak reference's callback for instance.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            # None: installed outside of Python; it cannot be put back by us.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        logger.info("signal=%s %s; once more to stop at once", signal.Signals(number).name, then)
        stop()
        restore()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        restore()
