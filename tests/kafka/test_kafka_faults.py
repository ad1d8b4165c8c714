"""Kafka → MAMBA → Kafka and Parquet, killed at random moments: the short form of ``benchmarks.kafka_soak``."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from kafka_broker import Broker

from benchmarks.kafka_soak import PARTITIONS, soak
from benchmarks.kafka_soak_rows import STREAMS, compare


def check(result: dict[str, Any], kinds: set[str]) -> None:
    assert result["kills"] == dict.fromkeys((*kinds, "broker"), 1)
    assert result["attempts"] > 1
    assert result["frames"] >= STREAMS
    for sink in ("kafka", "parquet"):
        assert result[sink]["with_detections"] > 0
        assert result[sink]["equal"], result[sink]
    assert result["staged_files_left"] == 0


@pytest.mark.slow  # the one on Ray kills all of that too
def test_driver_and_broker_killed_change_no_row(mortal_broker: Broker, tmp_path: Path) -> None:
    until = time.monotonic() + 60
    result = soak(mortal_broker, tmp_path, "local", rounds=1, broker_kills=1, draw=random.Random(1), until=until)
    check(result, {"driver"})


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_on_ray_source_operator_sink_coordinator_and_broker_killed_change_no_row(
    mortal_broker: Broker, ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    until = time.monotonic() + 600  # its one round begins, whenever the cluster is ready
    result = soak(mortal_broker, tmp_path, "ray", rounds=1, broker_kills=1, draw=random.Random(1), until=until, hz=1.0)
    check(result, {"source", "operator", "sink", "coordinator"})


def test_the_comparison_sees_a_row_that_is_lost_doubled_or_changed() -> None:
    whole = {"a": [{"sequence": n, "status": "ok", "score": 0.5} for n in range(PARTITIONS)]}
    frames = {"a": PARTITIONS}
    assert compare(whole, whole, frames)["equal"]
    rows = whole["a"]
    lost = compare({"a": rows[:-1]}, whole, frames)
    doubled = compare({"a": [*rows, rows[-1]]}, whole, frames)
    changed = compare({"a": [*rows[:-1], {**rows[-1], "score": 0.6}]}, whole, frames)
    assert [(case["lost"], case["doubled"], case["changed"], case["equal"]) for case in (lost, doubled, changed)] == [
        (1, 0, 0, False),
        (0, 1, 0, False),
        (0, 0, 1, False),
    ]
    assert not compare({"a": rows[:-1]}, {"a": rows[:-1]}, frames)["equal"]  # what both runs lost is lost all the same
