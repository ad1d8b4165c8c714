"""Processes that answer questions from the files of a bank while encoding goes on: one copy of the blocks, in the page cache.

Each has its own weights and reads by ``SharedBlocks``. They end with the process that made them, also when it is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

import torch

from connectors.errors import StreambankError
from operators.banks import FileReader, SharedBlocks
from operators.rekv.answering import Answered, Answering, Asked
from operators.rekv.config import ReKVOptions
from operators.rekv.weights import load_answering

__all__ = ["Answerers"]


class Answerers:
    """A pool of such processes."""

    def __init__(self, options: ReKVOptions, name: str, device: torch.device) -> None:
        self._name = name
        self._pool = ProcessPoolExecutor(
            options.answerers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            # The same number of threads everywhere: sums are cut by it, and answers shall not depend on who gives them.
            initargs=(options, name, str(device), torch.get_num_threads()),
        )

    def submit(self, asked: Sequence[Asked], blocks: Sequence[SharedBlocks]) -> Future[list[Answered]]:
        """Begin to answer questions together."""
        try:
            return self._pool.submit(_answer, list(asked), list(blocks))
        except BrokenProcessPool as error:
            raise self.broken() from error

    def broken(self) -> StreambankError:
        """Return the error for a process that has ended."""
        return StreambankError(
            f"{self._name}: a process that answers questions has ended (killed, or out of memory); the run goes on from its "
            "last epoch if it is started again; with less memory lower answerers"
        )

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)


_answering: Answering | None = None


def _start(options: ReKVOptions, name: str, device: str, threads: int) -> None:
    """Load the model; end when the parent does, which a killed parent cannot ask for."""
    global _answering
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    _answering = load_answering(options, name, torch.device(device))


def _answer(asked: list[Asked], blocks: list[SharedBlocks]) -> list[Answered]:
    assert _answering is not None  # the pool runs ``_start`` first
    device = _answering.model.decoder.device
    return _answering(asked, [FileReader(shared, device=device) for shared in blocks])
