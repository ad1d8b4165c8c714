"""Sink: an Arrow Flight server for live subscribers. Rows are shown as they come, before they are committed.

Nothing is stored: who subscribes sees what comes from then on, at most once, and again what is processed again after a crash.
Notes in the stream's metadata say where an epoch ends and when it is committed.
"""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from connectors.base import Shown, Sink, Staged, Tail
from connectors.errors import ConfigError, SinkError
from connectors.options import option
from connectors.sinks.flight_server import Channel, FlightServer
from connectors.sinks.tables import ColumnOptions, Columns, require_kept

if TYPE_CHECKING:
    from connectors.sinks.flight_follow import FlightFollower

__all__ = ["FlightOptions", "FlightSink"]

_log = logging.getLogger(__name__)

_LAST_ROWS_S = 1.0
_ANY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlightOptions(ColumnOptions):
    """Options of the sink ``flight``; columns are chosen of a single input only."""

    host: str = option("127.0.0.1", "Address to listen on. Off loopback both token and TLS are needed.")
    port: int = option(
        8815, "Port of the first shard; the next shards count up. 0: any free port, told in the log.", ge=0, le=65535
    )
    token: str | None = option(None, "Subscribers must send it as 'authorization: Bearer <token>'.", secret=True)
    tls_certificate: Path | None = option(None, "Certificate chain of the server, PEM.")
    tls_key: Path | None = option(None, "Its private key, PEM.")
    client_ca: Path | None = option(None, "Certificates, PEM: subscribers must bear one that these have signed (mutual TLS).")
    queue_mib: float = option(64.0, "Rows that may wait for one subscriber; the oldest are dropped.", unit="MiB", gt=0)
    max_subscribers: int = option(32, "Subscriptions at the same time, per input; each takes a thread.", ge=1)

    def __post_init__(self) -> None:
        ColumnOptions.__post_init__(self)
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("'tls_certificate' and 'tls_key' belong together: give both, or neither")
        if self.client_ca is not None and self.tls_key is None:
            raise ConfigError("'client_ca' needs TLS: give 'tls_certificate' and 'tls_key', too")
        if not _is_loopback(self.host) and (self.token is None or self.tls_key is None):
            raise ConfigError(
                f"'host' {self.host!r} can be reached from other machines: give 'token', 'tls_certificate' and 'tls_key', "
                "or listen on 127.0.0.1"
            )


