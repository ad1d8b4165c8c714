"""The streaming operator ``mamba``: frames of many streams in, detections out; the contract around the detector.

Decides which rows count (late, corrupt, gap, cut, slots), batches frames over streams, keeps per-stream bookkeeping and
snapshots. Rows of one stream are processed in order; what a stream sees never depends on the other streams of a batch,
except that ``on_full: evict`` may end its memory.
"""

# B frames of a wave, N streams of a snapshot

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from connectors import records
from connectors.errors import RecoveryError, SchemaError
from models.mamba import checkpoint
from models.mamba.model import Detections
from operators.banks import SlotTable
from operators.base import Context, Operator
from operators.images import Image, decode_images
from operators.mamba.config import MambaOptions
from operators.mamba.detector import Frames, StreamDetector
from operators.mamba.results import Results, detection_schema
from operators.mamba.rules import colour_histogram, correlation
from operators.mamba.streams import Packed, Stream, add_tombstones, evicted, export_streams, import_streams
from operators.mamba.weights import adapt_config, build_model, config_hash, model_id, network
from operators.state import State

__all__ = ["MambaOperator"]

_log = logging.getLogger(__name__)

_TOMBSTONES = 4096
"""Evicted streams that are remembered, so that their next row can say so."""


_COUNTED = {"late": "late", "reset": "resets", "rejected_corrupt": "rejected", "rejected_full": "rejected"}
"""Status of a row -> name of the gauge that counts it."""


class _Row(NamedTuple):
    """One input row, decoded."""

    number: int
    stream_id: str
    sequence: int
    time_us: int
    is_reference: bool
    image: Image | None
    error: str


@dataclass(slots=True)
class _Job:
    """One row that goes through the network."""

    row: int
    slot: int
    image: Image
    write: bool = True
    reset: bool = False
    references: list[Packed] = field(default_factory=list)


class _Queue:
    """Jobs that wait for the network, at most ``chunk_mpix`` of them."""

    def __init__(self) -> None:
        self.jobs: list[_Job] = []
        self.slots: set[int] = set()
        self.pixels = 0

    def add(self, job: _Job, pixels: int) -> None:
        """Append a job."""
        self.jobs.append(job)
        self.slots.add(job.slot)
        self.pixels += pixels

    def take(self) -> list[_Job]:
        """Return all jobs and become empty."""
        jobs = self.jobs
        self.__init__()  # type: ignore[misc]
        return jobs


