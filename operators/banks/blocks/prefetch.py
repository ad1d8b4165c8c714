"""Fetching pages ahead of time, in one background thread and, on CUDA, on a stream of its own.

A hint only: it fills caches and never changes what a read returns. At most two fetches wait or run; more are
ignored.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

__all__ = ["Prefetcher"]

_log = logging.getLogger(__name__)

_WAITING = 2


class Prefetcher:
    """Runs fetches one after the other. The thread starts with the first one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._room = threading.Semaphore(_WAITING)
        self.failed = 0
        """Fetches that ended with an error; the read that follows meets it again and reports it."""

    def submit(self, fetch: Callable[[], None]) -> Future[None] | None:
        """Have ``fetch`` run in the background; None if too many are under way."""
        if not self._room.acquire(blocking=False):
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        return self._pool.submit(self._run, fetch)

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def _run(self, fetch: Callable[[], None]) -> None:
        try:
            if self._device.type != "cuda":
                fetch()
                return
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(self._stream):
                fetch()
        except Exception:
            self.failed += 1
            _log.warning("prefetch failed", exc_info=True)
        finally:
            self._room.release()
