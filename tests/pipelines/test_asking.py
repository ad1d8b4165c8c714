"""Asking a pipeline that runs: what is answered, from which sink, and what is said where nothing can be."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking_workload import COLUMNS, ROWS, Run, counting, running
from certificates import make_certificate
from click.testing import CliRunner, Result
from engine_workload import PATIENCE_S, start_process
from ports import free_range

from connectors.base import Row, Shown, Tail
from connectors.errors import ConfigError, SinkError
from connectors.sinks.jsonl import JsonlSink
from connectors.sinks.read import FileTail, read_committed
from connectors.sources.requests import RequestsSource
from pipelines.api import Pipeline
from pipelines.asking.putting import Answer, make_rows, offset_s
from pipelines.asking.questions import ask
from pipelines.asking.route import QUESTION, find_route
from pipelines.cli import cli
from pipelines.commands.ask import answer_json, answer_text

pytestmark = pytest.mark.heavy


def call(command: str, values: dict[str, Any], folder: Path, *arguments: str) -> Result:
    file = folder / "counting.yaml"
    file.write_text(yaml.safe_dump(values))
    return CliRunner().invoke(cli, [command, str(file), *arguments])


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return counting(tmp_path_factory.mktemp("asking"))


@pytest.fixture(scope="module")
def run(values: dict[str, Any]) -> Iterator[Run]:
    """A run that has read everything, and stays."""
    with running(values) as run:
        yield run


@pytest.fixture
def folder(tmp_path: Path, run: Run) -> Path:
    """A folder for the file; the pipeline runs."""
    return tmp_path


# Answers


def test_a_question_is_answered_in_words_with_what_they_rest_on(values: dict[str, Any], folder: Path) -> None:
    result = call("ask", values, folder, "how many?", "--stream", "a", "--column", "digits=1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "a: 20 rows, mean 2.4\n  rows  20\n  latest  2.4\n"


def test_several_streams_are_asked_at_once_and_answered_in_order(values: dict[str, Any], folder: Path) -> None:
    result = call("ask", values, folder, "how many?", "--stream", "b", "--stream", "a", "--json", "--at", "2019-01-01T00:00:05")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert [(row["stream_id"], row["rows"], row["question"]) for row in rows] == [
        ("b", 20, "how many?"),
        ("a", 20, "how many?"),
    ]
    assert {row["at"] for row in rows} == {"2019-01-01T00:00:05.000000Z"}
    assert len({row["question_id"] for row in rows}) == 2


def test_an_answer_that_is_not_ok_is_told_with_its_reason_and_status_1(values: dict[str, Any], folder: Path) -> None:
    result = call("ask", values, folder, "how many?", "--stream", "c")
    assert (result.exit_code, result.stdout) == (1, "c: unknown_stream: no rows of 'c' have come\n")


def test_python_asks_with_one_call(values: dict[str, Any], run: Run) -> None:
    answer = Pipeline.from_dict(values).ask("how many?", stream="a", values={"digits": 0}, at=3.5)
    assert (answer.ok, answer.text, answer.stream_id) == (True, "20 rows, mean 2.0", "a")
    assert answer.row is not None
    assert answer.row["at"] == "1970-01-01T00:00:03.500000Z"
    assert 0 < answer.seconds < 30


def test_a_time_may_be_one_of_the_film_or_one_before_now(values: dict[str, Any], run: Run) -> None:
    spec = Pipeline.from_dict(values).spec
    route = find_route(spec, QUESTION)
    for at, seconds in (("00:00:02", 2.0), ("1:02:03.5", 3723.5), ("05:00", 300.0), ("-30s", -30.0), ("-1.5 min", -90.0)):
        assert offset_s(at) == seconds
    assert [offset_s(at) for at in ("12", "2026-03-01T08:00:00Z", 12.0, "-30", "1:2:3:4")] == [None] * 5
    assert make_rows(route, ["a"], {"at_offset_s": -2.0})[0]["at_offset_s"] == -2.0
    (answer,) = ask(spec, "how many?", ["a"], at="-2s", timeout_s=PATIENCE_S)
    assert answer.ok
    columns = values["sources"]["questions"]["columns"]
    short = {**columns}
    del short["at_offset_s"]
    other = {**values, "sources": {**values["sources"], "questions": {**values["sources"]["questions"], "columns": short}}}
    with pytest.raises(ConfigError, match=r"--at -2s: sources.questions.columns lacks at_offset_s.* add 'at_offset_s: double'"):
        ask(Pipeline.from_dict(other).spec, "how many?", ["a"], at="-2s")


def test_whoever_asks_about_a_time_to_come_is_told_that_it_is_waited_for(
    values: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.asking.putting._QUIET_S", 0.0)
    monkeypatch.setattr("pipelines.asking.putting._EPOCHS", 0)
    said: list[str] = []
    (answer,) = ask(Pipeline.from_dict(values).spec, "how many?", ["nobody"], at="00:09:00", timeout_s=0.5, say=said.append)
    assert answer.row is None or answer.row["status"] == "unknown_stream"
    assert len(said) == 1 and said[0].startswith("nobody: no answer yet; a time to come is waited for: 00:09:00")


def test_a_question_by_a_file_of_ones_own_is_answered_too(values: dict[str, Any], run: Run) -> None:
    questions = Path(values["sources"]["questions"]["path"])
    (questions / "mine.json").write_text('{"stream_id": "a", "question_id": "mine", "question": "how many?"}\n')
    assert Pipeline.from_dict(values).ask("and now?", stream="a").ok  # of a later epoch or the same
    rows = read_committed(values["sinks"]["answers"]["path"]).to_pylist()
    assert [row["answer"] for row in rows if row["question_id"] == "mine"] == ["20 rows, mean 2.375"]


def test_a_run_in_another_process_is_asked_and_stopped(tmp_path: Path) -> None:
    values = counting(tmp_path)
    process = start_process(values)
    answers = ask(Pipeline.from_dict(values).spec, "how many?", ["a", "nobody"], timeout_s=PATIENCE_S)
    os.kill(process.pid, signal.SIGTERM)
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert answers[0].row is not None
    assert answers[0].row["question"] == "how many?"
    assert (answers[1].ok, answers[1].text) == (False, None)


@pytest.mark.parametrize("shards", [1, 3])
def test_flight_shows_an_answer_long_before_its_commit(shards: int, tmp_path: Path) -> None:
    values = counting(tmp_path) | {"epoch_s": 600.0}
    values["sinks"]["live"] = {"type": "flight", "input": "count", "port": free_range(shards), "shards": shards}
    with running(values):
        answers = ask(Pipeline.from_dict(values).spec, "how many?", ["a", "b"], timeout_s=PATIENCE_S)
        assert [answer.text for answer in answers] == ["20 rows, mean 2.375"] * 2
        late = call("ask", values, tmp_path, "how many?", "--stream", "a", "--sink", "answers", "--timeout", "0.3")
        assert (late.exit_code, late.stdout.splitlines()[-1].split(",")[0]) == (1, "  the question stays where it was put")
    assert len(list((tmp_path / "questions").glob("*.json*"))) == 0


def test_token_and_certificate_of_the_file_open_the_flight_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("TOKEN", "right")
    values = counting(tmp_path)
    tls = {"host": "0.0.0.0", "tls_certificate": str(certificate), "tls_key": str(key), "token": {"env": "TOKEN"}}
    values["sinks"]["live"] = {"type": "flight", "input": "count", "port": free_range(1), **tls}
    with running(values):
        assert Pipeline.from_dict(values).ask("how many?", stream="a").ok
        monkeypatch.setenv("TOKEN", "wrong")
        with pytest.raises(SinkError, match=r"no subscription at grpc\+tls://localhost:.*token is wrong.*is the pipeline"):
            Pipeline.from_dict(values).ask("how many?", stream="a")


def test_flight_that_nobody_serves_is_told_before_the_question_is_put(tmp_path: Path) -> None:
    values = counting(tmp_path)
    values["sinks"]["live"] = {"type": "flight", "input": "count", "port": free_range(1)}
    result = call("ask", values, tmp_path, "how many?", "--stream", "a")
    assert result.exit_code == 1
    assert "sinks.live: no subscription at grpc://127.0.0.1:" in result.stderr
    assert not (tmp_path / "questions").exists()


@pytest.mark.parametrize("sink", ["parquet", "arrow"])
def test_every_table_sink_can_be_read_for_answers(sink: str, tmp_path: Path) -> None:
    values = counting(tmp_path)
    values["sinks"]["answers"]["type"] = sink
    with running(values):
        answer = Pipeline.from_dict(values).ask("how many?", stream="b")
    assert answer.text == "20 rows, mean 2.375"


def test_long_and_nested_columns_are_cut_to_what_a_person_reads(values: dict[str, Any]) -> None:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    row = {
        "stream_id": "a", "answer": "red", "status": "ok", "question": "?", "image": b"123", "lag": None, "none": [],
        "retrieved": [[{"time": time, "score": 0.51234}, {"time": None, "score": 1.0}]] * 10,
        "tokens": list(range(10)),
    }  # fmt: skip
    text = answer_text(Answer("a", "1", row, 0.1), Pipeline.from_dict(values).spec, QUESTION)
    layers = [f"  retrieved {n}  time 2026-01-01T00:00:00Z score 0.5123, score 1" for n in range(8)]
    tokens = "  tokens  0, 1, 2, 3, 4, 5, 6, 7, and 2 more"
    assert text.splitlines() == ["a: red", "  image  3 bytes", *layers, "  retrieved  and 2 more", tokens]
    assert json.loads(answer_json(Answer("a", "1", row, 0.1)))["image"] == "3 bytes"
    assert json.loads(answer_json(Answer("a", "1", None, 0.1))) == {"stream_id": "a", "id": "1", "status": "no_answer"}


# The end of a run


def test_a_replay_ends_by_itself_where_questions_do_not_stay_and_later_ones_wait_for_the_next_run(tmp_path: Path) -> None:
    values = counting(tmp_path)
    values["sources"]["questions"]["stay"] = False
    first = Run(values)
    first.start()
    assert first.join().report.status == "finished"
    late = call("ask", values, tmp_path, "how many?", "--stream", "a", "--timeout", "0.3")
    assert late.exit_code == 1
    assert re.match(r"a: no answer within [\d.]+ s\n  is the pipeline running\?   process \d+", late.stdout)
    again = Run(values, resume=True)
    again.start()
    assert again.join().report.status == "finished"
    [row] = read_committed(tmp_path / "answers").to_pylist()
    assert (row["question"], row["status"]) == ("how many?", "unknown_stream")  # its recording has ended


def test_a_run_that_stays_can_be_stopped_and_goes_on_with_what_it_knew(tmp_path: Path) -> None:
    values = counting(tmp_path)
    with running(values) as run:
        assert Pipeline.from_dict(values).ask("how many?", stream="a").ok
    assert run.result is not None
    assert run.result.report.status == "stopped"
    with running(values, resume=True):
        assert Pipeline.from_dict(values).ask("and now?", stream="a").text == f"{ROWS} rows, mean 2.375"
    assert read_committed(tmp_path / "answers").column("question").to_pylist() == ["how many?", "and now?"]


# What is said where there is no way


def without_control(values: dict[str, Any]) -> None:
    del values["operators"]["count"]["control"], values["sources"]["questions"]


def file_of_questions(values: dict[str, Any]) -> None:
    values["sources"]["questions"] = {"type": "jsonl", "path": "q.jsonl", "event_time_unit": "rows"}


def two_operators(values: dict[str, Any]) -> None:
    values["operators"]["more"] = dict(values["operators"]["count"])
    values["sinks"]["answers"] = {"type": "annotated_video", "inputs": ["count", "more"], "path": "x"}


def sink_without_id(values: dict[str, Any]) -> None:
    values["sinks"]["answers"]["exclude"] = ["question_id"]
    values["sinks"]["video"] = {"type": "annotated_video", "inputs": ["values", "count"], "path": "video"}
    values["sinks"]["live"] = {"type": "flight", "input": "count", "port": 0}


def aligned(values: dict[str, Any]) -> None:
    values["operators"]["count"] |= {"align_s": 1.0, "control": "asked"}
    kafka = {"type": "kafka", "bootstrap_servers": "localhost:1", "topic": "q", "columns": COLUMNS}
    values["sources"]["asked"] = kafka
    del values["sources"]["questions"]


def other_topic(values: dict[str, Any]) -> None:
    aligned(values)
    values["operators"]["count"]["align_control"] = False
    values["sources"]["asked"]["stream_id"] = "header:camera"


def few_columns(values: dict[str, Any]) -> None:
    values["sources"]["questions"]["columns"] = {"question": "string"}


def nothing(values: dict[str, Any]) -> None:
    pass


ASKED = ("how many?", "--stream", "a")


@pytest.mark.parametrize(
    ("change", "command", "arguments", "message"),
    [
        (nothing, "prompt", ("label", "7", "--stream", "a"), "has no operator with a control column 'kind'; it has: count"),
        (nothing, "ask", ("how many?",), "--stream: is missing"),
        (nothing, "ask", (" ", "--stream", "a"), "the question is empty"),
        (nothing, "ask", (*ASKED, "--operator", "cuont"), "no such operator (did you mean 'count'?); allowed: count"),
        (nothing, "ask", (*ASKED, "--sink", "rows"), "no sink of this name takes the rows of 'count'; allowed: answers"),
        (nothing, "ask", (*ASKED, "--column", "digit=1"), "(did you mean 'digits'?); allowed: at, at_offset_s, digits"),
        (nothing, "ask", (*ASKED, "--column", "digits=many"), "--column digits: 'many' is no int32"),
        (nothing, "ask", (*ASKED, "--column", "question_id=1"), "this column is filled already"),
        (nothing, "ask", (*ASKED, "--column", "digits"), "write NAME=VALUE"),
        (nothing, "ask", (*ASKED, "--at", "noon"), "--at: 'noon' is no time"),
        (nothing, "ask", (*ASKED, "--at", "inf"), "--at: 'inf' is no time"),
        (nothing, "ask", (*ASKED, "--timeout", "0"), "must be above 0 seconds, got 0"),
        (without_control, "ask", ASKED, "its control rows come from nothing; add to the pipeline file"),
        (file_of_questions, "ask", ASKED, "sources.questions: rows cannot be put into this kind of source add to"),
        (two_operators, "ask", ASKED, "several operators take a question: count, more; say which by --operator NAME"),
        (sink_without_id, "ask", ASKED, "sinks.answers: it leaves out the column 'question_id'"),
        (sink_without_id, "ask", ASKED, "sinks.video: its rows cannot be read back"),
        (sink_without_id, "ask", ASKED, "sinks.live: its port is 0"),
        (aligned, "ask", ASKED, "align_s would hold a question back until the data have come to the present"),
        (other_topic, "ask", ASKED, "stream_id is 'header:camera'; leave it out, so that the message's key"),
        (few_columns, "ask", ASKED, "sources.questions.columns: lacks question_id"),
    ],
)  # fmt: skip
def test_what_has_no_way_is_refused_with_what_to_do(
    change: Any, command: str, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    values = counting(tmp_path)
    change(values)
    result = call(command, values, tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "questions").exists()


class OwnSource(RequestsSource):
    """A source of one's own: takes rows in a way of its own."""

    def put(self, rows: Sequence[Row]) -> None:
        (self.options.path / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


class OwnSink(JsonlSink):
    """A sink of one's own: shows rows in a way of its own."""

    def shown(self, column: str) -> Shown:
        return Shown.AT_ONCE

    def tail(self, source: str, column: str, streams: Sequence[str], shards: Sequence[int]) -> Tail:
        assert (source, column, list(streams), list(shards)) == ("count", "question_id", ["a"], [0])
        return OwnTail(self.root, column)


class OwnTail(FileTail):
    def look(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        return [{**row, "answer": f"own: {row['answer']}"} for row in super().look(ids, timeout_s)]


def test_a_source_and_a_sink_of_ones_own_take_part_by_their_contracts_alone(tmp_path: Path) -> None:
    values = counting(tmp_path)
    values["sources"]["questions"]["type"] = "test_asking:OwnSource"
    values["sinks"]["own"] = {"type": "test_asking:OwnSink", "input": "count", "path": str(tmp_path / "own")}
    with running(values):
        assert Pipeline.from_dict(values).ask("how many?", stream="a").text == "own: 20 rows, mean 2.375"
        answers = ask(Pipeline.from_dict(values).spec, "how many?", ["a"], sink="answers")
        assert answers[0].text == "20 rows, mean 2.375"


def test_answers_are_read_from_the_output_that_has_them(tmp_path: Path) -> None:
    values = counting(tmp_path, type="asking_workload:Telling")
    values["sinks"] = {
        "seen": {"type": "jsonl", "input": "count.seen", "path": str(tmp_path / "seen")},
        "answers": {"type": "parquet", "input": "count.answers", "path": str(tmp_path / "answers")},
    }
    assert find_route(Pipeline.from_dict(values).spec, QUESTION).answers == "count.answers"
    with running(values):
        assert Pipeline.from_dict(values).ask("how many?", stream="a").text == "20 rows, mean 2.375"
    del values["sinks"]["answers"]
    with pytest.raises(ConfigError, match=r"answers: \{type: jsonl, input: count\.answers, path: answers\}"):
        find_route(Pipeline.from_dict(values).spec, QUESTION)
    with pytest.raises(ConfigError, match=r"--sink seen: no sink of this name takes the rows of 'count\.answers'"):
        find_route(Pipeline.from_dict(values).spec, QUESTION, sink="seen")


def test_a_column_that_only_the_source_declares_can_be_filled(tmp_path: Path) -> None:
    values = counting(tmp_path)
    values["sources"]["questions"]["columns"] = {**COLUMNS, "frames": "list<int64>"}
    route = find_route(Pipeline.from_dict(values).spec, QUESTION)
    [row] = make_rows(route, ["a"], {"frames": [1, 2]})
    assert row["frames"] == [1, 2]
    with pytest.raises(ConfigError, match=r"--column frames: 'all' is no list"):
        make_rows(route, ["a"], {"frames": "all"})


def test_the_lines_that_it_says_to_add_are_a_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = counting(tmp_path)
    without_control(values)
    values["sinks"] = {"video": {"type": "annotated_video", "inputs": ["values", "count"], "path": str(tmp_path / "video")}}
    for section in ("sources", "sinks"):
        with pytest.raises(ConfigError, match=rf"\n *{section}:\n") as refused:
            Pipeline.from_dict(values).ask("how many?", stream="a")
        text = str(refused.value)
        lines = text[text.index(f"{section}:\n") :].replace(", ...}", "}")
        for name, nodes in yaml.safe_load(lines).items():
            for node, keys in nodes.items():
                values[name].setdefault(node, {}).update(keys)
        if section == "sources":
            assert values["sources"]["questions"]["columns"] == {
                n: k for n, k in COLUMNS.items() if n != "at_offset_s"
            }  # optional
    del values["sinks"]["video"]
    values["epoch_s"] = 0.05
    with running(values | {"name": "added"}):
        assert Pipeline.from_dict(values).ask("how many?", stream="a").ok
