"""A pool of processes that answer questions while their operator goes on. Knows no method: a function that loads one is given.

Each process loads what it answers with on its own, so weights are there once per process. They end with the process that made
them, also when it is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

import torch

from connectors.errors import StreambankError

__all__ = ["Answerers", "answerers"]

Asked = TypeVar("Asked")
Result = TypeVar("Result")


class Answerers(Generic[Asked, Result]):
    """``processes`` of them. ``load`` returns what answers; it, what is asked and the results are pickled."""

    def __init__(self, name: str, processes: int, load: Callable[[], Callable[[Sequence[Asked]], list[Result]]]) -> None:
        self._name = name
        self._pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            # The same number of threads everywhere: sums are cut by it, and answers must not depend on who gives them.
            initargs=(load, torch.get_num_threads()),
        )

    def submit(self, asked: Sequence[Asked]) -> Future[list[Result]]:
        """Begin to answer questions together. Raise ``StreambankError`` where a process has ended."""
        try:
            return self._pool.submit(_answer, list(asked))
        except BrokenProcessPool as error:
            raise self._broken() from error

    def result(self, future: Future[list[Result]]) -> list[Result]:
        """Wait for what ``submit`` began. Raise ``StreambankError`` where a process has ended."""
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._broken() from error

    def close(self) -> None:
        """End the processes; what has not been started is not answered. May be called twice."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _broken(self) -> StreambankError:
        return StreambankError(
            f"{self._name}: a process that answers questions has ended (killed, or out of memory); start the run again and it "
            "resumes from its last epoch; with less memory lower answerers"
        )


_answering: Callable[[Sequence[Any]], list[Any]] | None = None


def _start(load: Callable[[], Callable[[Sequence[Any]], list[Any]]], threads: int) -> None:
    """Load what answers; end when the parent does, which a killed parent cannot ask for."""
    global _answering
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    _answering = load()


def _answer(asked: list[Any]) -> list[Any]:
    assert _answering is not None  # the pool runs ``_start`` first
    return _answering(asked)


def answerers(
    name: str, processes: int, load: Callable[[], Callable[[Sequence[Asked]], list[Result]]]
) -> Answerers[Asked, Result] | None:
    """Return a pool of so many processes, None for 0 of them."""
    return Answerers(name, processes, load) if processes else None
