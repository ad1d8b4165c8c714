"""BlockBank: keys and values of many streams in blocks, paged over device, host memory and disk.

It knows slots and keys of streams, no stream ids and no model. A block is written once, layer by layer, and never changes; the
lowest tier with a budget holds all of them and those above hold copies (:mod:`operators.banks.blocks.tiers`). Invariants: tiers
never change what is read; an open reader keeps its blocks; nothing grows beyond the budgets given to the constructor.
"""

# B streams of a call, F new blocks per stream, L layers, G key/value heads, T tokens per block, D head dim, R rows, N streams

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from models.uploads import upload
from operators.banks.blocks.budget import Budget, TierPlan
from operators.banks.blocks.page_table import PageNumbers, PageTable
from operators.banks.blocks.reader import BlockReader
from operators.banks.blocks.retirement import Retirement
from operators.banks.blocks.segments import StreamFiles, incarnation_of, segments_in
from operators.banks.blocks.snapshot import (
    Held,
    describe,
    export_rows,
    folder_name,
    import_means,
    import_rows,
    layout_of,
    open_files,
)
from operators.banks.blocks.spec import BlockCodec, BlockSpec, PlainCodec, page_bytes
from operators.banks.blocks.tiers import Part, Tiers
from operators.state import State

__all__ = ["REFUSED", "BlockBank"]

REFUSED = -1
"""Block number of a block for which there was no room."""


@dataclass(slots=True)
class _Pending:
    """Blocks of a stream that some layers have been written of."""

    pages: PageNumbers
    asked: int
    layers: int = 0


@dataclass(slots=True, eq=False)
class BankStream:
    """What the bank knows of one stream; for the modules of this package."""

    key: int
    table: PageTable
    files: StreamFiles | None
    readers: list[BlockReader] = field(default_factory=list)
    pending: _Pending | None = None
    clean: int = 0
    """Blocks below it stand in a snapshot."""
    released: bool = False

    def blocks(self) -> int:
        """Return how many blocks it holds, with those being written."""
        return len(self.table) + (len(self.pending.pages) if self.pending is not None else 0)

    def droppable(self) -> int:
        """Return how many of the oldest blocks no reader holds."""
        return min([reader.first for reader in self.readers], default=self.table.written) - self.table.first


