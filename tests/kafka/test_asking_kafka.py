"""Questions by a topic, answers on a topic, against a real broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking_workload import COLUMNS, counting, running
from kafka import KafkaProducer
from kafka_broker import Broker, committed_records

from connectors.errors import SinkError
from pipelines.api import Pipeline
from pipelines.asking.questions import ask

Topic = Callable[..., str]


def pipeline(broker: Broker, asked: str, answered: str, folder: Path, **sink: Any) -> dict[str, Any]:
    values = counting(folder)
    here = {"type": "kafka", "bootstrap_servers": broker.address}
    values["epoch_s"] = 0.2
    values["sources"]["questions"] = {**here, "topic": asked, "columns": COLUMNS, "stay": True}
    values["sinks"]["topic"] = {
        **here, "input": "count", "topic": answered, "path": str(folder / "staged"), "transactional_id": answered, **sink
    }  # fmt: skip
    return values


@pytest.mark.parametrize("format", ["json", "arrow"])
def test_a_question_by_a_topic_is_answered_on_a_topic(format: str, broker: Broker, topic: Topic, tmp_path: Path) -> None:
    asked, answered = topic(3), topic(2)
    values = pipeline(broker, asked, answered, tmp_path, format=format)
    with running(values):
        answers = ask(Pipeline.from_dict(values).spec, "how many?", ["a", "b", "c"], at=1.5, values={"digits": 1})
    assert [answer.text for answer in answers] == ["20 rows, mean 2.4", "20 rows, mean 2.4", None]
    assert [record[2] for record in committed_records(broker, asked)].count(b"a") == 1


def test_questions_of_any_producer_are_answered(broker: Broker, topic: Topic, tmp_path: Path) -> None:
    asked, answered = topic(), topic()
    values = pipeline(broker, asked, answered, tmp_path)
    producer = KafkaProducer(bootstrap_servers=broker.address)
    producer.send(asked, json.dumps({"question_id": "mine", "question": "how many?"}).encode(), b"b")
    producer.close()
    with running(values):
        assert Pipeline.from_dict(values).ask("and now?", stream="a").ok
    rows = [json.loads(record[3]) for record in committed_records(broker, answered)]
    assert [row["stream_id"] for row in rows if row["question_id"] == "mine"] == ["b"]


def test_a_topic_that_is_not_there_is_named_before_the_question_is_put(broker: Broker, topic: Topic, tmp_path: Path) -> None:
    asked = topic()
    values = pipeline(broker, asked, "nowhere", tmp_path)
    with pytest.raises(SinkError, match=r"sinks\..*: .*topic 'nowhere' is not there"):
        Pipeline.from_dict(values).ask("how many?", stream="a")
    assert committed_records(broker, asked) == []
