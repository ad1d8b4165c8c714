"""What a running pipeline shows right now: the newest frames, boxes, samples, states and answers of each stream.

Follows the sinks ``flight`` of the pipeline file; the pipeline runs in another process. Everything is bounded: streams, rows of
a stream, and the bytes of frames that are kept as evidence.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from connectors.records import channels_of
from connectors.sinks.annotated_video import boxes_of_rows, class_names
from connectors.sinks.flight import FlightSink
from pipelines import registry
from pipelines.outputs import address_of
from pipelines.serving.pictures import Boxes, Frame
from pipelines.spec import PipelineSpec

__all__ = ["Live", "LiveStream"]

_STREAMS = 256
_SAMPLES = 600
_ANSWERS = 100
_WAITING_FRAMES = 16
"""Newest frames of a stream among which the one that was detected last is looked for."""
_RATE_S = 10.0
_RECENT_S = 86_400.0
"""Rows older than this are no live ones: how far they lag behind the clock says nothing."""


@dataclass(slots=True)
class _Rate:
    """Rows a second over the last seconds."""

    arrivals: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=256))

    def add(self, rows: int) -> None:
        self.arrivals.append((time.monotonic(), rows))

    def value(self) -> float:
        now_s = time.monotonic()
        recent = [(at_s, rows) for at_s, rows in self.arrivals if now_s - at_s < _RATE_S]
        if not recent:
            return 0.0
        span_s = max(now_s - recent[0][0], 1.0)
        return sum(rows for _, rows in recent) / span_s


@dataclass(slots=True)
class LiveStream:
    """The newest of one stream. Times are microseconds since 1970."""

    name: str
    frames: deque[Frame] = field(default_factory=lambda: deque(maxlen=_WAITING_FRAMES))
    boxes: dict[str, Boxes] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)
    samples: deque[tuple[int, list[float | None]]] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    states: dict[int, tuple[int, float | None]] = field(default_factory=dict)
    """Event time → state and confidence, of the newest samples."""
    rates: dict[str, _Rate] = field(default_factory=dict)
    newest_us: dict[str, int] = field(default_factory=dict)
    """Node → event time of its newest row."""
    status: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Node → the newest status that is not ok, with its error."""

    def shown(self) -> Frame | None:
        """Return the newest frame that every detector has seen, else the newest one."""
        if not self.frames:
            return None
        if self.boxes:
            passed = min(boxes.sequence for boxes in self.boxes.values())
            for frame in reversed(self.frames):
                if frame.sequence <= passed:
                    return frame
        return self.frames[-1]

    def summary(self) -> dict[str, Any]:
        """Return what a list of streams says about it."""
        newest_us = max(self.newest_us.values(), default=0)
        lag_s = time.time() - newest_us / 1e6
        frame = self.shown()
        return {
            "stream": self.name,
            "kind": "frames" if self.frames else "samples" if self.samples else "rows",
            "event_time": newest_us / 1e6,
            "lag_s": lag_s if 0 <= lag_s < _RECENT_S else None,
            "behind_s": None if frame is None else (self.frames[-1].time_us - frame.time_us) / 1e6,
            "rates": {node: round(rate.value(), 2) for node, rate in self.rates.items()},
            "frame": None if frame is None else frame.sequence,
            "drawn": None if frame is None else self.drawn(frame),
            "channels": self.channels,
            "state": None if not self.states else self.states[max(self.states)][0],
            "status": {node: {"status": status, "error": error} for node, (status, error) in self.status.items()},
        }

    def drawn(self, frame: Frame) -> str:
        """Return a name of a frame with its boxes: another picture has another name."""
        return f"{frame.sequence}-" + "-".join(str(boxes.sequence) for boxes in self.boxes.values())