class BlockBank:
    """Blocks of ``slots`` streams. One thread writes; readers may be used in other threads meanwhile."""

    def __init__(
        self,
        spec: BlockSpec,
        *,
        slots: int,
        device: torch.device | str = "cpu",
        device_bytes: int,
        host_bytes: int = 0,
        disk_bytes: int = 0,
        disk_folder: Path | str | None = None,
        representatives: str = "device",
        codec: BlockCodec | None = None,
        on_full: str = "refuse",
        blocks_per_stream: int | None = None,
        snapshots_kept: int = 3,
        name: str = "blocks",
    ) -> None:
        """Reserve the tiers. Budgets are in bytes, 0 for none; ``device_bytes`` and ``host_bytes`` are allocated at once.

        The lowest tier with a budget holds all blocks, so its budget bounds them. ``representatives`` says in which budget the
        mean keys lie, ``device`` or ``host``. ``codec`` says how keys and values are stored (as they are). ``on_full``:
        ``refuse`` new blocks, or ``drop_oldest`` blocks of the stream that holds most. ``blocks_per_stream`` bounds one stream
        the same way; without it streams compete for space. Files that one of the last ``snapshots_kept`` snapshots names
        are not deleted; they come on top of ``disk_bytes``.

        Raises ``ConfigError`` where the budgets do not hold one block per stream and all representatives.
        """
        self.spec, self.slots, self.device, self.name = spec, slots, torch.device(device), name
        self.codec = codec or PlainCodec(spec.dtype)
        self.fields = self.codec.fields(spec)
        if on_full not in ("refuse", "drop_oldest"):
            raise ConfigError(f"{name}: on_full={on_full!r}; use 'refuse' or 'drop_oldest'")
        if bool(disk_bytes) != (disk_folder is not None):
            raise ConfigError(f"{name}: disk_bytes={disk_bytes} with disk_folder={disk_folder}; give both or neither")
        if blocks_per_stream is not None and blocks_per_stream < 1:
            raise ConfigError(f"{name}: blocks_per_stream={blocks_per_stream}; it must be at least 1, or None for no limit")
        budget = Budget(device=device_bytes, host=host_bytes, disk=disk_bytes, representatives=representatives)
        self.plan = TierPlan.of(name, spec, self.fields, budget, slots)
        self.tiers = Tiers(self.plan, spec, self.fields, device=self.device, representatives=representatives)
        self.folder = Path(disk_folder) / name if disk_folder is not None else None
        self.streams: list[BankStream | None] = [None] * slots
        self.retirement = Retirement(snapshots_kept)
        self.dropped = self.refused = 0
        self._on_full, self._most = on_full, blocks_per_stream or self.plan.blocks
        self._free = np.arange(self.plan.blocks - 1, -1, -1)
        self._free_count, self._disk_left = self.plan.blocks, disk_bytes
        self._disk_bytes = disk_bytes
        self._lock = threading.RLock()

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers with its representatives."""
        return self.spec.layers * (page_bytes(self.fields) + self.spec.representative.bytes)

    def bytes(self) -> dict[str, int]:
        """Return bytes per tier: allocated ones of ``device`` and ``host``, those of all files of ``disk``."""
        return {**self.tiers.bytes(), "disk": self._disk_bytes - self._disk_left + self.retirement.bytes()}

    def held_bytes(self) -> int:
        """Return the bytes of all blocks that are held, wherever: blocks times ``block_bytes``."""
        return self.block_bytes * sum(len(stream.table) for stream in self.streams if stream is not None)

    # Streams

    def open(self, slots_B: Tensor | Sequence[int], keys_B: Tensor | Sequence[int]) -> None:
        """Hand slots to new streams. A key is a number of the stream's own (``stream_seed``); files are named by it.

        Deletes files that an earlier run left of these streams and that ``load`` did not take up.
        """
        with self._lock:
            for slot, key in zip(_ints(slots_B), _ints(keys_B), strict=True):
                if self.streams[slot] is not None:
                    raise ValueError(f"{self.name}: slot {slot} belongs to another stream; release it first")
                if any(stream is not None and stream.key == key for stream in self.streams):
                    raise ValueError(f"{self.name}: a stream with key {key} is open already")
                self.streams[slot] = BankStream(key, PageTable(), self._new_files(key))

    def release(self, slots_B: Tensor | Sequence[int]) -> None:
        """Forget the streams of these slots. Blocks that a reader holds go when it is closed."""
        with self._lock:
            for slot in _ints(slots_B):
                stream, self.streams[slot] = self.streams[slot], None
                if stream is not None:
                    self._abandon(stream)
                    stream.released = True
                    if not stream.readers:
                        self._free_stream(stream)

    def count(self, slots_B: Tensor | Sequence[int]) -> Tensor:
        """Return how many blocks each stream was given, [B]: the number of its next block."""
        return torch.tensor([self.stream(slot).table.written for slot in _ints(slots_B)])

    def first(self, slots_B: Tensor | Sequence[int]) -> Tensor:
        """Return the number of each stream's oldest block that is still there, [B]."""
        return torch.tensor([self.stream(slot).table.first for slot in _ints(slots_B)])

    def stream(self, slot: int) -> BankStream:
        """Return the stream of a slot. Raises ``ValueError`` if it has none."""
        stream = self.streams[slot]
        if stream is None:
            raise ValueError(f"{self.name}: slot {slot} has no stream; open it first")
        return stream

    # Writes

    def append(
        self,
        slots_B: Tensor | Sequence[int],
        keys_BLGTD: Tensor,
        values_BLGTD: Tensor,
        representatives_BLGD: Tensor | None = None,
        stats: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Add one block to each stream; return their numbers, int64 [B], ``REFUSED`` where there was no room.

        The same as ``append_layer`` for all layers; ``stats``: name → [B, L, ...].
        """
        number_B1 = torch.empty(0)
        for layer in range(self.spec.layers):
            means = None if representatives_BLGD is None else representatives_BLGD[:, layer : layer + 1]
            here = {name: values[:, layer : layer + 1] for name, values in (stats or {}).items()}
            number_B1 = self.append_layer(
                layer, slots_B, keys_BLGTD[:, layer : layer + 1], values_BLGTD[:, layer : layer + 1], means, here
            )
        return number_B1[:, 0]

    @torch.no_grad()
    def append_layer(
        self,
        layer: int,
        slots_B: Tensor | Sequence[int],
        keys_BFGTD: Tensor,
        values_BFGTD: Tensor,
        representatives_BFGD: Tensor | None = None,
        stats: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Write one layer of F new blocks per stream; return their numbers, int64 [B, F], ``REFUSED`` where there was no room.

        Layers come in order, 0 first, with the same slots and F; the blocks count when the last layer is there. Starting again
        at layer 0 gives up what it started. Blocks are raw keys (before rotation) and values; the representatives are the means
        of the keys over the tokens in float32 unless given (ReKV, spec of the bank: [G, D] per layer, which for grouped heads
        scores as the repeated [H, D] does). ``stats``: name → [B, F, ...], what the codec needs besides.
        """
        slots, blocks = _ints(slots_B), keys_BFGTD.shape[1]
        rows = {name: x.flatten(0, 1) for name, x in (stats or {}).items()}
        means_RGD = None if representatives_BFGD is None else representatives_BFGD.flatten(0, 1)
        numbers = self.append_rows(
            layer, slots, [blocks] * len(slots), keys_BFGTD.flatten(0, 1), values_BFGTD.flatten(0, 1), means_RGD, rows
        )
        return torch.from_numpy(np.concatenate([*numbers, np.empty(0, np.int64)])).view(len(slots), blocks)

    @torch.no_grad()
    def append_rows(
        self,
        layer: int,
        slots: Sequence[int],
        blocks: Sequence[int],
        keys_RGTD: Tensor,
        values_RGTD: Tensor,
        means_RGD: Tensor | None = None,
        stats: Mapping[str, Tensor] | None = None,
    ) -> list[NDArray[np.int64]]:
        """Write one layer of ``blocks[i]`` new blocks of each slot, the first slot's first; see :meth:`append_layer`.

        Returns the numbers of each slot's blocks. All that decides where blocks go is known to the host: nothing waits for a
        device.
        """
        if len(set(slots)) != len(slots):
            raise ValueError(f"{self.name}: slots {list(slots)} must be distinct")
        streams = [self.stream(slot) for slot in slots]
        with self._lock:
            for stream, asked in zip(streams, blocks, strict=True):
                if layer == 0:
                    self._reserve(stream, asked)
                pending = stream.pending
                if pending is None or pending.layers != layer or pending.asked != asked:
                    raise ValueError(
                        f"{self.name}: layer {layer} of {asked} blocks was written out of order; write layers 0 to "
                        f"{self.spec.layers - 1} one after the other, with the same blocks"
                    )
                pending.layers += 1
        pendings = [stream.pending for stream in streams if stream.pending is not None]
        taken = [len(pending.pages) for pending in pendings]
        numbers = [np.full(asked, REFUSED, np.int64) for asked in blocks]
        for number_F, stream, take in zip(numbers, streams, taken, strict=True):
            number_F[:take] = np.arange(stream.table.written, stream.table.written + take)
        if sum(taken):
            given = dict(stats or {})
            if sum(taken) < len(keys_RGTD):
                chosen_R = upload(torch.from_numpy(np.flatnonzero(np.concatenate(numbers) != REFUSED)), keys_RGTD.device)
                keys_RGTD, values_RGTD = keys_RGTD[chosen_R], values_RGTD[chosen_R]
                means_RGD = None if means_RGD is None else means_RGD[chosen_R]
                given = {name: x[chosen_R] for name, x in given.items()}
            means_RGD = keys_RGTD.float().mean(dim=2) if means_RGD is None else means_RGD.float()
            rows = self.codec.encode(keys_RGTD, values_RGTD, given)
            ends = np.cumsum(taken).tolist()
            parts = [
                Part(slice(end - n, end), stream.table.written, stream.files)
                for stream, n, end in zip(streams, taken, ends, strict=True)
                if n
            ]
            pages_R = np.concatenate([pending.pages for pending in pendings])
            self.tiers.write(layer, pages_R, rows, means_RGD, parts)
        if layer == self.spec.layers - 1:
            with self._lock:
                for stream, pending in zip(streams, pendings, strict=True):
                    stream.table.append(pending.pages)
                    stream.pending = None
        return numbers

    # Reads

    def reader(self, slot: int, below: int | None = None) -> BlockReader:
        """Open the blocks that a stream has now, or those before number ``below``. Close it when done: it keeps its blocks."""
        with self._lock:
            stream = self.stream(slot)
            below = stream.table.written if below is None else min(below, stream.table.written)
            pages_N = stream.table.held()[: max(below - stream.table.first, 0)]
            reader = BlockReader(
                self.tiers, self.codec, pages_N, stream.files, stream.table.first, lambda reader: self._let_go(stream, reader)
            )
            stream.readers.append(reader)
            return reader

    def close(self) -> None:
        """End the prefetch thread and unmap the files, which stay: a snapshot may name them. May be called twice."""
        self.tiers.close()

    # Snapshots

    def export(self, slots_N: Tensor | Sequence[int], state: State, *, incremental: bool) -> None:
        """Add these streams to ``state`` under ``<bank>.<name>``.

        With a disk tier: numbers only, after everything they name was made durable. Without: copies of all blocks, or where
        incremental of those since ``mark_clean``. What is being written layer by layer does not count.
        """
        streams = [self.stream(slot) for slot in _ints(slots_N)]
        describe(streams, self._most, state, self.name)
        if self.folder is None:
            export_rows(self, streams, self._most, state, incremental=incremental)
        else:  # so that a run that resumes can delete them in time
            waiting = [path.relative_to(self.folder).as_posix() for path in self.retirement.paths()]
            state.meta[self.name] = {"retired": waiting}
        for stream in streams:
            if stream.files is not None:
                stream.files.sync()

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot; delete files that no recent snapshot names."""
        for stream in self.streams:
            if stream is not None:
                stream.clean = stream.table.written
        self.retirement.advance()

    def load(self, slots_N: Tensor | Sequence[int], state: State) -> None:
        """Release all streams, then take those of a full ``state``, in its order, into these slots.

        Blocks in files that are younger than the snapshot are overwritten as new ones come. Budgets may be larger than in the
        run that took the snapshot. Raises ``RecoveryError`` where the blocks do not fit, or a file is missing or damaged.
        """
        held = Held(state, self.name)
        self.release(range(self.slots))
        streams = [self._reopen(numbers) for numbers in held.streams]
        for slot, stream in zip(_ints(slots_N), streams, strict=True):
            self.streams[slot] = stream
        if self.folder is None:
            import_rows(self, streams, held, state)
        else:
            waiting = [self.folder / name for name in state.meta.get(self.name, {}).get("retired", [])]
            self._retire_unknown(path for path in waiting if path.exists())
        for stream in streams:
            import_means(self, stream)

    def _reopen(self, numbers: dict[str, int]) -> BankStream:
        """Return the stream that a snapshot describes, with pages but without content."""
        blocks = numbers["written"] - numbers["first"]
        files = None
        if (numbers["segment_blocks"] > 0) != (self.folder is not None):
            raise RecoveryError(
                f"{self.name}: the snapshot was taken {'with' if self.folder is None else 'without'} a disk tier; resume with "
                "the disk options of the first run"
            )
        if self.folder is not None:
            files = open_files(self, numbers)
            self.retirement.adopt(files.paths())
            self._clear_leftovers(files.folder, oldest=files.oldest)
            self._disk_left -= len(files.paths()) * files.layout.size
        if blocks > min(self._free_count, self._most) or self._disk_left < 0:
            raise RecoveryError(
                f"{self.name}: the snapshot holds more blocks than the budgets allow ({self.plan.blocks} blocks, "
                f"{self._most} per stream); resume with budgets at least as large as in the first run"
            )
        table = PageTable(numbers["first"])
        table.append(self._take_pages(blocks))
        return BankStream(numbers["key"], table, files, clean=numbers["written"])

    def _new_files(self, key: int) -> StreamFiles | None:
        if self.folder is None or self.tiers.maps is None:
            return None
        folder = self.folder / folder_name(key)
        self._clear_leftovers(folder)
        left = segments_in(folder)  # readers or snapshots need them still
        return StreamFiles(
            folder, incarnation_of(left[-1]) + 1 if left else 0, layout_of(self, self.plan.segment_blocks), self.tiers.maps
        )

    def _clear_leftovers(self, folder: Path, oldest: str = "") -> None:
        """Delete files of a stream that this bank does not know: what a run left that was killed after its last snapshot.

        Those before the ``oldest`` that a snapshot names may be named by the snapshot before it; they go with time.
        """
        left = segments_in(folder)
        self._retire_unknown(path for path in left if path.name < oldest)
        for path in left:
            if not self.retirement.knows(path):
                path.unlink()

    def _retire_unknown(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if not self.retirement.knows(path):
                self.retirement.retire([path], path.stat().st_size)

    # Room

    def _reserve(self, stream: BankStream, blocks: int) -> None:
        """Find pages, and room in files, for as many of ``blocks`` new blocks as there is room for."""
        self._abandon(stream)
        take = min(blocks, self._room(stream))
        while take < blocks and self._on_full == "drop_oldest" and self._drop(stream, take):
            take = min(blocks, self._room(stream))
        pages = self._take_pages(take)
        if stream.files is not None:
            created = stream.files.create(stream.table.written + take)
            self._disk_left -= len(created) * stream.files.layout.size
            self.retirement.note(created)
        stream.pending = _Pending(pages, blocks)
        self.refused += blocks - take

    def _take_pages(self, count: int) -> PageNumbers:
        pages = self._free[self._free_count - count : self._free_count][::-1].copy()
        self._free_count -= count
        return pages

    def _room(self, stream: BankStream) -> int:
        room = min(self._free_count, self._most - len(stream.table))
        if stream.files is not None:
            layout = stream.files.layout
            room = min(room, stream.files.room(stream.table.written) + self._disk_left // layout.size * layout.blocks)
        return room

    def _drop(self, stream: BankStream, take: int) -> bool:
        """Drop the oldest block of a stream that reaches its limit with ``take`` more, else of the fullest stream.

        Of files the oldest segment goes as a whole: less would free nothing. False: readers hold all that could be dropped.
        """
        victim, blocks = stream, 1
        if len(stream.table) + take < self._most:
            # As many as each will hold, so that it does not matter whether blocks come one by one or together.
            holds = {other: other.blocks() + (take if other is stream else 0) for other in self.streams if other is not None}
            victim = max(holds, key=lambda other: (other.droppable() > 0, holds[other]))
            if victim.files is not None:
                blocks = victim.files.layout.blocks - victim.table.first % victim.files.layout.blocks
        blocks = min(blocks, victim.droppable())
        if blocks < 1:
            return False
        self._free_pages(victim.table.drop(blocks))
        self.dropped += blocks
        if victim.files is not None:
            self._delete(victim.files, victim.files.drop_before(victim.table.first))
        return True

    def _abandon(self, stream: BankStream) -> None:
        if stream.pending is not None:
            self._free_pages(stream.pending.pages)
            stream.pending = None

    def _free_stream(self, stream: BankStream) -> None:
        self._free_pages(stream.table.held())
        if stream.files is not None:
            self._delete(stream.files, stream.files.drop_all())

    def _free_pages(self, pages: PageNumbers) -> None:
        self.tiers.forget(pages)
        self._free[self._free_count : self._free_count + len(pages)] = pages[::-1]
        self._free_count += len(pages)

    def _delete(self, files: StreamFiles, paths: list[Path]) -> None:
        self._disk_left += len(paths) * files.layout.size
        self.retirement.retire(paths, files.layout.size)

    def _let_go(self, stream: BankStream, reader: BlockReader) -> None:
        with self._lock:
            stream.readers.remove(reader)
            if stream.released and not stream.readers:
                self._free_stream(stream)


def _ints(numbers: Tensor | Sequence[int]) -> list[int]:
    return numbers.tolist() if isinstance(numbers, Tensor) else list(numbers)
