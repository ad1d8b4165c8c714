"""Frames that stay where they were decoded: a row names one by a handle, and the operator of the same process takes it.

A source that keeps its frames on a device has one :class:`KeptFrames`; its rows have the encoding ``device``, and their
``image`` is the handle. Whoever has processed a row for good gives its frame back (:func:`release`). Handles mean something in
the process that made them only; one that is unknown there, or whose frame has been given back, names nothing.

Frames are tensors, but nothing here knows more of them than their sizes.
"""

from __future__ import annotations

import itertools
import os
import secrets
import struct
import threading
import weakref
from typing import Any

import pyarrow as pa

__all__ = ["ENCODING", "KeptFrames", "find", "kept_bytes", "release"]

ENCODING = "device"
"""``encoding`` of a row whose ``image`` is the handle of a kept frame."""

_HANDLE = struct.Struct("<16sIQ")  # process, store, frame


class KeptFrames:
    """The kept frames of one source; they go with it at the latest. ``limit_bytes``: more are not to be put in than that.

    A source that finds it ``full`` waits until frames have been given back.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.bytes = 0
        """Of the frames that are kept now."""
        self._limit = limit_bytes
        self._frames: dict[int, tuple[Any, int]] = {}
        self._counter = itertools.count()
        self._lock = threading.Lock()
        self._number = next(_store_numbers)
        _stores[self._number] = self

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def full(self) -> bool:
        """Whether the limit is reached. One frame may go beyond it."""
        return self.bytes >= self._limit

    def put(self, frame: Any, size: int) -> bytes:
        """Keep a frame of ``size`` bytes; return its handle."""
        number = next(self._counter)
        with self._lock:
            self._frames[number] = frame, size
            self.bytes += size
        return _HANDLE.pack(_process, self._number, number)

    def get(self, number: int) -> Any:
        """Return a frame, None where it is not kept."""
        return self._frames.get(number, (None, 0))[0]

    def drop(self, number: int) -> None:
        """Forget a frame. One that is not kept is no error."""
        with self._lock:
            self.bytes -= self._frames.pop(number, (None, 0))[1]


_process = secrets.token_bytes(16)
_store_numbers = itertools.count()
_stores: weakref.WeakValueDictionary[int, KeptFrames] = weakref.WeakValueDictionary()


def _forked() -> None:
    """Disown, in a child, what the parent keeps: from now on the same numbers mean different frames there and here."""
    global _process
    _process = secrets.token_bytes(16)


os.register_at_fork(after_in_child=_forked)


def find(handle: bytes) -> Any:
    """Return the frame that a handle names, None where there is none in this process."""
    store, number = _place(handle)
    return None if store is None else store.get(number)


def release(batch: pa.RecordBatch) -> None:
    """Give the frames back that rows of a batch name; other rows are left alone."""
    if "encoding" not in batch.schema.names:
        return
    images = batch.column("image")
    for row, encoding in enumerate(batch.column("encoding").to_pylist()):
        if encoding == ENCODING:
            store, number = _place(images[row].as_py())
            if store is not None:
                store.drop(number)


def kept_bytes() -> int:
    """Return the bytes of all frames that this process keeps."""
    return sum(store.bytes for store in list(_stores.values()))


def _place(handle: bytes | None) -> tuple[KeptFrames | None, int]:
    if handle is None or len(handle) != _HANDLE.size:
        return None, -1
    process, store, number = _HANDLE.unpack(handle)
    return (_stores.get(store) if process == _process else None), number
