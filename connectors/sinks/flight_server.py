"""The Arrow Flight server behind the sink ``flight``: who may subscribe, and a bounded queue for each who does.

Knows nothing of epochs. Invariant: ``Channel.put`` never waits for a subscriber. One that reads too slowly loses the oldest
rows that wait for it; every message tells it how many it has lost so far.
"""

from __future__ import annotations

import hmac
import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as fl

__all__ = ["Channel", "FlightServer", "plain_schema"]

_LOOK_S = 0.5
"""How often a subscriber's thread that has nothing to send looks whether its client has gone."""


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with dictionary columns as their values: a stream may not see one dictionary replace another."""
    fields = [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


class _Subscriber:
    """Messages that wait for one client: rows, or rows of none that only carry a note."""

    def __init__(self, streams: frozenset[str] | None, queue_bytes: int) -> None:
        self.streams = streams
        self.dropped = 0
        self._queue_bytes = queue_bytes
        self._waiting: deque[tuple[pa.RecordBatch, dict[str, Any]]] = deque()
        self._bytes = 0
        self._change = threading.Condition()
        self._closed = False

    def put(self, batch: pa.RecordBatch, note: dict[str, Any]) -> None:
        """Append a message; the oldest ones are dropped."""
        with self._change:
            self._waiting.append((batch, note))
            self._bytes += batch.nbytes
            while self._bytes > self._queue_bytes and len(self._waiting) > 1:
                lost, _ = self._waiting.popleft()
                self._bytes -= lost.nbytes
                self.dropped += lost.num_rows
            self._change.notify()

    def close(self, *, drop: bool) -> None:
        """Let the client have what waits, or drop it, then end."""
        with self._change:
            self._closed = True
            if drop:
                self._waiting.clear()
            self._change.notify()

    def take(self, timeout_s: float) -> tuple[pa.RecordBatch, dict[str, Any]] | None:
        """Return the next message; None after ``timeout_s`` without one. Raise ``EOFError`` at the end."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._closed, timeout_s)
            if self._waiting:
                batch, note = self._waiting.popleft()
                self._bytes -= batch.nbytes
                return batch, note
            if self._closed:
                raise EOFError
            return None


class Channel:
    """One input node of the sink: its schema and its subscribers."""

    def __init__(self, schema: pa.Schema, *, queue_bytes: int, max_subscribers: int) -> None:
        self.schema = plain_schema(schema)
        self.rows = 0
        self._gone_dropped = 0
        self._queue_bytes = queue_bytes
        self._max_subscribers = max_subscribers
        self._subscribers: set[_Subscriber] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def subscribers(self) -> int:
        """How many clients read now."""
        with self._lock:
            return len(self._subscribers)

    @property
    def dropped(self) -> int:
        """How many rows were dropped for slow clients, those that have gone and those that read now."""
        with self._lock:
            return self._gone_dropped + sum(subscriber.dropped for subscriber in self._subscribers)

    def put(self, batch: pa.RecordBatch) -> None:
        """Hand rows to all subscribers."""
        self.rows += batch.num_rows
        self._put(batch, {})

    def note(self, note: dict[str, Any]) -> None:
        """Hand a note to all subscribers, after the rows that came before it."""
        self._put(_no_rows(self.schema), note)

    def close(self, *, drop: bool = False) -> None:
        """End all subscriptions: when their clients have had what waits, or at once."""
        with self._lock:
            self._closed = True
            for subscriber in self._subscribers:
                subscriber.close(drop=drop)

    def subscribe(self, streams: frozenset[str] | None) -> _Subscriber:
        """Add a client that wants the rows of ``streams``, or all."""
        subscriber = _Subscriber(streams, self._queue_bytes)
        with self._lock:
            if len(self._subscribers) >= self._max_subscribers:
                raise fl.FlightUnavailableError(
                    f"all {self._max_subscribers} subscriptions are taken; try again later, or raise max_subscribers"
                )
            if self._closed:
                subscriber.close(drop=False)
            self._subscribers.add(subscriber)
        return subscriber

    def messages(self, subscriber: _Subscriber, context: Any) -> Iterator[tuple[pa.RecordBatch, pa.Buffer]]:
        """Yield what a client gets, until it or the sink ends. Runs in a thread of the server."""
        try:
            while not context.is_cancelled():
                try:
                    message = subscriber.take(_LOOK_S)
                except EOFError:
                    return
                if message is None:
                    continue
                batch, note = message
                if subscriber.streams is not None and batch.num_rows:
                    batch = batch.filter(pc.is_in(batch.column("stream_id"), pa.array(sorted(subscriber.streams))))
                    if not batch.num_rows:
                        continue
                note = {"dropped": subscriber.dropped, **note}
                yield _plain(batch, self.schema), pa.py_buffer(json.dumps(note).encode())
        finally:
            with self._lock:
                self._subscribers.discard(subscriber)
                self._gone_dropped += subscriber.dropped

    def _put(self, batch: pa.RecordBatch, note: dict[str, Any]) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        for subscriber in subscribers:
            subscriber.put(batch, note)