class Live:
    """Follows a pipeline. Its methods may be called by any thread."""

    def __init__(self, spec: PipelineSpec, *, history_bytes: int) -> None:
        self._history_bytes, self._bytes = history_bytes, 0
        self._lock = threading.Lock()
        self._streams: OrderedDict[str, LiveStream] = OrderedDict()
        self._history: OrderedDict[tuple[str, int], Frame] = OrderedDict()
        """(stream, event time) → a frame that may become evidence, the oldest first."""
        self._answers: deque[dict[str, Any]] = deque(maxlen=_ANSWERS)
        self._answered = 0
        self._committed: int | None = None
        self._followers: list[Any] = []
        self.advice: str | None = None
        """What to add to the pipeline file so that there is something to see."""
        for node in spec.sinks:
            sink = node.build()
            if isinstance(sink, FlightSink):
                for source in node.inputs:
                    self._followers += sink.follow(source, node.shards, self._taker(source))
        if not self._followers:
            inputs = ", ".join(_worth_seeing(spec))
            self.advice = f"add to the pipeline file\nsinks:\n  live: {{type: flight, inputs: [{inputs}]}}"

    def close(self) -> None:
        """Follow no longer."""
        for follower in self._followers:
            follower.close()

    # What there is

    def streams(self) -> list[dict[str, Any]]:
        """Return a summary of each stream, in the order of their names."""
        with self._lock:
            return [self._streams[name].summary() for name in sorted(self._streams)]

    def names(self) -> list[str]:
        """Return the names of the streams."""
        with self._lock:
            return sorted(self._streams)

    def problem(self) -> str | None:
        """Return why nothing comes, None where rows can."""
        problems = [follower.problem for follower in self._followers if follower.problem is not None]
        return problems[0] if problems else None

    def committed(self) -> int | None:
        """Return the newest epoch that is known to be committed."""
        return self._committed

    def picture(self, name: str) -> tuple[Frame, list[Boxes]] | None:
        """Return the frame of a stream that is shown, and what to draw on it; None where there is none."""
        with self._lock:
            stream = self._streams.get(name)
            frame = None if stream is None else stream.shown()
            return None if stream is None or frame is None else (frame, list(stream.boxes.values()))

    def strip(self, name: str) -> dict[str, Any] | None:
        """Return the newest samples of a stream with their states; None for an unknown stream."""
        with self._lock:
            stream = self._streams.get(name)
            if stream is None:
                return None
            return {
                "stream": name,
                "channels": stream.channels,
                "times": [time_us / 1e6 for time_us, _ in stream.samples],
                "values": [values for _, values in stream.samples],
                "states": [stream.states.get(time_us, (None, None))[0] for time_us, _ in stream.samples],
            }

    def past_frame(self, name: str, time_us: int, *, within_us: int = 1_000_000) -> Frame | None:
        """Return the frame of a stream at this event time, or the nearest one that is kept."""
        with self._lock:
            frame = self._history.get((name, time_us))
            if frame is not None:
                return frame
            near = [key for key in self._history if key[0] == name and abs(key[1] - time_us) <= within_us]
            return self._history[min(near, key=lambda key: abs(key[1] - time_us))] if near else None

    def answers(self, after: int) -> tuple[int, list[dict[str, Any]]]:
        """Return rows of answers that have come since number ``after``, the newest first, and the number to go on with."""
        with self._lock:
            new = min(self._answered - after, len(self._answers))
            return self._answered, list(self._answers)[::-1][:new] if new > 0 else []

    # What comes

    def _taker(self, source: str) -> Any:
        def take(batch: pa.RecordBatch, note: Mapping[str, Any]) -> None:
            if "committed" in note:
                self._committed = int(note["committed"])
            if batch.num_rows:
                with self._lock:
                    self._take(source, batch)

        return take

    def _take(self, source: str, batch: pa.RecordBatch) -> None:
        names = batch.schema.names
        streams = [str(name) for name in batch.column("stream_id").to_pylist()]
        times = batch.column("event_time").cast(pa.int64()).to_pylist() if "event_time" in names else [0] * len(streams)
        counts: dict[str, int] = {}
        answers = "question_id" in names  # their time is that of asking
        for name, time_us in zip(streams, times, strict=True):
            counts[name] = counts.get(name, 0) + 1
            stream = self._stream(name)
            if not answers:
                stream.newest_us[source] = max(stream.newest_us.get(source, time_us), time_us)
        for name, rows in counts.items():
            self._streams[name].rates.setdefault(source, _Rate()).add(rows)
        if "image" in names:
            self._take_frames(batch, streams, times)
        elif "detections" in names:
            self._take_boxes(source, batch, streams)
        elif "question_id" in names and "question" in names and "status" in names:
            self._take_answers(batch)
        elif "values" in names:
            self._take_samples(batch, streams, times)
        elif "state" in names and "votes" in names:
            self._take_states(batch, streams, times)
        if "status" in names:
            self._take_status(source, batch, streams)

    def _stream(self, name: str) -> LiveStream:
        stream = self._streams.get(name)
        if stream is None:
            if len(self._streams) >= _STREAMS:
                self._streams.popitem(last=False)
            stream = self._streams[name] = LiveStream(name)
        self._streams.move_to_end(name)
        return stream

    def _take_frames(self, batch: pa.RecordBatch, streams: Sequence[str], times: Sequence[int]) -> None:
        columns = [batch.column(name).to_pylist() for name in ("sequence", "image", "encoding", "height", "width")]
        for name, time_us, sequence, image, encoding, height, width in zip(streams, times, *columns, strict=True):
            frame = Frame(name, sequence, time_us, image, encoding, height, width)
            self._stream(name).frames.append(frame)
            if image is not None:
                self._history[(name, time_us)] = frame
                self._bytes += len(image)
        while self._bytes > self._history_bytes and len(self._history) > 1:
            _, old = self._history.popitem(last=False)
            self._bytes -= len(old.image or b"")

    def _take_boxes(self, source: str, batch: pa.RecordBatch, streams: Sequence[str]) -> None:
        classes = class_names(batch.schema)
        sequences = batch.column("sequence").to_pylist()
        for name, sequence, boxes in zip(streams, sequences, boxes_of_rows(batch.column("detections")), strict=True):
            self._stream(name).boxes[source] = Boxes(source, sequence, boxes, classes)

    def _take_samples(self, batch: pa.RecordBatch, streams: Sequence[str], times: Sequence[int]) -> None:
        channels = channels_of(batch.schema) or []
        for name, time_us, values in zip(streams, times, batch.column("values").to_pylist(), strict=True):
            stream = self._stream(name)
            stream.channels = channels or [str(n) for n in range(len(values or []))]
            stream.samples.append((time_us, values or []))

    def _take_states(self, batch: pa.RecordBatch, streams: Sequence[str], times: Sequence[int]) -> None:
        columns = (batch.column(name).to_pylist() for name in ("state", "confidence"))
        for name, time_us, state, confidence in zip(streams, times, *columns, strict=True):
            if state is None:
                continue
            states = self._stream(name).states
            states[time_us] = (state, confidence)
            if len(states) > 2 * _SAMPLES:
                for old in sorted(states)[:_SAMPLES]:
                    del states[old]

    def _take_answers(self, batch: pa.RecordBatch) -> None:
        for row in batch.to_pylist():
            if row["question_id"] is not None:
                self._answers.append(row)
                self._answered += 1

    def _take_status(self, source: str, batch: pa.RecordBatch, streams: Sequence[str]) -> None:
        errors = batch.column("error").to_pylist() if "error" in batch.schema.names else [None] * len(streams)
        for name, status, error in zip(streams, batch.column("status").to_pylist(), errors, strict=True):
            if status in (None, "ok"):
                self._stream(name).status.pop(source, None)
            elif "question_id" not in batch.schema.names:
                self._stream(name).status[source] = (status, error)


def _worth_seeing(spec: PipelineSpec) -> list[str]:
    """Return the addresses of data and of all outputs of operators."""
    fed = {up for node in spec.operators for up in node.inputs}
    found = [node.name for node in spec.sources if node.name in fed]
    for node in spec.operators:
        kind = registry.load("operator", node.type)
        if not kind.outputs or getattr(kind, "output_schema", None) is not None:
            found.append(node.name)
        found += [address_of(node.name, name) for name in kind.outputs]
    return found
