"""4D-VLA killed at the points of an epoch: resumed, the history that it chose is the same, with 1 and 3 shards."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import rgbd_folders as made
from engine_workload import run_here, run_process

from connectors.sinks.read import read_committed

FRAMES = 30


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for name in "abcd":
        made.tum_folder(folder / name, FRAMES)
    return folder


def pipeline(scans: Path, run: Path, *, pace: str | float = "max", shards: int = 1) -> dict[str, Any]:
    return {
        "name": "history",
        "state": str(run / "state"),
        "epoch_s": 0.2,
        "sources": {"scans": {"type": "rgbd", "path": str(scans), "pace": pace, "parallelism": 4}},
        "operators": {
            "choose": {"type": "fourd_vla", "input": "scans", "window": 8, "keep": 3, "max_streams": 4, "shards": shards}
        },
        "sinks": {"rows": {"type": "parquet", "input": "choose", "path": str(run / "rows")}},
    }


def rows(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_committed(run / "rows").to_pylist()
    return sorted(found, key=lambda row: (row["stream_id"], row["sequence"]))


@pytest.fixture(scope="module")
def undisturbed(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run = tmp_path_factory.mktemp("whole")
    run_here(pipeline(scans, run))
    whole = rows(run)
    assert [(row["stream_id"], row["sequence"], row["status"]) for row in whole] == [
        (name, n, "ok") for name in "abcd" for n in range(FRAMES)
    ]
    return whole


@pytest.mark.parametrize(
    ("point", "shards"),
    [
        ("after_manifest:epoch=1", 1),
        pytest.param("before_snapshot:epoch=1", 1, marks=pytest.mark.slow),
        pytest.param("after_prepare:epoch=0", 3, marks=pytest.mark.slow),
    ],
)
def test_a_kill_changes_no_frame_that_was_chosen(
    scans: Path, undisturbed: list[dict[str, Any]], tmp_path: Path, point: str, shards: int
) -> None:
    values = pipeline(scans, tmp_path, pace=3.0, shards=shards)  # a second of epochs
    assert run_process(values, fault=point) == -signal.SIGKILL
    assert run_process(values, resume=True) == 0
    assert rows(tmp_path) == undisturbed