class FlightSink(Sink):
    """Sends rows to whoever subscribes. A slow subscriber loses rows; it never holds the pipeline up."""

    Options: ClassVar[type] = FlightOptions
    options: FlightOptions

    def __init__(self, options: FlightOptions) -> None:
        super().__init__(options)
        self._columns: dict[str, Columns] = {}
        self._channels: dict[str, Channel] = {}
        self._server: FlightServer | None = None

    def examine(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Look up the columns of all inputs."""
        self._choose(schemas)

    def open(self, schemas: Mapping[str, pa.Schema], *, attempt: int, shard: int) -> None:
        """Start the server."""
        options = self.options
        self._columns = self._choose(schemas)
        self._channels = {
            name: Channel(
                columns.schema, queue_bytes=int(options.queue_mib * 1024 * 1024), max_subscribers=options.max_subscribers
            )
            for name, columns in self._columns.items()
        }
        port = options.port + shard if options.port else 0
        tls = None
        if options.tls_certificate is not None and options.tls_key is not None:
            tls = (_pem("tls_certificate", options.tls_certificate), _pem("tls_key", options.tls_key))
        client_ca = _pem("client_ca", options.client_ca) if options.client_ca is not None else None
        try:
            self._server = FlightServer(
                self._location(options.host, port), self._channels, token=options.token, tls=tls, client_ca=client_ca
            )
        except (pa.ArrowException, OSError) as error:
            raise SinkError(
                f"flight: cannot listen on {options.host}:{port}: {error}. Is the port taken, or a certificate not PEM?"
            ) from error
        _log.info("flight listening at %s", self.location)

    @property
    def location(self) -> str:
        """Where subscribers connect to."""
        assert self._server is not None  # after open
        return self._location(self.options.host, self._server.port)

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Hand rows to the subscribers of this input."""
        if batch.num_rows:
            self._channels[source].put(self._columns[source].apply(batch))

    def prepare(self, epoch: int) -> list[Staged]:
        """Tell subscribers that the epoch ends here. Nothing is staged."""
        for channel in self._channels.values():
            channel.note({"end_of_epoch": epoch})
        return []

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Tell subscribers that the epoch is committed."""
        for channel in self._channels.values():
            channel.note({"committed": epoch})

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Do nothing: nothing is stored."""

    def incomplete(self) -> Mapping[str, int]:
        """Return how many rows subscribers have lost that read too slowly; a row that two have lost counts twice."""
        return {
            "were dropped for a subscriber that read too slowly": sum(channel.dropped for channel in self._channels.values())
        }

    def close(self) -> None:
        """End the server. Subscribers have a second to take what waits; none of them keeps the run from ending."""
        server, self._server = self._server, None
        if server is None:
            return
        ending = threading.Thread(target=server.shutdown, name="flight shutdown", daemon=True)
        for drop in (False, True):
            for channel in self._channels.values():
                channel.close(drop=drop)
            if not drop:
                ending.start()
            ending.join(_LAST_ROWS_S)
        if ending.is_alive():
            _abandon(server)

    def shown(self, column: str) -> Shown:
        """Return that rows are shown at once, to whoever knows the port and bears no certificate of its own."""
        if self.options.port == 0:
            raise ConfigError("its port is 0, so nobody can know which one it is; choose a port")
        if self.options.client_ca is not None:
            raise ConfigError("it asks for a client certificate")
        require_kept(self.options.columns, self.options.exclude, column)
        return Shown.AT_ONCE

    def tail(self, source: str, column: str, streams: Sequence[str], shards: Sequence[int]) -> Tail:
        """Subscribe at the servers of ``shards``, on this machine where they listen on all addresses."""
        from connectors.sinks.flight_tail import FlightTail

        options = self.options
        host = "localhost" if options.host in _ANY_ADDRESS else options.host
        locations = [self._location(host, options.port + shard) for shard in shards]
        return FlightTail(locations, source, column, streams, token=options.token, certificate=options.tls_certificate)

    def follow(self, source: str, shards: int, take: Callable[[pa.RecordBatch, dict[str, Any]], None]) -> list[FlightFollower]:
        """Follow all rows of node ``source``, from another process: ``take`` gets them with what a message notes.

        One follower for each of the sink's ``shards``; close them.
        """
        from connectors.sinks.flight_follow import FlightFollower

        options = self.options
        host = "localhost" if options.host in _ANY_ADDRESS else options.host
        return [
            FlightFollower(
                self._location(host, options.port + shard),
                source,
                take,
                token=options.token,
                certificate=options.tls_certificate,
            )
            for shard in range(shards)
        ]

    def _location(self, host: str, port: int) -> str:
        scheme = "grpc+tls" if self.options.tls_key else "grpc"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def _choose(self, schemas: Mapping[str, pa.Schema]) -> dict[str, Columns]:
        if self.options.columns is not None and len(schemas) != 1:
            raise ConfigError(f"'columns' needs a single input, these are {sorted(schemas)}; leave it out, or use 'exclude'")
        chosen = {}
        for name, schema in schemas.items():
            exclude = [column for column in self.options.exclude if len(schemas) == 1 or column in schema.names]
            chosen[name] = Columns(self.options.columns, exclude, schema)
            if "stream_id" not in chosen[name].schema.names:
                raise ConfigError("'stream_id' must be among the columns: subscribers choose streams by it")
        return chosen


def _abandon(server: FlightServer) -> None:
    """Let the process end though a client has stopped reading in the middle of a message.

    Arrow would wait for that client for ever: when the interpreter ends (``weakref.finalize``), and when the server is freed.
    """
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        found = finalizer.peek()
        if found is not None and found[0] is server:
            finalizer.atexit = False
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pem(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SinkError(f"flight: '{name}' {str(path)!r} cannot be read: {error.strerror}") from error