class FlightServer(fl.FlightServerBase):  # type: ignore[misc]
    """Serves channels by the name of their node."""

    def __init__(
        self,
        location: str,
        channels: Mapping[str, Channel],
        *,
        token: str | None,
        tls: tuple[bytes, bytes] | None,
        client_ca: bytes | None,
    ) -> None:
        super().__init__(
            location,
            middleware={"token": _TokenFactory(token)} if token is not None else None,
            tls_certificates=[tls] if tls is not None else None,
            verify_client=client_ca is not None,
            root_certificates=client_ca,
        )
        self._channels = channels

    def list_flights(self, context: Any, criteria: bytes) -> Iterator[fl.FlightInfo]:
        """List one flight per input node."""
        return (self._info(name) for name in self._channels)

    def get_flight_info(self, context: Any, descriptor: fl.FlightDescriptor) -> fl.FlightInfo:
        """Return schema and ticket of the node that a path names."""
        path = [part.decode(errors="replace") for part in descriptor.path or []]
        return self._info(self._known(path[0] if len(path) == 1 else "/".join(path)))

    def do_get(self, context: Any, ticket: fl.Ticket) -> fl.FlightDataStream:
        """Subscribe. The ticket is JSON: ``{"node": name, "streams": [ids]}``, both optional where there is one node."""
        wanted = _parse_ticket(ticket.ticket)
        names = list(self._channels)
        channel = self._channels[self._known(wanted.get("node", names[0] if len(names) == 1 else None))]
        streams = frozenset(wanted["streams"]) if wanted.get("streams") is not None else None
        return fl.GeneratorStream(channel.schema, channel.messages(channel.subscribe(streams), context))

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """List the actions."""
        return [("health", "rows, subscribers and dropped rows of every node, as JSON")]

    def do_action(self, context: Any, action: fl.Action) -> list[fl.Result]:
        """Answer ``health``."""
        if action.type != "health":
            raise fl.FlightServerError(f"unknown action {action.type!r}; allowed: health")
        health = {
            name: {"rows": channel.rows, "subscribers": channel.subscribers, "dropped": channel.dropped}
            for name, channel in self._channels.items()
        }
        return [fl.Result(pa.py_buffer(json.dumps(health).encode()))]

    def _known(self, name: object) -> str:
        if not isinstance(name, str) or name not in self._channels:
            raise fl.FlightServerError(f"no such node: {name!r}; allowed: {', '.join(self._channels)}")
        return name

    def _info(self, name: str) -> fl.FlightInfo:
        endpoint = fl.FlightEndpoint(json.dumps({"node": name}).encode(), [])  # no location: this server
        return fl.FlightInfo(self._channels[name].schema, fl.FlightDescriptor.for_path(name), [endpoint], -1, -1)


class _TokenFactory(fl.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets only calls through that bear the token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._wanted = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: Mapping[str, list[str]]) -> None:
        given = [value for name, values in headers.items() if name.lower() == "authorization" for value in values]
        if not any(hmac.compare_digest(self._wanted, value.encode()) for value in given):
            raise fl.FlightUnauthenticatedError("the header 'authorization: Bearer <token>' is missing or its token is wrong")


def _parse_ticket(ticket: bytes) -> dict[str, Any]:
    what = 'the ticket must be JSON like {"node": "detect", "streams": ["cam1"]}'
    try:
        wanted = json.loads(ticket or b"{}")
    except (ValueError, RecursionError):
        raise fl.FlightServerError(f"{what}; it is {ticket[:80]!r}") from None
    if not isinstance(wanted, dict) or not set(wanted) <= {"node", "streams"}:
        raise fl.FlightServerError(f"{what}; it is {ticket[:80]!r}")
    streams = wanted.get("streams")
    if streams is not None and not (isinstance(streams, list) and all(isinstance(stream, str) for stream in streams)):
        raise fl.FlightServerError(f"{what}; 'streams' is {streams!r}")
    return wanted


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
