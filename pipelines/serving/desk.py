"""Takes questions and prompts of many clients at once, and gives the pipeline so many at a time.

They go the way of ``streambank ask`` and ``streambank prompt``. Whoever goes away frees the place: in the queue, or the reader
that waits for the answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from connectors.errors import StreambankError
from pipelines.asking.prompts import prompt
from pipelines.asking.putting import Answer
from pipelines.asking.questions import ask
from pipelines.spec import PipelineSpec

__all__ = ["Busy", "Desk"]


class Busy(StreambankError):
    """As many questions wait as may."""


class Desk:
    """``readers`` questions are with the pipeline at the same time, up to ``waiting`` more wait for their turn."""

    def __init__(self, spec: PipelineSpec, *, readers: int, waiting: int, timeout_s: float) -> None:
        self._spec, self._timeout_s = spec, timeout_s
        self._readers, self._most = readers, readers + waiting
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="question")
        self._lock = threading.Lock()
        self._inside = self._reading = 0

    @property
    def load(self) -> tuple[int, int]:
        """How many questions are inside, and how many of them are with the pipeline."""
        with self._lock:
            return self._inside, self._reading

    async def ask(self, stream: str, text: str, *, timeout_s: float | None = None, **how: Any) -> Answer:
        """Ask; see :func:`pipelines.asking.questions.ask`. Raise ``Busy``, or another ``StreambankError``."""

        def call(cancelled: threading.Event) -> Answer:
            [answer] = ask(self._spec, text, [stream], timeout_s=timeout_s or self._timeout_s, cancelled=cancelled, **how)
            return answer

        return await self._take(call)

    async def prompt(self, stream: str, kind: Any, value: Any = None, **how: Any) -> Answer:
        """Give a prompt; see :func:`pipelines.asking.prompts.prompt`. Raise as ``ask`` does."""

        def call(cancelled: threading.Event) -> Answer:
            more: Mapping[str, Any] = {"timeout_s": self._timeout_s, "cancelled": cancelled, **how}
            [answer] = prompt(self._spec, kind, value, streams=[stream], **more)
            return answer

        return await self._take(call)

    def close(self) -> None:
        """Take nothing more; what waits is not asked."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _take(self, call: Callable[[threading.Event], Answer]) -> Answer:
        with self._lock:
            if self._inside >= self._most:
                raise Busy(f"{self._inside} questions wait already; ask again later")
            self._inside += 1
        cancelled = threading.Event()

        def run() -> Answer:
            with self._lock:
                self._reading += 1
            try:
                return call(cancelled)
            finally:
                with self._lock:
                    self._reading -= 1

        future = self._pool.submit(run)
        future.add_done_callback(lambda _: self._left())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancelled.set()  # a reader that waits looks at it
            raise

    def _left(self) -> None:
        with self._lock:
            self._inside -= 1
