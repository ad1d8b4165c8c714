"""The streaming operator ``mamba``: frames of many streams in, detections out; the contract around the detector.

Batches admitted frames over streams, decides when a memory is forgotten (gap, cut), and keeps snapshots. Rows of one stream are
processed in order; what a stream sees never depends on the other streams of a batch, except that ``on_streams_full: evict`` may
end its memory.
"""

# B frames of a round, N streams of a snapshot

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from connectors import records
from connectors.errors import SchemaError
from models.mamba.model import Detections
from models.uploads import upload
from operators.admission import Admitted
from operators.base import Context
from operators.counters import STREAM_COUNTERS, Counters
from operators.frames import Frame, admit_frames, as_tensors
from operators.mamba.config import MambaOptions
from operators.mamba.declaration import MambaDeclaration
from operators.mamba.detector import Frames, StreamDetector
from operators.mamba.rules import color_histogram, correlation
from operators.mamba.schemas import STATUSES, Detected, detection_columns, detection_schema
from operators.mamba.settings import adapt_config, config_hash, reported_labels
from operators.mamba.streams import MambaStream, Packed, export_streams, import_streams
from operators.mamba.weights import build_model, model_id
from operators.output import OutputRows
from operators.rounds import rounds
from operators.state import State
from operators.streams import StreamTable

