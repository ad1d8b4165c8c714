"""Hostile subscribers: too many, without the right token, with bytes that are no text. Others get every row meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from connectors.records import key_schema
from connectors.sinks.flight import FlightOptions, FlightSink

SCHEMA = key_schema("numbers", 1, [pa.field("x", pa.int64())])
TOKEN, OTHERS = "right-4711", ["", "right-471", "right-47111", "RIGHT-4711", "right-4712", "räight", "\x00", "x" * 4000]
NO_TEXT = [b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"a\x80", b"\x00"]

Start = Callable[..., FlightSink]


@pytest.fixture
def start() -> Iterator[Start]:
    sinks: list[FlightSink] = []

    def make(**options: Any) -> FlightSink:
        sink = FlightSink(FlightOptions(port=0, **options))
        sink.open({"numbers": SCHEMA}, attempt=1, shard=0)
        sinks.append(sink)
        return sink

    yield make
    for sink in sinks:
        sink.close()


def rows(count: int) -> pa.RecordBatch:
    numbers = pa.array(range(count), pa.int64())
    columns = [pa.repeat("a", count), numbers, numbers.cast(pa.timestamp("us")), numbers]
    return pa.RecordBatch.from_arrays([c.cast(f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def subscribers(client: fl.FlightClient) -> int:
    (result,) = client.do_action(fl.Action("health", b""))
    return int(json.loads(result.body.to_pybytes())["numbers"]["subscribers"])


def test_200_connections_get_a_place_or_a_reason_and_those_with_a_place_get_every_row(start: Start) -> None:
    sink = start(max_subscribers=24)
    clients = [fl.connect(sink.location) for _ in range(200)]
    streams, refusals = [], []
    for client in clients:
        try:
            streams.append(client.do_get(fl.Ticket(b"{}")))
        except fl.FlightUnavailableError as error:
            refusals.append(str(error))
    assert len(streams) == 24
    assert len(refusals) == 176
    assert all("all 24 subscriptions are taken; try again later, or raise max_subscribers" in text for text in refusals)
    sink.write("numbers", rows(100))
    for stream in streams:
        assert stream.read_chunk().data.column("x").to_pylist() == list(range(100))
    streams.pop().cancel()
    waiting = clients[-1]
    while subscribers(waiting) == 24:
        time.sleep(0.01)
    again = waiting.do_get(fl.Ticket(b"{}"))
    while subscribers(waiting) < 24:
        time.sleep(0.01)
    sink.write("numbers", rows(1))
    assert again.read_chunk().data.num_rows == 1
    for stream in [*streams, again]:
        stream.cancel()
    for client in clients:
        client.close()


@pytest.mark.parametrize("given", [None, *OTHERS], ids=repr)
def test_without_the_right_token_nothing_is_told_not_even_which_nodes_there_are(given: str | None, start: Start) -> None:
    sink = start(token=TOKEN)
    start(token="of-another-sink")
    headers = [] if given is None else [(b"authorization", f"Bearer {given}".encode())]
    options = fl.FlightCallOptions(headers=headers)
    with fl.connect(sink.location) as client:
        calls: list[Callable[[], Any]] = [
            lambda: list(client.list_flights(options=options)),
            lambda: client.get_flight_info(fl.FlightDescriptor.for_path("numbers"), options),
            lambda: client.do_get(fl.Ticket(b"{}"), options).read_chunk(),
            lambda: list(client.do_action(fl.Action("health", b""), options)),
            lambda: list(client.list_actions(options)),
        ]
        for call in calls:
            with pytest.raises((pa.ArrowException, OSError)) as caught:
                call()
            assert TOKEN not in str(caught.value)
            assert "numbers" not in str(caught.value)
        right = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
        assert len(list(client.list_flights(options=right))) == 1


@pytest.mark.parametrize("name", NO_TEXT)
def test_bytes_that_are_no_text_are_refused_in_words_and_the_next_call_is_answered(name: bytes, start: Start) -> None:
    sink = start()
    with fl.connect(sink.location) as client:
        calls: list[Callable[[], Any]] = [
            lambda: client.get_flight_info(fl.FlightDescriptor.for_command(name)),
            lambda: client.do_get(fl.Ticket(name)).read_chunk(),
            lambda: client.do_get(fl.Ticket(b'{"node": "' + name + b'"}')).read_chunk(),
            lambda: client.do_get(fl.Ticket(b'{"node": ["numbers"]}')).read_chunk(),
            lambda: client.do_get(fl.Ticket(b'{"node": {"numbers": 1}}')).read_chunk(),
            lambda: client.do_get(fl.Ticket(b'{"streams": ["a", ' + b"[" * 100_000)).read_chunk(),
        ]
        for call in calls:
            with pytest.raises(pa.ArrowException, match=r"no such node|the ticket must be JSON") as caught:
                call()
            assert "Traceback" not in str(caught.value)
        for path in ([name], [b"numbers", name]):  # what is no UTF-8 there gRPC itself turns away, without a word
            with pytest.raises(pa.ArrowException):
                client.get_flight_info(fl.FlightDescriptor.for_path(*path))
        assert subscribers(client) == 0
