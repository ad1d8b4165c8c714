"""The order in which an aligner hands rows over, against sorting them all at once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import RecoveryError
from connectors.records import KEY_FIELDS
from pipelines.runtime import aligner as module
from pipelines.runtime.aligner import Aligner, HandedOver
from pipelines.runtime.held_rows import read_held, write_held
from pipelines.runtime.keys import shard_of
from pipelines.runtime.messages import END_OF_TIME, Alignment, Close, Data, Edge, TaskId
from pipelines.testing import FakeClock

OPERATOR = TaskId("op", 0)
LEFT, RIGHT = (Edge(TaskId("left", n), OPERATOR) for n in range(2))
OTHER = Edge(TaskId("other", 0), OPERATOR)
LABELS = Edge(TaskId("labels", 0), OPERATOR, "control")
EDGES = [LEFT, RIGHT, OTHER, LABELS]
SCHEMA = pa.schema(KEY_FIELDS)

Row = tuple[int, str, int]
"""Event time in microseconds, stream, sequence: unique."""
Message = tuple[list[Row], int]
"""Rows, and the watermark that follows them."""
Out = tuple[str, str, str, int]
"""Role, node, stream, sequence."""


def batch_of(rows: Sequence[Row]) -> pa.RecordBatch:
    times, streams, sequences = ([row[i] for row in rows] for i in range(3))
    columns = [pa.array(streams, pa.string()), pa.array(sequences, pa.int64()), pa.array(times, pa.int64())]
    return pa.RecordBatch.from_arrays([*columns[:2], columns[2].cast(SCHEMA.field("event_time").type)], schema=SCHEMA)


def make(span_us: int, edges: Sequence[Edge] = EDGES, **options: Any) -> Aligner:
    defaults: dict[str, Any] = {"wait_s": math.inf, "clock": FakeClock(), "backlog": lambda edge: 0}
    return Aligner(edges, span_us=span_us, **(defaults | options))


def rows_of(handed: Sequence[HandedOver]) -> list[Out]:
    out: list[Out] = []
    for item in handed:
        if isinstance(item.body, Close):
            out += [("close", item.node, stream, -1) for stream in item.body.streams]
        else:
            columns = (item.body.batch.column(name).to_pylist() for name in ("stream_id", "sequence"))
            out += [(item.role, item.node, stream, sequence) for stream, sequence in zip(*columns, strict=True)]
    return out


def sorted_at_once(messages: dict[Edge, list[Message]], span_us: int) -> list[Out]:
    """The slow obvious way: every row's span, then one sort."""
    keyed = []
    for edge, sent in messages.items():
        watermark = -(2**62)
        for rows, follows in sent:
            for time, stream, sequence in rows:
                span = max(time // span_us, watermark // span_us)
                place = (edge.role == "control", ["left", "other", "labels"].index(edge.sender.node))
                out = (edge.role, edge.sender.node, stream, sequence)
                keyed.append(((span, place, time, stream, sequence), out))
            watermark = max(watermark, follows)
    return [out for _, out in sorted(keyed)]


def through_files(aligner: Aligner, span_us: int, root: Path, number: int) -> Aligner:
    """A new aligner from the snapshot of an old one, by way of JSON and a file."""
    alignment, held = aligner.snapshot()
    file = write_held(held, root, f"snapshots/{number}.arrows") if held else None
    restored = make(span_us)
    restored.restore([Alignment(**json.loads(json.dumps(asdict(alignment))))], read_held(root, file) if file else [])
    return restored


@st.composite
def streams_of_messages(draw: st.DrawFn, *, late: bool) -> dict[Edge, list[Message]]:
    """Per edge rows in any order, cut into messages. Watermarks are true, or, with ``late``, the latest time so far."""
    messages: dict[Edge, list[Message]] = {}
    number = 0
    for edge in EDGES:
        times = draw(st.lists(st.integers(-5, 60), max_size=14))
        if not late:
            times = sorted(times, key=lambda time: time // 7)  # out of order by up to six
        rows = []
        for time in times:
            rows.append((time, draw(st.sampled_from("abc")), number))
            number += 1
        sent: list[Message] = []
        while rows:
            count = draw(st.integers(1, len(rows)))
            part, rows = rows[:count], rows[count:]
            true = min((row[0] for row in rows), default=part[-1][0])
            sent.append((part, max(row[0] for row in part) if late else true - draw(st.integers(0, 3))))
        messages[edge] = sent
    return messages


def drive(data: st.DataObject, messages: dict[Edge, list[Message]], span_us: int, root: Path) -> tuple[list[Out], int]:
    """Deliver in any order, with snapshots in between; return what is handed over and how much of it was late."""
    aligner, out, late = make(span_us), list[Out](), 0
    left = {edge: list(sent) for edge, sent in messages.items()}
    last: dict[Edge, int] = {}
    while any(left.values()):
        edge = data.draw(st.sampled_from([edge for edge, sent in left.items() if sent]))
        rows, watermark = left[edge].pop(0)
        last[edge] = max(watermark, last.get(edge, watermark))
        aligner.add(edge, batch_of(rows))
        aligner.advance(edge, watermark)
        if not left[edge]:
            aligner.advance(edge, END_OF_TIME)
        out += rows_of(aligner.release())
        if data.draw(st.booleans()):
            late += aligner.late_rows
            aligner = through_files(aligner, span_us, root, len(out))
            for edge, known in last.items():  # sources begin with what they know from the run before
                aligner.advance(edge, known if left[edge] else END_OF_TIME)
    for edge in EDGES:
        aligner.advance(edge, END_OF_TIME)
    out += rows_of(aligner.release())
    assert aligner.held_rows == 0
    return out, late + aligner.late_rows


@given(data=st.data(), span_us=st.sampled_from([1, 2, 10, 1000]))
@settings(max_examples=120, deadline=None)
@pytest.mark.heavy
def test_rows_come_in_one_order_whatever_their_arrival_cuts_and_restarts(
    data: st.DataObject, span_us: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    messages = data.draw(streams_of_messages(late=False))
    out, late = drive(data, messages, span_us, tmp_path_factory.getbasetemp() / "held")
    assert out == sorted_at_once(messages, span_us)
    assert late == 0


@pytest.mark.heavy
@given(data=st.data(), span_us=st.sampled_from([1, 10]))
@settings(max_examples=80, deadline=None)
def test_late_rows_have_their_place_too_and_are_counted(
    data: st.DataObject, span_us: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    messages = data.draw(streams_of_messages(late=True))
    expected = 0
    for sent in messages.values():
        watermark = -(2**62)
        for rows, follows in sent:
            expected += sum(time // span_us < watermark // span_us for time, _, _ in rows)
            watermark = max(watermark, follows)
    out, late = drive(data, messages, span_us, tmp_path_factory.getbasetemp() / "held")
    assert out == sorted_at_once(messages, span_us)
    assert late == expected


def test_control_rows_of_a_span_come_after_its_data_rows_and_before_later_ones() -> None:
    aligner = make(10, [LEFT, LABELS])
    aligner.add(LABELS, batch_of([(3, "a", 0), (12, "a", 1)]))
    aligner.add(LEFT, batch_of([(5, "a", 10), (11, "b", 11), (19, "a", 12), (20, "a", 13)]))
    for edge in (LEFT, LABELS):
        aligner.advance(edge, 20)
    assert [(role, sequence) for role, _, _, sequence in rows_of(aligner.release())] == [
        ("data", 10),
        ("control", 0),
        ("data", 11),
        ("data", 12),
        ("control", 1),
    ]
    assert aligner.watermark_us == 20


def test_data_rows_with_no_control_rows_between_stay_in_one_batch() -> None:
    aligner = make(1, [LEFT, LABELS])
    aligner.add(LEFT, batch_of([(time, "a", time) for time in range(100)]))
    aligner.advance(LEFT, 99)
    aligner.advance(LABELS, END_OF_TIME)
    [handed] = aligner.release()
    assert isinstance(handed.body, Data)
    assert handed.body.batch.num_rows == 99


def test_a_stream_ends_after_its_last_row_and_the_control_rows_of_that_time() -> None:
    aligner = make(10, [LEFT, LABELS])
    aligner.add(LEFT, batch_of([(5, "a", 0), (25, "a", 1), (31, "b", 2)]))
    aligner.close(LEFT, ["a"])
    aligner.advance(LEFT, 31)
    aligner.add(LABELS, batch_of([(26, "a", 10), (30, "a", 11)]))
    aligner.close(LABELS, ["a"])  # the end of a control stream does not matter
    aligner.advance(LABELS, 40)
    assert [(kind, sequence) for kind, _, _, sequence in rows_of(aligner.release())] == [
        ("data", 0),
        ("data", 1),
        ("control", 10),
        ("close", -1),
    ]


@pytest.mark.heavy
def test_an_input_that_is_ahead_is_paused_and_none_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_ROWS", 50)
    aligner = make(10, [LEFT, LABELS])
    # Twenty data rows in every span, a control row in every fifth.
    left = {LEFT: [[(t // 2, "a", t)] for t in range(4000)], LABELS: [[(t, "a", t)] for t in range(0, 2000, 50)]}
    out, most = list[Out](), 0
    while any(left.values()):
        open_edges = [edge for edge, rows in left.items() if rows and edge not in aligner.ahead()]
        assert open_edges
        edge = open_edges[0]  # data first: it runs ahead as far as it may
        rows = left[edge].pop(0)
        aligner.add(edge, batch_of(rows))
        aligner.advance(edge, rows[-1][0] if left[edge] else END_OF_TIME)
        out += rows_of(aligner.release())
        most = max(most, aligner.held_rows)
    assert len(out) == 4040
    assert most <= 50 + 1 + 5 * 20 + 2


def test_a_silent_input_is_given_up_after_a_while_and_waited_for_again_when_it_speaks() -> None:
    clock = FakeClock()
    aligner = make(10, [LEFT, LABELS], wait_s=5.0, clock=clock)
    aligner.add(LEFT, batch_of([(5, "a", 0), (15, "a", 1)]))
    aligner.advance(LEFT, 15)
    assert aligner.release() == []
    assert aligner.idle_s() == 5.0
    clock.advance(4.0)
    aligner.advance(LEFT, 16)
    clock.advance(1.0)
    assert [row[3] for row in rows_of(aligner.release())] == [0]
    clock.advance(4.0)  # now both are silent
    assert [row[3] for row in rows_of(aligner.release())] == [1]
    aligner.add(LABELS, batch_of([(7, "a", 2), (40, "a", 3)]))
    aligner.advance(LABELS, 40)
    aligner.add(LEFT, batch_of([(33, "a", 4)]))
    aligner.advance(LEFT, 33)
    assert [row[3] for row in rows_of(aligner.release())] == [2]
    assert aligner.late_rows == 1


def test_an_input_of_which_messages_wait_to_be_taken_is_not_silent() -> None:
    clock = FakeClock()
    aligner = make(10, [LEFT, LABELS], wait_s=5.0, clock=clock, backlog={LEFT: 0, LABELS: 1}.__getitem__)
    aligner.add(LEFT, batch_of([(5, "a", 0)]))
    aligner.advance(LEFT, 20)
    clock.advance(60.0)
    assert aligner.release() == []


def test_what_waits_in_one_shard_is_taken_up_by_three(tmp_path: Path) -> None:
    names = [f"stream{n}" for n in range(20)]
    one = make(10, [LEFT, LABELS])
    rows = [(100 + n, name, n) for n, name in enumerate(names)]
    one.add(LEFT, batch_of(rows))
    one.add(LABELS, batch_of([(time, name, 100 + n) for time, name, n in rows]))
    one.close(LEFT, names)
    one.advance(LEFT, 100)
    alignment, held = one.snapshot()
    file = write_held(held, tmp_path, "snapshots/op/0.arrows")
    one.advance(LEFT, END_OF_TIME)
    one.advance(LABELS, END_OF_TIME)
    whole = rows_of(one.release())
    for shard in range(3):

        def mine(stream: str, shard: int = shard) -> bool:
            return shard_of(stream, 3) == shard

        part = make(10, [LEFT, LABELS])
        closes = [(time, node, [name for name in ended if mine(name)]) for time, node, ended in alignment.closes]
        part.restore([Alignment(alignment.released_us, closes)], read_held(tmp_path, file, mine))
        part.advance(LEFT, END_OF_TIME)
        part.advance(LABELS, END_OF_TIME)
        assert rows_of(part.release()) == [row for row in whole if mine(row[2])]


def test_rows_keep_their_columns_on_the_way_through_a_file(tmp_path: Path) -> None:
    schema = SCHEMA.append(pa.field("image", pa.binary(), metadata={"unit": "jpeg"})).with_metadata({"name": "x"})
    batch = pa.RecordBatch.from_arrays(
        [*batch_of([(1, "a", 0), (2, "b", 1)]).columns, pa.array([b"\0\1", None])], schema=schema
    )
    aligner = make(10, [LEFT, LABELS])
    aligner.add(LEFT, batch)
    aligner.add(LABELS, batch_of([(1, "a", 2)]))
    file = write_held(aligner.snapshot()[1], tmp_path, "held.arrows")
    left, labels = read_held(tmp_path, file)
    assert left.batch.equals(batch, check_metadata=True)
    assert (labels.role, labels.node, labels.batch.num_rows) == ("control", "labels", 1)
    content = bytearray((tmp_path / "held.arrows").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "held.arrows").write_bytes(content)
    with pytest.raises(RecoveryError, match="SHA-256 differs"):
        list(read_held(tmp_path, file))
