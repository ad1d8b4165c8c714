"""Waiting for answers where a sink shows them: a Flight subscription, a topic, or the files that it commits.

A listener sees what comes after it was made; so it is made before the question is put. Rows are matched by a column of ids.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import SinkError
from connectors.sinks.flight import FlightOptions
from connectors.sinks.kafka import KafkaSinkOptions
from connectors.sinks.read import committed_files, read_file
from pipelines.asking.route import Route
from pipelines.runtime.keys import shard_of

__all__ = ["Listener", "Row", "listen"]

Row = dict[str, Any]

_LOOK_S = 0.2
_ANY_ADDRESS = ("0.0.0.0", "::")


def listen(route: Route, streams: Sequence[str]) -> Listener:
    """Begin to listen for answers about ``streams``. Raise a ``StreambankError`` where the sink cannot be reached."""
    options = route.sink.options
    if isinstance(options, FlightOptions):
        return _FlightListener(route, options, streams)
    if isinstance(options, KafkaSinkOptions):
        return _TopicListener(route, options)
    return _FileListener(route, Path(options.path))


class Listener(ABC):
    """Hands over the rows of some ids, each as a dict."""

    def __init__(self, route: Route) -> None:
        self._id_column = route.id_column

    @abstractmethod
    def take(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Return rows of ``ids`` that have come since; wait about ``timeout_s`` for the first."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening."""

    def _matching(self, table: pa.Table | pa.RecordBatch, ids: Collection[str]) -> list[Row]:
        if self._id_column not in table.schema.names or not table.num_rows:
            return []
        found = table.column(self._id_column).cast(pa.string())  # JSON lines may have been taken for another type
        rows: list[Row] = table.filter(pc.is_in(found, pa.array(sorted(ids)))).to_pylist()
        return rows


class _FileListener(Listener):
    """Files that are committed from now on. Each is read once."""

    def __init__(self, route: Route, path: Path) -> None:
        super().__init__(route)
        self._path = path
        self._seen = set(committed_files(path))

    def take(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Look for new files until some of them hold such rows."""
        ends_s = time.monotonic() + timeout_s
        while True:
            found: list[Row] = []
            for file in committed_files(self._path):
                if file not in self._seen:
                    self._seen.add(file)
                    found += self._matching(read_file(file), ids)
            left_s = ends_s - time.monotonic()
            if found or left_s <= 0:
                return found
            time.sleep(min(_LOOK_S, left_s))

    def close(self) -> None:
        """Do nothing: no file is open."""


class _FlightListener(Listener):
    """Subscriptions to the shards of the sink that the streams belong to, each read by a thread."""

    def __init__(self, route: Route, options: FlightOptions, streams: Sequence[str]) -> None:
        super().__init__(route)
        self._arrived: queue.SimpleQueue[pa.RecordBatch | Exception] = queue.SimpleQueue()
        self._readers: list[Any] = []
        shards = sorted({shard_of(stream, route.sink.shards) for stream in streams})
        try:
            for shard in shards:
                reader = self._subscribe(route, options, options.port + shard, streams)
                self._readers.append(reader)
                threading.Thread(target=self._receive, args=(reader,), name=f"answers {shard}", daemon=True).start()
        except (pa.ArrowException, OSError) as error:
            self.close()
            raise SinkError(
                f"sinks.{route.sink.name}: no subscription at {_location(options, options.port)}: {_reason(error)}; is the "
                "pipeline running, on this machine, and with the token and the certificate of this file?"
            ) from error

    def take(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Wait for the next messages."""
        ends_s = time.monotonic() + timeout_s
        found: list[Row] = []
        while not found and (left_s := ends_s - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                arrived = self._arrived.get(timeout=left_s)
                if isinstance(arrived, Exception):
                    raise SinkError(
                        f"the subscription has ended before the answer came: {_reason(arrived)}; has the run ended?"
                    )
                found = self._matching(arrived, ids)
        return found

    def close(self) -> None:
        """End the subscriptions."""
        for reader in self._readers:
            reader.cancel()

    def _subscribe(self, route: Route, options: FlightOptions, port: int, streams: Sequence[str]) -> Any:
        import pyarrow.flight as fl

        certificate = options.tls_certificate.read_bytes() if options.tls_certificate is not None else None
        client = fl.connect(_location(options, port), tls_root_certs=certificate)
        headers = [(b"authorization", b"Bearer " + options.token.encode())] if options.token is not None else []
        ticket = fl.Ticket(json.dumps({"node": route.operator.name, "streams": list(streams)}).encode())
        reader = client.do_get(ticket, fl.FlightCallOptions(headers=headers))
        _ = reader.schema  # waits until the server has entered the subscription
        return reader

    def _receive(self, reader: Any) -> None:
        try:
            while True:
                batch = reader.read_chunk().data
                if batch.num_rows:
                    self._arrived.put(batch)
        except StopIteration:
            self._arrived.put(EOFError("the sink has closed"))
        except (pa.ArrowException, OSError) as error:
            self._arrived.put(error)


class _TopicListener(Listener):
    """Messages that are committed from now on."""

    def __init__(self, route: Route, options: KafkaSinkOptions) -> None:
        from connectors.kafka.tail import TopicTail

        super().__init__(route)
        self._is_arrow = options.format == "arrow"
        self._tail = TopicTail(options, options.topic)

    def take(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Poll until there are such rows."""
        ends_s = time.monotonic() + timeout_s
        found: list[Row] = []
        while not found and (left_s := ends_s - time.monotonic()) > 0:
            for message in self._tail.take(min(left_s, 1.0)):
                found += self._rows(message, ids)
        return found

    def close(self) -> None:
        """Close the connection."""
        self._tail.close()

    def _rows(self, value: bytes, ids: Collection[str]) -> list[Row]:
        """Read one message; one that another program has written in another form holds no answer."""
        try:
            if self._is_arrow:
                return self._matching(pa.ipc.open_stream(pa.py_buffer(value)).read_all(), ids)
            row = json.loads(value)
        except (pa.ArrowException, OSError, ValueError):
            return []
        return [row] if isinstance(row, dict) and row.get(self._id_column) in ids else []


def _location(options: FlightOptions, port: int) -> str:
    host = "localhost" if options.host in _ANY_ADDRESS else f"[{options.host}]" if ":" in options.host else options.host
    return f"{'grpc+tls' if options.tls_key else 'grpc'}://{host}:{port}"


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].split(". gRPC client debug context")[0] if str(error).strip() else repr(error)
