"""Blocks in files: the disk tier, and what snapshots name. Written once, read through memory maps by any number of processes.

A *segment* is one file of a stream: up to S blocks, field by field, layer by layer, so that one layer of neighboring blocks is
one run of bytes. Its size is that of a full segment from the start (sparse). Invariant: a row below the number of blocks that a
snapshot or a reader names is complete and never written again; rows above it do not count.
"""

# L layers, S blocks per segment, R blocks of a call

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.errors import RecoveryError, StreambankError
from operators.banks.slot_bank import ReadBuffer, RowSpec

__all__ = ["Maps", "SegmentLayout", "StreamFiles", "incarnation_of", "segments_in"]

_HEADER = 4096
_ALIGN = 4096  # of each field, so that a map of it begins on a page
_OPEN_MAPS = 1024  # Linux allows 65,530 maps per process
_SUFFIX = ".blocks"


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """Where each page lies in a segment. Picklable: other processes read by it."""

    layers: int
    blocks: int
    """S."""
    rows: dict[str, RowSpec]

    @staticmethod
    def overhead(fields: int) -> int:
        """Return the most bytes that a file with so many fields has besides its blocks."""
        return _HEADER + _ALIGN * fields

    @property
    def starts(self) -> dict[str, int]:
        """Name → first byte of a field."""
        starts, end = {}, _HEADER
        for name, row in self.rows.items():
            starts[name] = end
            end += -(-self.layers * self.blocks * row.bytes // _ALIGN) * _ALIGN
        return starts

    @property
    def size(self) -> int:
        """Bytes of a full segment."""
        return _HEADER + sum(-(-self.layers * self.blocks * row.bytes // _ALIGN) * _ALIGN for row in self.rows.values())

    def header(self) -> bytes:
        """Return what the file begins with; two layouts with the same header are the same."""
        fields = {name: [list(row.shape), str(row.dtype)] for name, row in self.rows.items()}
        text = json.dumps({"streambank.blocks": 1, "layers": self.layers, "blocks": self.blocks, "fields": fields})
        return text.encode().ljust(_HEADER)


class Maps:
    """Memory maps of segments, the ones used last. Safe for several threads; an array stays valid while it is referred to."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, layout: SegmentLayout) -> NDArray[np.uint8]:
        """Map a segment. Raise ``RecoveryError`` where it is missing, cut off or of another layout."""
        with self._lock:
            mapped = self._open.get(path)
            if mapped is not None:
                self._open.move_to_end(path)
                return mapped
            try:
                mapped = np.memmap(path, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise RecoveryError(
                    f"{path}: the file of blocks cannot be read ({error}); restore the folder, or start without its state"
                ) from error
            if len(mapped) != layout.size or mapped[:_HEADER].tobytes() != layout.header():
                raise RecoveryError(
                    f"{path}: the file of blocks is damaged or of another layout ({len(mapped)} bytes, expected "
                    f"{layout.size}); resume with the options of the first run, or start without its state"
                )
            self._open[path] = mapped
            while len(self._open) > _OPEN_MAPS:
                self._open.popitem(last=False)
            return mapped

    def forget(self, path: Path) -> None:
        """Let go of a file that is deleted."""
        with self._lock:
            self._open.pop(path, None)

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._open.clear()


class StreamFiles:
    """The segments of one stream. ``incarnation`` tells a stream from an earlier one of the same key."""

    def __init__(
        self, folder: Path, incarnation: int, layout: SegmentLayout, maps: Maps, first: int = 0, written: int = 0
    ) -> None:
        """Use the files that hold blocks ``first`` to ``written``; others are made as blocks come."""
        self.folder, self.incarnation, self.layout, self._maps = folder, incarnation, layout, maps
        self._starts = self.layout.starts
        self._first = first // self.layout.blocks
        self._created = -(-written // self.layout.blocks)  # segments below it exist
        self._unsynced: set[int] = set()
        self._new_names = False

    def path(self, segment: int) -> Path:
        """Return the path of a segment."""
        return self.folder / f"{self.incarnation:06d}-{segment:08d}{_SUFFIX}"

    @property
    def oldest(self) -> str:
        """The name of the first file that holds, or will hold, blocks of this stream."""
        return self.path(self._first).name

    def paths(self) -> list[Path]:
        """Return all files."""
        return [self.path(segment) for segment in range(self._first, self._created)]

    def room(self, written: int) -> int:
        """Return how many blocks after the first ``written`` fit without a new file."""
        return self._created * self.layout.blocks - written

    def create(self, until: int) -> list[Path]:
        """Make the files for blocks below ``until``; return the new ones."""
        made = []
        while self._created * self.layout.blocks < until:
            self.folder.mkdir(parents=True, exist_ok=True)
            made.append(self.path(self._created))
            with _opened(made[-1], os.O_RDWR | os.O_CREAT | os.O_TRUNC) as handle:
                self._write(handle, self.layout.header(), 0)
                os.ftruncate(handle, self.layout.size)
            self._new_names = True
            self._created += 1
        return made

    def write(self, layer: int, block: int, rows: Mapping[str, Tensor]) -> None:
        """Write rows [R, *field] of one layer as blocks ``block``, ``block + 1``, .. whose files exist.

        By ``pwrite``, not through a map: a full disk is then an error (``StreambankError``) and not a signal.
        """
        per_file, count, done = self.layout.blocks, len(next(iter(rows.values()))), 0
        while done < count:
            segment, row = divmod(block + done, per_file)
            now = min(count - done, per_file - row)
            with _opened(self.path(segment), os.O_RDWR) as handle:
                for name, spec in self.layout.rows.items():
                    values = rows[name][done : done + now].contiguous().view(-1).view(torch.uint8).numpy()
                    self._write(handle, values.data, self._starts[name] + (layer * per_file + row) * spec.bytes)
            self._unsynced.add(segment)
            done += now

    def read(
        self, layer: int, blocks_R: NDArray[np.int64], names: Iterable[str], buffer: ReadBuffer | None = None
    ) -> dict[str, Tensor]:
        """Return copies of pages [R, *field] on the CPU."""
        fields = self._fields(names)
        out = {}
        for name, spec in fields.items():
            shape = (len(blocks_R), *spec.shape)
            out[name] = buffer.take(name, shape, spec.dtype) if buffer is not None else torch.empty(shape, dtype=spec.dtype)
        for segment, chosen in self._by_segment(blocks_R):
            mapped = self._maps.get(self.path(segment), self.layout)
            rows = blocks_R[chosen] - segment * self.layout.blocks
            for name, spec in fields.items():
                start = self._starts[name] + layer * self.layout.blocks * spec.bytes
                pages = mapped[start : start + self.layout.blocks * spec.bytes].reshape(self.layout.blocks, spec.bytes)
                target = out[name].view(len(blocks_R), -1).view(torch.uint8).numpy()
                np.take(pages, rows, axis=0, out=target[chosen], mode="clip")  # clip: numpy buffers ``out`` otherwise
        return out

    def check(self, written: int) -> None:
        """Raise ``RecoveryError`` unless all files of blocks below ``written`` are there and whole."""
        for segment in range(self._first, -(-written // self.layout.blocks)):
            self._maps.get(self.path(segment), self.layout)

    def drop_before(self, block: int) -> list[Path]:
        """Give up the files all of whose blocks are older than ``block``; return them."""
        gone = list(range(self._first, min(block // self.layout.blocks, self._created)))
        self._first = max(self._first, gone[-1] + 1 if gone else 0)
        return self._give_up(gone)

    def drop_all(self) -> list[Path]:
        """Give up all files; return them."""
        gone, self._first = list(range(self._first, self._created)), self._created
        return self._give_up(gone)

    def sync(self) -> None:
        """Make everything written durable."""
        names = [self.folder, self.folder.parent] if self._new_names else []
        for path in [*(self.path(segment) for segment in sorted(self._unsynced)), *names]:
            with _opened(path, os.O_RDONLY) as handle:
                os.fsync(handle)
        self._unsynced.clear()
        self._new_names = False

    def _fields(self, names: Iterable[str]) -> dict[str, RowSpec]:
        return {name: self.layout.rows[name] for name in names}

    def _by_segment(self, blocks_R: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
        """Cut ascending blocks where a new segment begins."""
        segment_R = blocks_R // self.layout.blocks
        cuts = np.flatnonzero(np.diff(segment_R)) + 1
        edges = [0, *cuts.tolist(), len(blocks_R)]
        for start, stop in pairwise(edges):
            if stop > start:
                yield int(segment_R[start]), slice(start, stop)

    def _write(self, handle: int, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(handle, view, at)
            view, at = view[done:], at + done

    def _give_up(self, segments: list[int]) -> list[Path]:
        for segment in segments:
            self._unsynced.discard(segment)
            self._maps.forget(self.path(segment))
        return [self.path(segment) for segment in segments]


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        handle = os.open(path, flags, 0o644)
        try:
            yield handle
        finally:
            os.close(handle)
    except OSError as error:
        raise StreambankError(
            f"{path}: blocks cannot be written ({error.strerror}); free space, lower disk_bytes or choose another folder, then "
            "resume"
        ) from error


def segments_in(folder: Path) -> list[Path]:
    """Return the files of a stream's folder, older ones first: their names sort by incarnation, then segment."""
    return sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []


def incarnation_of(path: Path) -> int:
    """Return the incarnation that a file's name tells."""
    return int(path.name.partition("-")[0])
