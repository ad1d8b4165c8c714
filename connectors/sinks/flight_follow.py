"""The other end of the sink ``flight`` for one who wants all rows as they come, for as long as they come.

Connects again by itself: the pipeline may start later than who follows it, end, and start again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors.sinks.flight_tail import reason, subscribe

__all__ = ["FlightFollower"]

_AGAIN_S = 1.0


class FlightFollower:
    """Hands the rows of one input to ``take``, in a thread of its own; a batch without rows carries a note only."""

    def __init__(
        self,
        location: str,
        source: str,
        take: Callable[[pa.RecordBatch, dict[str, Any]], None],
        *,
        token: str | None,
        certificate: Path | None,
    ) -> None:
        self._location, self._source, self._take = location, source, take
        self._token, self._certificate = token, certificate
        self._closed = threading.Event()
        self._reader: Any = None
        self.problem: str | None = "not connected yet"
        """Why no rows come; None while they can."""
        self._thread = threading.Thread(target=self._follow, name=f"rows of {source}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the subscription. May be called twice."""
        self._closed.set()
        reader = self._reader
        if reader is not None:
            reader.cancel()
        self._thread.join(_AGAIN_S)

    def _follow(self) -> None:
        while not self._closed.is_set():
            try:
                self._reader = subscribe(self._location, self._source, None, token=self._token, certificate=self._certificate)
                self.problem = None
                while not self._closed.is_set():
                    chunk = self._reader.read_chunk()
                    note = {} if chunk.app_metadata is None else json.loads(chunk.app_metadata.to_pybytes())
                    self._take(chunk.data, note)
            except StopIteration:
                self.problem = "the run has ended"
            except (pa.ArrowException, OSError) as error:
                self.problem = reason(error)
            self._closed.wait(_AGAIN_S)
