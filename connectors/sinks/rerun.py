"""Sink: recordings for the Rerun viewer, one file per epoch and shard (``part-<epoch>-<shard>-<n>.rrd``), or a live viewer too.

All files of a folder carry the same recording id, so that the viewer shows them as one: ``rerun FOLDER/*.rrd``. Files are
staged and published as by every file sink. A live viewer gets rows as they come, before their epoch is committed: after a
crash some come twice, at the same times. What is shown how stands in ``rerun_rows``.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from connectors import durable
from connectors.errors import ConfigError, SinkError
from connectors.extras import optional
from connectors.options import REQUIRED, option
from connectors.records import encode_streams
from connectors.sinks.rerun_rows import Looks, Thumbnails, log_classes, log_rows
from connectors.sinks.staged import FileSink, sha256_of

rr = optional("rerun")

__all__ = ["RerunOptions", "RerunSink"]

_SPAWN = "spawn"
_SCHEMES = ("rerun://", "rerun+http://", "rerun+https://")
_STREAMS = 256
"""Streams whose newest frames are kept for thumbnails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RerunOptions:
    """Options of the sink ``rerun``."""

    path: Path = option(REQUIRED, "Folder for the files; `rerun PATH/*.rrd` shows them as one recording.")
    viewer: str | None = option(
        None, "Show rows as they come, too: `spawn` a viewer, or the address of one, rerun+http://HOST:9876/proxy."
    )
    min_score: float = option(0.3, "Show detections from this score on.", ge=0.0, le=1.0)
    jpeg_quality: int = option(85, "Of pictures that are not JPEG or PNG already.", ge=1, le=100)
    points: int = option(20_000, "Points of a depth image, at most.", ge=1)
    thumbnails: int = option(600, "Newest frames of a stream that answers can show; older ones only have their time.", ge=0)
    thumbnail_side: int = option(160, "Longer side of these pictures.", unit="px", ge=16, le=1024)
    retrieved: int = option(6, "Frames that an answer rests on that are shown, the best first.", ge=0, le=64)

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        if self.viewer is not None and self.viewer != _SPAWN and not self.viewer.startswith(_SCHEMES):
            raise ConfigError(f"viewer={self.viewer!r}: write `spawn`, or an address such as rerun+http://127.0.0.1:9876/proxy")


class RerunSink(FileSink):
    """Writes what any nodes give: frames, boxes, answers, states, sensors, numbers."""

    Options: ClassVar[type] = RerunOptions
    suffix = ".rrd"
    options: RerunOptions

    def __init__(self, options: RerunOptions) -> None:
        super().__init__(options)
        self._schemas: dict[str, pa.Schema] = {}
        self._looks = Looks(
            min_score=options.min_score,
            jpeg_quality=options.jpeg_quality,
            points=options.points,
            shown=options.retrieved,
        )
        self._thumbnails: dict[str, Thumbnails] = {}
        self._recording: Any = None
        self._path: Path | None = None
        self._told: set[str] = set()
        self._rows = 0
        self._live: Any = None
        self._live_told: set[str] = set()

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        self._schemas = dict(schemas)

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Log rows, by stream."""
        if not batch.num_rows:
            return
        shown = [(self._open_recording(), self._told)]
        if self.options.viewer is not None:
            shown.append((self._open_live(self.options.viewer), self._live_told))
        streams, index_R = encode_streams(batch.column("stream_id"))
        for number, stream in enumerate(streams):
            part = batch if len(streams) == 1 else batch.filter(pa.array(index_R == number))
            entity = str(rr.new_entity_path([stream, source]))
            for recording, told in shown:
                if entity not in told:
                    told.add(entity)
                    log_classes(recording, entity, self._schemas[source])
                log_rows(recording, entity, part, self._looks, self._kept(stream))
        self._rows += batch.num_rows

    def _kept(self, stream: str) -> Thumbnails:
        """Return the newest frames of a stream; the stream that was seen first makes room."""
        kept = self._thumbnails.pop(stream, None) or Thumbnails(self.options.thumbnails, self.options.thumbnail_side)
        self._thumbnails[stream] = kept
        if len(self._thumbnails) > _STREAMS:
            del self._thumbnails[next(iter(self._thumbnails))]
        return kept

    def _new_recording(self) -> tuple[Any, str]:
        """Return a recording with the id and the name of this folder."""
        name = self.root.resolve()
        recording = rr.RecordingStream("streambank", recording_id=str(uuid.uuid5(uuid.NAMESPACE_URL, str(name))))
        return recording, self.root.parent.name or str(name)

    def _open_recording(self) -> Any:
        """Return the recording of this epoch."""
        if self._recording is None:
            self._path = self._new_path()
            self._recording, name = self._new_recording()
            try:
                self._recording.save(self._path)
            except (OSError, RuntimeError, ValueError) as error:
                raise SinkError(f"{self._path}: a recording cannot be written: {error}") from error
            self._recording.send_recording_name(name)
            self._told = set()
            self._rows = 0
        return self._recording

    def _open_live(self, viewer: str) -> Any:
        """Return the recording that a viewer shows; one that is away or is closed loses rows, and nothing else happens."""
        if self._live is None:
            self._live, name = self._new_recording()
            if viewer == _SPAWN:
                rr.spawn(connect=False)
                self._live.connect_grpc()
            else:
                self._live.connect_grpc(viewer)
            self._live.send_recording_name(name)
        return self._live

    def _flush(self) -> None:
        if self._recording is None or self._path is None:
            return
        try:
            self._recording.flush()
            self._recording.disconnect()
            durable.sync(self._path)
            size = self._path.stat().st_size
        except (OSError, RuntimeError) as error:
            raise SinkError(f"{self._path}: the recording cannot be finished: {error}; free space and resume") from error
        self._finished_file(self._path, partition="", rows=self._rows, size=size, sha256=sha256_of(self._path))
        self._recording = self._path = None

    def close(self) -> None:
        """See the contract."""
        super().close()
        if self._live is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the viewer is away
                self._live.disconnect()
            self._live = None

    def _drop(self) -> None:
        if self._recording is not None and self._path is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._recording.disconnect()
                self._path.unlink()
        self._recording = self._path = None
        self._thumbnails.clear()
