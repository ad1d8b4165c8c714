"""Questions to a pipeline on Ray: answered from another process, and once though an actor dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking_workload import counting, running

from connectors import faults
from connectors.sinks.read import read_committed
from connectors.sources.requests import put_requests
from pipelines.api import Pipeline
from pipelines.asking.questions import ask

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_address")]


def test_questions_are_answered_by_the_shard_of_their_stream_and_once_though_an_actor_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = counting(tmp_path, shards=2, num_cpus=0.1)
    put_requests(tmp_path / "questions", [{"stream_id": "a", "question_id": "q0", "question": "how many?"}])
    monkeypatch.setenv(faults.VARIABLE, "after_snapshot:epoch=0:task=count[0]")
    with running(values, runner="ray") as run:
        answers = ask(Pipeline.from_dict(values).spec, "and now?", ["a", "b", "c"])
    assert [answer.row and answer.row["status"] for answer in answers] == ["ok", "ok", "unknown_stream"]
    assert [answer.text for answer in answers[:2]] == ["20 rows, mean 2.375"] * 2
    assert run.result is not None
    assert (run.result.report.status, run.result.report.attempts) == ("stopped", 2)
    assert sorted(read_committed(tmp_path / "answers").column("sequence").to_pylist()) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_replay_on_ray_ends_though_its_questions_have_no_end(tmp_path: Path) -> None:
    values = counting(tmp_path)
    values["sources"]["questions"]["stay"] = False
    report = Pipeline.from_dict(values).run(runner="ray").report
    assert (report.status, report.rows_committed["values"]) == ("finished", 40)