class MambaOperator(Operator):
    """Video object detection with one memory per stream (MAMBA; arXiv 2401.09923)."""

    Options = MambaOptions
    input_schema = records.FRAME

    def __init__(self, options: MambaOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: MambaOptions = options
        model = build_model(options, context.name)
        self.model_id = model_id(model)
        model.config = adapt_config(model.config, options, context.name)
        self.detector = StreamDetector(context.name, model.fuse_for_inference(), options, context.device)
        self.output_schema = detection_schema(model.config.classes, config_hash(model.config, options))
        self._streams: dict[str, Stream] = {}
        self._table = SlotTable(options.max_streams)
        self._tombstones: dict[str, None] = {}
        self._touched: set[str] = set()
        self._closed: set[str] = set()
        self._tick = 0
        self._counts = dict.fromkeys(("evictions", "resets", "late", "rejected"), 0)

    @classmethod
    def examine(cls, options: MambaOptions, name: str) -> pa.Schema:
        """Check the checkpoint's names and shapes, or ``network``; return the output schema."""
        config = checkpoint.read_config(options.checkpoint) if options.checkpoint else network(options, name)
        config = adapt_config(config, options, name)
        return detection_schema(config.classes, config_hash(config, options))

    # Rows

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Detect in every frame of the batch, updating the memory of its stream. One row out per row in, but references."""
        records.require(batch, self.input_schema, self.context.name)
        if self.options.init == "spread" and "role" not in batch.schema.names:
            raise SchemaError(
                f"{self.context.name}: init='spread' needs a column 'role' that marks reference frames; "
                "set references (say 14) on the video source, or init='self'"
            )
        results = Results(batch)
        queue = _Queue()
        for row in _rows(batch, spread=self.options.init == "spread"):
            job = self._admit(row, batch, queue, results)
            if job is not None:
                height, width = self.detector.model.padded_size(*job.image.shape[:2])
                queue.add(job, height * width * (1 + len(job.references)))
            if queue.pixels >= self.options.chunk_mpix * 1e6:
                self._run(queue.take(), results)
        self._run(queue.take(), results)
        for status, name in _COUNTED.items():
            self._counts[name] += results.count(status)
        return results.batches(self.output_schema, self.model_id)

    def _admit(self, row: _Row, batch: pa.RecordBatch, queue: _Queue, results: Results) -> _Job | None:
        """Decide what becomes of a row; return its job if it goes through the network."""
        if row.image is None:
            results.reject(row.number, "rejected_corrupt", row.error)
            return None
        if self.detector.model.is_too_small(*row.image.shape[:2]):
            size = f"{row.image.shape[0]}x{row.image.shape[1]}"
            results.reject(row.number, "rejected_corrupt", f"an image of {size} px is too small or too narrow")
            return None
        stream = self._streams.get(row.stream_id)
        if stream is None:
            stream = self._open(row, queue, results)
            if stream is None:
                return None
        elif problem := stream.lateness(row.sequence, row.time_us, reference=row.is_reference):
            if self.options.late == "read_only" and stream.started and not row.is_reference:
                results.mark(row.number, "late", problem)
                return _Job(row.number, stream.slot, row.image, write=False)
            results.reject(row.number, "late", problem)
            return None
        self._tick += 1
        stream.used = self._tick
        stream.last_sequence = row.sequence
        self._table.touch(row.stream_id)
        self._touched.add(row.stream_id)
        if row.is_reference:
            stream.references.append(Packed.of(batch, row.number))
            results.drop(row.number)
            return None
        reset = self._note_frame(stream, row.number, row.image, row.time_us, results)
        references, stream.references = stream.references, []
        return _Job(row.number, stream.slot, row.image, reset=reset, references=references)

    def _open(self, row: _Row, queue: _Queue, results: Results) -> Stream | None:
        """Give a slot to the stream of a row; None if there is none to be had."""
        if self._table.full:
            if self.options.on_full == "reject":
                reason = f"all {self.options.max_streams} slots are taken; raise max_streams or set on_full='evict'"
                results.reject(row.number, "rejected_full", reason)
                return None
            if self._streams[self._table.idle_longest()].slot in queue.slots:
                self._run(queue.take(), results)  # the rows of that stream come before its end
            self._evict()
        stream = self._streams[row.stream_id] = Stream(self._table.admit(row.stream_id))
        self.detector.open(stream.slot, row.stream_id)
        if row.stream_id in self._tombstones:
            del self._tombstones[row.stream_id]
            reason = "the memory of this stream was evicted to make room; raise max_streams to avoid that"
            results.mark(row.number, "reset", reason)
        return stream

    def _note_frame(self, stream: Stream, row: int, image: Image, time_us: int, results: Results) -> bool:
        """Update the stream's bookkeeping and tell whether its memory must be forgotten before this frame."""
        reasons = []
        gap_s = (time_us - stream.last_time_us) / 1e6
        if self.options.max_gap_s is not None and stream.started and gap_s > self.options.max_gap_s:
            reasons.append(f"{gap_s:.3f} s since the last frame, max_gap_s is {self.options.max_gap_s}")
        if self.options.on_cut == "reset":
            histogram = colour_histogram(image)
            if stream.histogram is not None:
                likeness = correlation(stream.histogram, histogram)
                if likeness < self.options.cut_correlation:
                    reasons.append(f"scene cut: histograms correlate {likeness:.3f}")
            stream.histogram = histogram
        stream.last_time_us, stream.started = time_us, True
        if reasons:
            results.mark(row, "reset", "; ".join(reasons))
        return bool(reasons)

    # Frames

    def _run(self, jobs: list[_Job], results: Results) -> None:
        """Take frames through the network: all at once what needs no memory, then in waves of one frame per stream."""
        if not jobs:
            return
        looked = self._look([job.image for job in jobs])
        turn: dict[int, int] = {}
        waves: list[list[int]] = []
        for i, job in enumerate(jobs):
            wave = turn[job.slot] = turn.get(job.slot, -1) + 1
            if wave == len(waves):
                waves.append([])
            waves[wave].append(i)
        for wave_jobs in waves:
            resets = [jobs[i].slot for i in wave_jobs if jobs[i].reset]
            if resets:
                self.detector.clear(self._slots(resets))
            empty = self.detector.is_empty(self._slots([jobs[i].slot for i in wave_jobs]))
            groups: dict[tuple[bool, Any], list[int]] = {}
            for i, is_empty in zip(wave_jobs, empty, strict=True):
                groups.setdefault((is_empty and jobs[i].write, looked.key(i)), []).append(i)
            for (first, _), members in groups.items():
                self._run_group(first, [jobs[i] for i in members], *looked.take(members), results)

    def _run_group(self, first: bool, jobs: list[_Job], frames: Frames, scales_B2: Tensor, results: Results) -> None:
        slots_B = self._slots([job.slot for job in jobs])
        if first:
            found = self.detector.start(slots_B, frames, *self._references(jobs, frames))
        else:
            write_B = torch.tensor([job.write for job in jobs], device=self.context.device)
            found = self.detector.step(slots_B, frames, write_B=write_B)
        for b, job in enumerate(jobs):
            if found.finite_B[b]:
                detections = _to_original(found.detections[b], scales_B2[b])
                results.found(job.row, detections, found.bank_size_BL[b], found.keys_used_BL[b])
            else:
                results.reject(job.row, "rejected_corrupt", "the features of this frame are not finite")

    def _references(self, jobs: list[_Job], frames: Frames) -> tuple[Frames | None, Tensor]:
        """Return the reference frames of all jobs and whose they are. With the pixel level they must have the frame's size."""
        images = [(b, reference.decode()) for b, job in enumerate(jobs) for reference in job.references]
        if not images:
            return None, self._slots([])
        looked = self._look([image for _, image in images])
        if frames.map_BCHW is not None:
            size = tuple(frames.map_BCHW.shape[2:])
            usable = [i for i in range(len(images)) if looked.key(i) == size]
            if len(usable) < len(images):
                _log.warning("operator=%s %d reference frames differ in size", self.context.name, len(images) - len(usable))
        else:
            usable = list(range(len(images)))
        if not usable:
            return None, self._slots([])
        return looked.take(usable)[0], self._slots([images[i][0] for i in usable])

    def _look(self, images: list[Image]) -> _Looked:
        """Prepare and look at images of any sizes, batched by padded size."""
        model = self.detector.model
        buckets: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            buckets.setdefault(model.padded_size(*image.shape[:2]), []).append(i)
        looked = _Looked()
        for (height, width), members in buckets.items():
            size = max(1, int(self.options.chunk_mpix * 1e6) // (height * width))
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                prepared = model.prepare([torch.from_numpy(images[i]) for i in chunk], self.context.device)
                frames = self.detector.look(prepared.pixels_BCHW, prepared.sizes_B2)
                looked.add(chunk, frames, prepared.scales_B2)
        return looked

    def _slots(self, slots: list[int]) -> Tensor:
        return torch.tensor(slots, dtype=torch.int64, device=self.context.device)

    # Streams

    def _evict(self) -> None:
        stream_id = self._table.idle_longest()
        self._forget(stream_id)
        self._tombstones[stream_id] = None
        self._touched.add(stream_id)
        self._counts["evictions"] += 1
        _log.info("operator=%s evicted stream=%r, %d slots in use", self.context.name, stream_id, len(self._table))
        while len(self._tombstones) > _TOMBSTONES:
            oldest = next(iter(self._tombstones))
            del self._tombstones[oldest]
            self._touched.discard(oldest)
            self._closed.add(oldest)

    def _forget(self, stream_id: str) -> None:
        del self._streams[stream_id]
        self._table.release(stream_id)

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream and free its slot."""
        if stream_id in self._streams:
            self._forget(stream_id)
        elif stream_id in self._tombstones:
            del self._tombstones[stream_id]
        else:
            return
        self._touched.discard(stream_id)
        self._closed.add(stream_id)

    def metrics(self) -> dict[str, float]:
        """Return bank bytes, slots in use and counts of what was not ordinary since the start of this process."""
        return {
            "bank_bytes": float(self.detector.bytes()),
            "slots_used": float(len(self._table)),
            **{name: float(count) for name, count in self._counts.items()},
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all streams, or of those that changed since the last call with the bank rows that changed."""
        names = [name for name in self._streams if not incremental or name in self._touched]
        ghosts = [name for name in self._tombstones if not incremental or name in self._touched]
        streams = [self._streams[name] for name in names]
        state = State(streams=names, incremental=incremental, closed=sorted(self._closed) if incremental else [])
        self.detector.export(self._slots([stream.slot for stream in streams]), state, incremental=incremental)
        export_streams(streams, state)
        add_tombstones(state, ghosts)
        state.meta = {"model_id": self.model_id}
        self.detector.mark_clean()
        self._touched.clear()
        self._closed.clear()
        return state

    def restore(self, state: State) -> None:
        """Replace all streams by those of a full ``state``."""
        if state.incremental:
            raise RecoveryError(
                f"{self.context.name}: an incremental snapshot cannot be restored; apply it to a full one first"
            )
        made_by = state.meta.get("model_id", self.model_id)
        if made_by != self.model_id:
            raise RecoveryError(
                f"{self.context.name}: the snapshot was made with weights {made_by}, these are {self.model_id}; banks hold "
                "rows projected by the weights, so resume with the same checkpoint"
            )
        gone = evicted(state)
        live = state.select([not flag for flag in gone])
        if len(live.streams) > self.options.max_streams:
            raise RecoveryError(
                f"{self.context.name}: the snapshot holds {len(live.streams)} streams, max_streams is "
                f"{self.options.max_streams}; raise it, or resume with more shards"
            )
        self._table.clear()
        self._streams = {}
        self._tombstones = {name: None for name, flag in zip(state.streams, gone, strict=True) if flag}
        if live.streams:
            used = live.dense["used"].tolist()
            for i in sorted(range(len(used)), key=used.__getitem__):  # the least recently used first
                self._streams[live.streams[i]] = Stream(self._table.admit(live.streams[i]))
            streams = [self._streams[name] for name in live.streams]
            self.detector.load(self._slots([stream.slot for stream in streams]), live)
            import_streams(streams, live)
        self._tick = max((stream.used for stream in self._streams.values()), default=0)
        self.detector.mark_clean()
        self._touched.clear()
        self._closed.clear()


class _Looked:
    """Frames of one or several padded sizes after ``look``, addressed by their position in the list of images."""

    def __init__(self) -> None:
        self._parts: dict[Any, list[Frames]] = {}
        self._scales: dict[Any, list[Tensor]] = {}
        self._place: dict[int, tuple[Any, int]] = {}

    def add(self, members: list[int], frames: Frames, scales_B2: Tensor) -> None:
        """Take the frames of these images."""
        # Maps stack only if they have one size; without the pixel level there are no maps any more, and everything stacks.
        key = None if frames.map_BCHW is None else tuple(frames.map_BCHW.shape[2:])
        parts = self._parts.setdefault(key, [])
        start = sum(part.sizes_B2.shape[0] for part in parts)
        parts.append(frames)
        self._scales.setdefault(key, []).append(scales_B2)
        self._place |= {image: (key, start + i) for i, image in enumerate(members)}

    def key(self, image: int) -> Any:
        """Return what images must share to go into one step."""
        return self._place[image][0]

    def take(self, images: list[int]) -> tuple[Frames, Tensor]:
        """Return the frames of these images, which share their key, and their scales."""
        key = self.key(images[0])
        parts, scales = self._parts[key], self._scales[key]
        if len(parts) > 1:
            parts, scales = self._parts[key], self._scales[key] = [Frames.cat(parts)], [torch.cat(scales)]
        index = torch.tensor([self._place[image][1] for image in images], device=scales[0].device)
        return parts[0].take(index), scales[0][index]


def _rows(batch: pa.RecordBatch, *, spread: bool) -> list[_Row]:
    """Decode a FRAME batch."""
    decoded = decode_images(batch)
    roles = batch.column("role").to_pylist() if spread else [None] * batch.num_rows
    columns = zip(
        range(batch.num_rows),
        batch.column("stream_id").to_pylist(),
        batch.column("sequence").to_pylist(),
        batch.column("event_time").cast(pa.int64()).to_pylist(),
        [role == "reference" for role in roles],
        decoded.images,
        [error or "" for error in decoded.errors],
        strict=True,
    )
    return [_Row(*values) for values in columns]


def _to_original(detections: Detections, scale_2: Tensor) -> Detections:
    """Return boxes in pixels of the original image."""
    return detections._replace(boxes_D4=detections.boxes_D4 / scale_2[[1, 0, 1, 0]])
