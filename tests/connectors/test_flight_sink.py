"""The Flight sink with real clients: who may read, what a slow reader loses, and that it holds nobody up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from certificates import make_certificate

from connectors.errors import ConfigError, SinkError
from connectors.records import TIME_TYPE, output_schema
from connectors.sinks.flight import FlightOptions, FlightSink

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = output_schema("numbers", 1, [pa.field("value", pa.float64()), pa.field("image", pa.binary())])


def rows(start: int, count: int, *, word: str = "ok", size: int = 0) -> pa.RecordBatch:
    columns = [
        pa.array([f"cam{n % 2}" for n in range(start, start + count)]),
        pa.array(range(start, start + count), pa.int64()),
        pa.array(range(start, start + count), pa.int64()).cast(TIME_TYPE),
        pa.array([n / 8 for n in range(start, start + count)]),
        pa.array([b"x" * size] * count, pa.binary()),
        pa.array([word] * count).dictionary_encode().cast(SCHEMA.field("status").type),
        pa.nulls(count, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


Start = Callable[..., FlightSink]


@pytest.fixture
def start() -> Iterator[Start]:
    sinks: list[FlightSink] = []

    def make(schemas: dict[str, pa.Schema] | None = None, **options: Any) -> FlightSink:
        sink = FlightSink(FlightOptions(port=0, **options))
        sink.open(schemas or {"detect": SCHEMA}, attempt=1, shard=0)
        sinks.append(sink)
        return sink

    yield make
    for sink in sinks:
        sink.close()


class Reader(threading.Thread):
    """A client that keeps what it gets."""

    def __init__(self, sink: FlightSink, ticket: dict[str, Any] | None = None, **connection: Any) -> None:
        super().__init__(daemon=True)
        self.batches: list[pa.RecordBatch] = []
        self.notes: list[dict[str, Any]] = []
        self._client = fl.connect(sink.location, **connection)
        before = health(self._client)
        node = (ticket or {}).get("node", "detect")
        self._stream = self._client.do_get(fl.Ticket(json.dumps(ticket or {}).encode()))
        self.start()
        while health(self._client)[node]["subscribers"] == before[node]["subscribers"]:
            time.sleep(0.001)

    def run(self) -> None:
        for chunk in self._stream:
            self.notes.append(json.loads(chunk.app_metadata.to_pybytes()))
            if chunk.data.num_rows:
                self.batches.append(chunk.data)

    def read(self) -> pa.Table:
        """Wait for the end; return all rows."""
        self.join(120)
        assert not self.is_alive()
        return pa.Table.from_batches(self.batches)


def health(client: fl.FlightClient) -> dict[str, Any]:
    (result,) = client.do_action(fl.Action("health", b""))
    answer = json.loads(result.body.to_pybytes())
    assert isinstance(answer, dict)
    return answer


def test_subscribers_get_rows_as_they_come_and_are_told_of_epochs(start: Start) -> None:
    sink = start()
    reader, second = Reader(sink), Reader(sink, {"streams": ["cam1"]})
    sink.write("detect", rows(0, 4))
    sink.write("detect", rows(4, 2, word="late"))  # a dictionary of its own
    assert sink.prepare(7) == []
    sink.commit(7, [])
    sink.close()
    table = reader.read()
    assert table["sequence"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["status"].to_pylist() == ["ok"] * 4 + ["late"] * 2
    assert table.schema.field("status").type == pa.string()
    assert reader.notes == [{"dropped": 0}, {"dropped": 0}, {"dropped": 0, "end_of_epoch": 7}, {"dropped": 0, "committed": 7}]
    assert second.read()["sequence"].to_pylist() == [1, 3, 5]


def test_flights_are_listed_with_a_ticket_that_works(start: Start) -> None:
    sink = start({"detect": SCHEMA, "means": SCHEMA}, exclude=["image"])
    client = fl.connect(sink.location)
    infos = {info.descriptor.path[0].decode(): info for info in client.list_flights()}
    assert set(infos) == {"detect", "means"}
    assert infos["means"].schema.names == [name for name in SCHEMA.names if name != "image"]
    info = client.get_flight_info(fl.FlightDescriptor.for_path("means"))
    reader = Reader(sink, json.loads(info.endpoints[0].ticket.ticket))
    sink.write("detect", rows(0, 1))
    sink.write("means", rows(5, 1))
    sink.close()
    assert reader.read()["sequence"].to_pylist() == [5]


def test_each_output_of_an_operator_is_a_flight_by_its_address(start: Start) -> None:
    sink = start({"detect.boxes": SCHEMA, "detect.tracks": SCHEMA})
    reader = Reader(sink, {"node": "detect.tracks"})
    sink.write("detect.boxes", rows(0, 3))
    sink.write("detect.tracks", rows(3, 2))
    client = fl.connect(sink.location)
    assert [str(info.descriptor.path[0], "ascii") for info in client.list_flights()] == ["detect.boxes", "detect.tracks"]
    assert client.get_flight_info(fl.FlightDescriptor.for_path("detect.tracks")).schema.names == SCHEMA.names
    sink.close()
    assert reader.read()["sequence"].to_pylist() == [3, 4]


def test_a_subscriber_that_does_not_read_loses_the_oldest_rows_and_holds_nobody_up(start: Start) -> None:
    sink = start(queue_mib=1.0)
    fast = Reader(sink)
    slow = fl.connect(sink.location)
    stream = slow.do_get(fl.Ticket(b"{}"))
    while health(slow)["detect"]["subscribers"] < 2:
        time.sleep(0.001)
    count = 64
    for n in range(count):
        sink.write("detect", rows(n, 1, size=1 << 19))
        while len(fast.batches) <= n:  # the fast one keeps up, whatever the slow one does
            time.sleep(0.001)
    sink.write("detect", rows(count, 1))
    got, dropped = [], 0
    while count not in got:
        chunk = stream.read_chunk()
        got += chunk.data["sequence"].to_pylist()
        dropped = json.loads(chunk.app_metadata.to_pybytes())["dropped"]
    assert got == sorted(got)
    assert dropped > 0
    assert dropped == count + 1 - len(got)
    assert list(sink.incomplete().values()) == [dropped]


_STALL = """
import sys, time
import pyarrow.flight as fl
stream = fl.connect(sys.argv[1]).do_get(fl.Ticket(b"{}"))
time.sleep(600)
"""

_RUN = """
import os, subprocess, sys, time
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_flight_sink import SCHEMA, FlightOptions, FlightSink, rows
sink = FlightSink(FlightOptions(port=0))
sink.open({"detect": SCHEMA}, attempt=1, shard=0)
client = subprocess.Popen([sys.executable, "-c", sys.argv[2], sink.location])
while not sink._channels["detect"].subscribers:
    time.sleep(0.01)