__all__ = ["MambaOperator"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    """One row that goes through the network."""

    row: int
    slot: int
    image: Frame
    write: bool = True
    reset: bool = False
    references: list[Packed] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    """One call of ``process``: what became of its rows, and the jobs that wait for the network."""

    out: OutputRows
    began_s: float
    found: dict[int, Detected] = field(default_factory=dict)
    jobs: list[_Job] = field(default_factory=list)
    pixels: int = 0

    def take(self) -> list[_Job]:
        """Return all jobs that wait; none does any longer."""
        jobs, self.jobs, self.pixels = self.jobs, [], 0
        return jobs


class MambaOperator(MambaDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: MambaOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: MambaOptions = options
        model = build_model(options, context.name)
        self.model_id = model_id(model)
        model.config = adapt_config(model.config, options, context.name)
        self.detector = StreamDetector(context.name, model.fuse_for_inference(), options, context.device)
        self.output_schema = detection_schema(model.config.classes, config_hash(model.config, options))
        labels = reported_labels(model.config, options, context.name)
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self._counters = Counters(*STREAM_COUNTERS)
        self._streams = StreamTable(
            context.name,
            self._open,
            options,
            kind=MambaStream,
            counters=self._counters,
            ended=lambda stream_id, stream: self.detector.release(stream.slot),
        )

    def _open(self, stream_id: str, slot: int) -> MambaStream:
        self.detector.open(slot, stream_id)
        return MambaStream(slot)

    # Rows

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Detect in every frame of the batch, updating the memory of its stream. One row out per row in, but references."""
        records.require(batch, self.input_schema, self.context.name)
        references = self._reference_rows(batch)
        call = _Call(OutputRows(batch, self.output_schema, STATUSES), time.perf_counter())

        def before_eviction(stream: MambaStream) -> None:
            if any(job.slot == stream.slot for job in call.jobs):
                self._run(call)  # the rows of that stream come before its end

        for frame in admit_frames(
            batch,
            self._streams,
            call.out,
            before_eviction=before_eviction,
            problem=self._too_small,
            refusal=lambda stream, row: stream.no_reference() if row in references else None,
            timeless=references,
            read_late=self.options.late == "read_only",
        ):
            assert frame.content is not None  # all are wanted
            if frame.row in references:
                frame.stream.references.append(Packed.of(batch, frame.row))
                call.out.drop(frame.row)
                continue
            job = _Job(frame.row, frame.stream.slot, frame.content, write=not frame.is_late)
            if not frame.is_late:
                job.reset = self._is_new_scene(frame, frame.content, call.out)
                job.references, frame.stream.references = frame.stream.references, []
            height, width = self.detector.model.padded_size(*frame.content.shape[:2])
            call.jobs.append(job)
            call.pixels += height * width * (1 + len(job.references))
            if call.pixels >= self.options.chunk_mpix * 1e6:
                self._run(call)
        self._run(call)
        self._counters.note(call.out)
        return call.out.batches(detection_columns(call.found, batch.num_rows, self.model_id))

    def _reference_rows(self, batch: pa.RecordBatch) -> frozenset[int]:
        """Return the rows that hold reference frames of the initialization ``spread``."""
        if self.options.init != "spread":
            return frozenset()
        if "role" not in batch.schema.names:
            raise SchemaError(
                f"{self.context.name}: init='spread' needs a column 'role' that marks reference frames; "
                "set references (say 14) on the video source, or init='self'"
            )
        return frozenset(row for row, role in enumerate(batch.column("role").to_pylist()) if role == "reference")

    def _too_small(self, image: Frame) -> str | None:
        height, width = image.shape[:2]
        if self.detector.model.is_too_small(height, width):
            return f"an image of {height}x{width} px is too small or too narrow"
        return None

    def _is_new_scene(self, frame: Admitted[MambaStream, Frame | None], image: Frame, out: OutputRows) -> bool:
        """Tell whether the stream's memory must be forgotten before this frame, and say why."""
        reasons = []
        options, stream = self.options, frame.stream
        if options.max_gap_s is not None and frame.gap_s is not None and frame.gap_s > options.max_gap_s:
            reasons.append(f"{frame.gap_s:.3f} s since the last frame, max_gap_s is {options.max_gap_s}")
        if options.on_cut == "reset":
            histogram = color_histogram(image)
            if stream.histogram is not None:
                likeness = correlation(stream.histogram, histogram)
                if likeness < options.cut_correlation:
                    reasons.append(f"scene cut: histograms correlate {likeness:.3f}")
            stream.histogram = histogram
        if reasons:
            out.set(frame.row, "reset", "; ".join(reasons))
        return bool(reasons)

    # Frames

    def _run(self, call: _Call) -> None:
        """Take the frames that wait through the network: all at once what needs no memory, then in rounds, one per stream."""
        jobs = call.take()
        if not jobs:
            return
        looked = self._look([job.image for job in jobs])
        for members in rounds(np.array([job.slot for job in jobs])):
            round_jobs = members.tolist()
            resets = [jobs[i].slot for i in round_jobs if jobs[i].reset]
            if resets:
                self.detector.clear(self._slots(resets))
            empty = self.detector.is_empty(self._slots([jobs[i].slot for i in round_jobs]))
            groups: dict[tuple[bool, Any], list[int]] = {}
            for i, is_empty in zip(round_jobs, empty, strict=True):
                groups.setdefault((is_empty and jobs[i].write, looked.key(i)), []).append(i)
            for (first, _), group in groups.items():
                self._run_group(first, [jobs[i] for i in group], *looked.take(group), call)

    def _run_group(self, first: bool, jobs: list[_Job], frames: Frames, scales_B2: Tensor, call: _Call) -> None:
        slots_B = self._slots([job.slot for job in jobs])
        if first:
            found = self.detector.start(slots_B, frames, *self._references(jobs, frames))
        else:
            found = self.detector.step(slots_B, frames, write_B=torch.tensor([job.write for job in jobs]))
        scales = scales_B2.cpu()
        latency_ms = (time.perf_counter() - call.began_s) * 1e3
        for b, job in enumerate(jobs):
            if not found.finite_B[b]:
                call.out.set(job.row, "rejected_corrupt", "the features of this frame are not finite")
                continue
            detections = self._reported(_to_original(found.detections[b], scales[b]))
            call.found[job.row] = Detected(detections, found.bank_size_BL[b], found.keys_used_BL[b], latency_ms)
            if not len(detections.scores_D) and call.out.is_ok(job.row):
                call.out.set(job.row, "no_detection")

    def _reported(self, detections: Detections) -> Detections:
        """Return the detections of the classes that are reported."""
        if self._labels is None:
            return detections
        kept_D = torch.isin(detections.labels_D, self._labels)
        return Detections(*(column[kept_D] for column in detections))

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

    def _look(self, images: Sequence[Frame]) -> _Looked:
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
                prepared = model.prepare(as_tensors([images[i] for i in chunk]), self.context.device)
                frames = self.detector.look(prepared.pixels_BCHW, prepared.sizes_B2)
                looked.add(chunk, frames, prepared.scales_B2)
        return looked

    def _slots(self, slots: list[int]) -> Tensor:
        """Return slots on the host, as the detector takes them."""
        return torch.tensor(slots, dtype=torch.int64)

    # Streams

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream and free its slot."""
        self._streams.close(stream_id)

    def metrics(self) -> dict[str, float]:
        """Return bank bytes, streams with a slot and counters of the whole run."""
        return {
            "bank_bytes": float(self.detector.bytes()),
            "streams": float(len(self._streams)),
            **self._counters.gauges(),
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all streams, or of those that changed since the last call with the bank rows that changed."""
        with self._streams.snapshot(incremental=incremental, weights=self.model_id) as (state, streams):
            self.detector.export(self._slots([stream.slot for stream in streams]), state, incremental=incremental)
            export_streams(streams, state)
        self.detector.mark_clean()
        return state

    def restore(self, state: State) -> None:
        """Replace all streams by those of a full ``state``."""
        hint = "banks hold rows projected by the weights, so resume with the same checkpoint"
        live, streams = self._streams.restore(state, weights=self.model_id, hint=hint)
        if streams:
            self.detector.load(self._slots([stream.slot for stream in streams]), live)
            import_streams(streams, live)
        self.detector.mark_clean()


class _Looked:
    """Frames of one or several padded sizes after ``look``, addressed by their position in the list of images."""

    def __init__(self) -> None:
        self._parts: dict[Any, list[Frames]] = {}
        self._scales: dict[Any, list[Tensor]] = {}
        self._place: dict[int, tuple[Any, int]] = {}

    def add(self, members: list[int], frames: Frames, scales_B2: Tensor) -> None:
        """Take the frames of these images."""
        # Maps stack only if they have one size; without the pixel level there are no maps anymore, and everything stacks.
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
        index = upload(torch.tensor([self._place[image][1] for image in images]), scales[0].device)
        return parts[0].take(index), scales[0][index]


def _to_original(detections: Detections, scale_2: Tensor) -> Detections:
    """Return boxes in pixels of the original image."""
    return detections._replace(boxes_D4=detections.boxes_D4 / scale_2[[1, 0, 1, 0]])
