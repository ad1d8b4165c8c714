"""The sink ``mqtt`` against a broker on this machine: nothing is lost, and repeats can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_workload import value_batch
from mqtt_broker import Broker, broker

from connectors.errors import ConfigError, SinkError
from connectors.sinks.mqtt import MqttOptions, MqttSink
from pipelines import Pipeline


def opened(to: Broker, folder: Path, **options: Any) -> MqttSink:
    sink = MqttSink(MqttOptions(url=to.url, path=folder, **{"retry_s": 20.0, **options}))
    sink.open({"events": value_batch([]).schema}, attempt=1, shard=0)
    return sink


def staged_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_rows_are_published_when_their_epoch_is_committed_and_not_before(tmp_path: Path) -> None:
    with broker() as to:
        sink = opened(to, tmp_path, topic="plant/{stream_id}/alerts", retain=True)
        sink.write("events", value_batch(["pump#1", "b", "b"]))
        staged = sink.prepare(0)
        assert not to.connections
        sink.commit(0, staged)
        sink.commit(0, staged)  # what is gone has been published
        sink.close()
    assert [topic for topic, _, _ in to.messages] == ["plant/pump%231/alerts", "plant/b/alerts", "plant/b/alerts"]
    assert [payload["stream_id"] for _, payload, _ in to.messages] == ["pump#1", "b", "b"]
    assert all(retained for _, _, retained in to.messages) and len(to.once()) == 3
    assert staged_files(tmp_path) == []


def test_a_broker_that_is_lost_gets_the_rows_again_with_the_same_ids(tmp_path: Path) -> None:
    with broker() as to:
        to.lose_after = [2, 3]
        sink = opened(to, tmp_path, timeout_s=5.0)
        sink.write("events", value_batch(list("abcde")))
        sink.commit(0, sink.prepare(0))
        sink.close()
    assert len(to.messages) > 5 and to.connections > 2
    assert sorted(payload["stream_id"] for _, payload in to.once()) == list("abcde")


def test_what_is_refused_stays_and_is_published_by_the_next_run(tmp_path: Path) -> None:
    with broker(user="plant", password="hush") as to:
        sink = opened(to, tmp_path, user="plant", password="wrong")
        sink.write("events", value_batch(["a", "b"]))
        staged = sink.prepare(0)
        with pytest.raises(
            SinkError, match=r"Not authorized\. Rows of committed epochs wait in .*; correct user or password"
        ) as told:
            sink.commit(0, staged)
        assert "wrong" not in str(told.value)
        sink.close()
        again = MqttSink(MqttOptions(url=to.url, path=tmp_path, user="plant", password="hush"))
        again.recover(0, staged)
    assert [payload["stream_id"] for _, payload in to.once()] == ["a", "b"]
    assert staged_files(tmp_path) == []


def test_a_broker_that_is_away_is_said(tmp_path: Path) -> None:
    with broker() as to:
        pass
    sink = opened(to, tmp_path, retry_s=0.0)
    sink.write("events", value_batch(["a"]))
    staged = sink.prepare(0)
    with pytest.raises(SinkError, match=r"mqtt://127.*: cannot be reached \(.*refused.*\), for 0 s \(retry_s\)"):
        sink.commit(0, staged)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"url": "http://broker"}, "mqtt://broker"),
    ({"url": "mqtt://me:hush@broker"}, "give user and password"),
    ({"topic": "a/#"}, "leave out"),
    ({"password": "hush"}, "needs a user"),
    ({"columns": ["value"]}, "stream_id must be among"),
    ({"columns": {"value": "message_id", "stream_id": "stream_id"}}, "tells repeats apart"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_options_that_cannot_be_used_say_why(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        MqttOptions(**({"url": "mqtt://broker", "path": tmp_path} | change))


def test_a_run_publishes_its_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"stream_id": "a", "t": 1}\n{"stream_id": "b", "t": 2}\n')
    with broker() as to:
        pipeline = Pipeline.from_dict(
            {
                "name": "alerts",
                "state": "state",
                "sources": {"rows": {"type": "jsonl", "path": "rows.jsonl", "event_time": "t", "event_time_unit": "s"}},
                "sinks": {"out": {"type": "mqtt", "input": "rows", "url": to.url, "path": "waiting"}},
            },
            base=tmp_path,
        )
        assert pipeline.run().report.status == "finished"
    assert sorted(topic for topic, _ in to.once()) == ["streambank/a", "streambank/b"]