for n in range(64):
    sink.write("detect", rows(n, 1, size=1 << 20))
sink.close()
print(client.pid, flush=True)
"""


@pytest.mark.heavy
def test_a_process_ends_though_a_subscriber_has_stopped_reading() -> None:
    folders = f"{ROOT / 'tests/connectors'}{os.pathsep}{ROOT / 'tests/support'}"
    process = subprocess.Popen([sys.executable, "-c", _RUN, folders, _STALL], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    client = int(process.stdout.readline())
    try:
        assert process.wait(120) == 0
        os.kill(client, 0)  # the subscriber is still there
    finally:
        os.kill(client, signal.SIGKILL)
        process.kill()
        process.stdout.close()


def test_a_subscriber_that_goes_is_forgotten(start: Start) -> None:
    sink = start(max_subscribers=1)
    client = fl.connect(sink.location)
    stream = client.do_get(fl.Ticket(b"{}"))
    while health(client)["detect"]["subscribers"] < 1:
        time.sleep(0.001)
    with pytest.raises(fl.FlightUnavailableError, match="all 1 subscriptions are taken"):
        client.do_get(fl.Ticket(b"{}")).read_chunk()
    stream.cancel()
    deadline = time.monotonic() + 120
    while health(client)["detect"]["subscribers"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_token_is_asked_for_in_every_call(start: Start) -> None:
    sink = start(token="right")
    for headers in ([], [(b"authorization", b"Bearer wrong")], [(b"authorization", b"right")]):
        client = fl.connect(sink.location)
        options = fl.FlightCallOptions(headers=headers)
        for call in (
            lambda c=client, o=options: list(c.list_flights(options=o)),
            lambda c=client, o=options: list(c.do_action(fl.Action("health", b""), options=o)),
            lambda c=client, o=options: c.do_get(fl.Ticket(b"{}"), options=o).read_chunk(),
        ):
            with pytest.raises(fl.FlightUnauthenticatedError, match="its token is wrong"):
                call()
    options = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer right")])
    assert len(list(fl.connect(sink.location).list_flights(options=options))) == 1


def test_tls_serves_clients_that_trust_the_certificate_and_no_plain_ones(start: Start, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    sink = start(host="0.0.0.0", token="t", tls_certificate=certificate, tls_key=key)
    port = sink.location.rpartition(":")[2]
    options = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer t")], timeout=60)
    client = fl.connect(f"grpc+tls://localhost:{port}", tls_root_certs=certificate.read_bytes())
    assert len(list(client.list_flights(options=options))) == 1
    with pytest.raises(fl.FlightUnavailableError):
        list(fl.connect(f"grpc+tcp://localhost:{port}").list_flights(options=options))


def test_mutual_tls_refuses_a_client_without_a_certificate(start: Start, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    sink = start(tls_certificate=certificate, tls_key=key, client_ca=certificate)
    location = f"grpc+tls://localhost:{sink.location.rpartition(':')[2]}"
    root = certificate.read_bytes()
    known = fl.connect(location, tls_root_certs=root, cert_chain=root, private_key=key.read_bytes())
    assert len(list(known.list_flights(options=fl.FlightCallOptions(timeout=60)))) == 1
    with pytest.raises(fl.FlightUnavailableError):
        list(fl.connect(location, tls_root_certs=root).list_flights(options=fl.FlightCallOptions(timeout=60)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines: give 'token', 'tls_certificate' and 'tls_key'"),
        ({"host": "192.0.2.1", "token": "t"}, "can be reached from other machines"),
        ({"tls_key": Path("k.pem")}, "belong together"),
        ({"client_ca": Path("ca.pem")}, "'client_ca' needs TLS"),
    ],
)
def test_plain_text_off_loopback_and_half_a_tls_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FlightOptions(**options)


def test_columns_are_checked_before_the_run() -> None:
    with pytest.raises(ConfigError, match="'stream_id' must be among the columns"):
        FlightSink(FlightOptions(columns=["value"])).examine({"detect": SCHEMA})
    with pytest.raises(ConfigError, match="'columns' needs a single input"):
        FlightSink(FlightOptions(columns=["stream_id"])).examine({"a": SCHEMA, "b": SCHEMA})


def test_a_taken_port_and_an_unreadable_certificate_are_told(start: Start, tmp_path: Path) -> None:
    taken = int(start().location.rpartition(":")[2])
    second = FlightSink(FlightOptions(port=taken))
    with pytest.raises(SinkError, match=f"cannot listen on 127.0.0.1:{taken}"):
        second.open({"detect": SCHEMA}, attempt=1, shard=0)
    missing = FlightSink(FlightOptions(port=0, tls_certificate=tmp_path / "c.pem", tls_key=tmp_path / "k.pem"))
    with pytest.raises(SinkError, match=r"'tls_certificate' .* cannot be read"):
        missing.open({"detect": SCHEMA}, attempt=1, shard=0)


@pytest.mark.parametrize("ticket", [b"no json", b'{"nodes": "detect"}', b'{"streams": "cam1"}', b'{"node": "other"}', b"[]"])
def test_a_wrong_ticket_says_what_is_allowed(start: Start, ticket: bytes) -> None:
    with pytest.raises(fl.FlightServerError, match=r"the ticket must be JSON|no such node: 'other'; allowed: detect"):
        fl.connect(start().location).do_get(fl.Ticket(ticket)).read_chunk()
