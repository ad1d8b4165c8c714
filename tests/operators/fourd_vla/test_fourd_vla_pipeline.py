"""Recorded RGB-D through a pipeline: the ready one, a replay in real time, and what sampling keeps of a real kitchen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rgbd_folders as made
from real_data import REAL_DATA

from connectors.sources.lerobot_layout import LeRobotLayout
from models.fourd_vla.recordings import ANSWERS, write_recordings, write_tour
from pipelines import Pipeline
from pipelines.registry import ready_pipelines

KITCHEN = REAL_DATA / "rgbd" / "redkitchen30"


def run(folder: Path, scans: Path, *settings: str) -> list[dict[str, Any]]:
    """Run the ready pipeline on recordings; return its rows in order."""
    places = [f"state={folder}/state", f"rows.path={folder}/rows", f"scans.path={scans}", "choose.device=cpu"]
    result = Pipeline.load(ready_pipelines()["fourd_vla_replay"], sets=[*places, *settings]).run()
    rows: list[dict[str, Any]] = result.table("rows").to_pylist()
    return sorted(rows, key=lambda row: (row["stream_id"], row["sequence"]))


def test_the_ready_pipeline_chooses_frames_of_every_recording_and_a_paced_replay_the_same(tmp_path: Path) -> None:
    made.tum_folder(tmp_path / "scans" / "desk", 6)
    made.open3d_folder(tmp_path / "scans" / "room", 4)
    rows = run(tmp_path / "a", tmp_path / "scans", "choose.keep=3")
    assert [(row["stream_id"], row["sequence"], row["status"]) for row in rows] == [
        *(("desk", n, "ok") for n in range(6)),
        *(("room", n, "ok") for n in range(4)),
    ]
    assert [len(row["offsets"]) for row in rows] == [1, 2, 3, 3, 3, 3, 1, 2, 3, 3]
    assert {row["reference"] for row in rows} == {"world"}
    paced = run(tmp_path / "b", tmp_path / "scans", "choose.keep=3", "scans.pace=realtime", "choose.shards=2")
    assert paced == rows


@pytest.mark.heavy
def test_the_ready_pipeline_that_acts_points_where_a_cube_of_the_past_told(tmp_path: Path) -> None:
    answers = write_recordings(tmp_path / "rendered", "past", count=8)
    assert json.loads((tmp_path / "rendered" / ANSWERS).read_text()) == answers
    places = [f"state={tmp_path}/state", f"rows.path={tmp_path}/rows", f"scans.path={tmp_path}/rendered", "act.device=cpu"]
    rows = Pipeline.load(ready_pipelines()["fourd_vla_act"], sets=places).run().table("rows").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    last = {row["stream_id"]: row for row in rows if row["sequence"] == 19}
    for name, answer in answers.items():
        move = np.array(last[name]["action"][:3])
        assert move @ answer["move"] / np.linalg.norm(move) > np.cos(np.pi / 4), (
            name
        )  # four directions: the right one is nearest
        assert len(last[name]["offsets"]) == 4


@pytest.mark.heavy
def test_a_tour_for_the_figure_is_a_recording_with_pauses(tmp_path: Path) -> None:
    write_tour(tmp_path / "tour", 24)
    rows = run(tmp_path, tmp_path / "tour")
    assert [row["status"] for row in rows] == ["ok"] * 24
    assert all(row["valid_depth"] > 0.9 for row in rows)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_ray_chooses_the_frames_of_a_local_run(tmp_path: Path, ray_address: str) -> None:
    made.tum_folder(tmp_path / "scans" / "desk", 6)
    made.open3d_folder(tmp_path / "scans" / "room", 4)
    rows = run(tmp_path / "local", tmp_path / "scans", "choose.keep=3")
    assert run(tmp_path / "ray", tmp_path / "scans", "choose.keep=3", "choose.shards=2", "runner=ray") == rows


def test_frames_out_of_order_are_sorted_by_spans_of_event_time_and_late_without(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    feature = rng.standard_normal((24, 6)).astype(np.float32)
    for name, order in (("sorted", range(24)), ("mixed", [n + d for n in range(0, 24, 4) for d in (2, 0, 3, 1)])):
        (tmp_path / name).mkdir()
        lines = [{"stream_id": "a", "sequence": n, "event_time": n * 0.05, "feature": feature[n].tolist()} for n in order]
        (tmp_path / name / "frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def chosen(name: str, **options: Any) -> list[dict[str, Any]]:
        values = {
            "name": "given",
            "state": str(tmp_path / f"state_{name}_{len(options)}"),
            "sources": {
                "frames": {
                    "type": "jsonl",
                    "path": str(tmp_path / name),
                    "stream_id": "stream_id",
                    "event_time": "event_time",
                    "event_time_unit": "s",
                    "columns": {"sequence": "int64", "feature": "list<float>"},
                }
            },
            "operators": {
                "choose": {
                    "type": "fourd_vla", "input": "frames", "features": {"type": "given", "size": 6},
                    "window": 8, "keep": 3, **options
                }
            },
            "sinks": {"rows": {"type": "arrow", "input": "choose", "path": str(tmp_path / f"rows_{name}_{len(options)}")}},
        }  # fmt: skip
        rows: list[dict[str, Any]] = Pipeline.from_dict(values).run().table("rows").to_pylist()
        return rows

    wanted = chosen("sorted")
    assert [row["status"] for row in wanted] == ["ok"] * 24
    assert chosen("mixed", align_s=0.2) == wanted
    assert {row["status"] for row in chosen("mixed")} == {"ok", "late"}


def test_what_was_chosen_becomes_a_lerobot_data_set(tmp_path: Path) -> None:
    made.tum_folder(tmp_path / "scans" / "desk", 6)
    values = {
        "name": "set",
        "state": str(tmp_path / "state"),
        "sources": {"scans": {"type": "rgbd", "path": str(tmp_path / "scans")}},
        "operators": {"choose": {"type": "fourd_vla", "input": "scans", "keep": 3}},
        "sinks": {"set": {"type": "lerobot", "input": "choose", "path": str(tmp_path / "set"), "fps": 10, "keep": 3}},
    }
    Pipeline.from_dict(values).run()
    layout = LeRobotLayout(tmp_path / "set")
    assert sum(episode.length for episode in layout.episodes.values()) == 6
    (episode,) = layout.episodes.values()
    rows = pq.read_table(episode.data).to_pylist()
    assert rows[0]["history.sequences"] == [0, -1, -1]
    assert rows[5]["history.sequences"][-1] == 5


@pytest.mark.heavy
@pytest.mark.skipif(not KITCHEN.is_dir(), reason=f"no recording in {KITCHEN}; set STREAMBANK_DATA")
def test_in_the_real_kitchen_sampling_drops_views_that_repeat(tmp_path: Path) -> None:
    rows = run(tmp_path / "mbs", KITCHEN)
    even = run(tmp_path / "uniform", KITCHEN, "choose.sampling=uniform")
    assert [row["status"] for row in rows] == ["ok"] * 30
    redundancy = lambda some: np.mean([max(row["similarity"]) for row in some if row["sequence"] >= 4])  # noqa: E731
    assert redundancy(rows) < redundancy(even)
    for row in rows[13:]:  # the first ten frames show almost the same view
        assert sum(sequence < 10 for sequence in row["selected_sequences"]) <= 1
    assert all(0.5 < row["valid_depth"] < 1 for row in rows)
