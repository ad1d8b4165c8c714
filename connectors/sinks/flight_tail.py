"""The other end of the sink ``flight``: subscriptions of one who waits for a few rows."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from connectors.base import Row, Tail
from connectors.errors import SinkError

__all__ = ["FlightTail", "reason", "subscribe"]


def subscribe(location: str, source: str, streams: Sequence[str] | None, *, token: str | None, certificate: Path | None) -> Any:
    """Return a reader of the rows of node ``source`` and these streams, None: all, once the server has entered it.

    Raise what Arrow raises where the server cannot be reached, or refuses.
    """
    wanted = {"node": source} if streams is None else {"node": source, "streams": list(streams)}
    headers = [(b"authorization", b"Bearer " + token.encode())] if token is not None else []
    trusted: Mapping[str, Any] = {"tls_root_certs": certificate.read_bytes()} if certificate is not None else {}
    ticket, options = fl.Ticket(json.dumps(wanted).encode()), fl.FlightCallOptions(headers=headers)
    reader = fl.connect(location, **trusted).do_get(ticket, options)
    _ = reader.schema  # waits until the server has entered the subscription
    return reader


class FlightTail(Tail):
    """Rows of one input and some streams, from one server per shard; each is read by a thread.

    ``SinkError`` where a server does not take the subscription.
    """

    def __init__(
        self,
        locations: Sequence[str],
        source: str,
        column: str,
        streams: Sequence[str],
        *,
        token: str | None,
        certificate: Path | None,
    ) -> None:
        super().__init__(column)
        self._arrived: queue.SimpleQueue[pa.RecordBatch | Exception] = queue.SimpleQueue()
        self._readers: list[Any] = []
        for location in locations:
            try:
                reader = subscribe(location, source, streams, token=token, certificate=certificate)
                self._readers.append(reader)
            except (pa.ArrowException, OSError) as error:
                self.close()
                raise SinkError(
                    f"no subscription at {location}: {reason(error)}; is the pipeline running, on this machine, and with the "
                    "token and the certificate of this file?"
                ) from error
            threading.Thread(target=self._receive, args=(reader,), name=f"rows of {location}", daemon=True).start()

    def look(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Wait for the next batch."""
        with contextlib.suppress(queue.Empty):
            arrived = self._arrived.get(timeout=timeout_s)
            if isinstance(arrived, Exception):
                raise SinkError(f"the subscription has ended before the row came: {reason(arrived)}; has the run ended?")
            return self.matching(arrived, ids)
        return []

    def close(self) -> None:
        """End the subscriptions."""
        for reader in self._readers:
            reader.cancel()

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


def reason(error: Exception) -> str:
    """Return in one line what an error of Flight says."""
    return str(error).strip().splitlines()[0].split(". gRPC client debug context")[0] if str(error).strip() else repr(error)
