"""The sink rerun: what Rerun's own reader finds in its files."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ports import free_ports

from connectors import records
from connectors.errors import ConfigError
from connectors.sinks.rerun import RerunOptions, RerunSink
from operators.mamba.schemas import detection_schema
from operators.memprompttss.schemas import STATES
from operators.rekv.schemas import ANSWER

rerun = pytest.importorskip("rerun")

from rerun.chunk import RrdReader  # noqa: E402

SIDE = 32


def rows(schema: pa.Schema, *values: Mapping[str, Any]) -> pa.RecordBatch:
    keys = [{"stream_id": "gate", "sequence": n, "event_time": n * 1_000_000} for n in range(len(values))]
    made = [key | dict(value) for key, value in zip(keys, values, strict=True)]
    columns = [pa.array([row.get(each.name) for row in made], each.type) for each in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def frame(shade: int) -> dict[str, Any]:
    pixels = np.full((SIDE, SIDE, 3), shade, np.uint8)
    return {"image": pixels.tobytes(), "encoding": "raw_rgb8", "height": SIDE, "width": SIDE}


def written(folder: Path, *writes: tuple[str, pa.RecordBatch], **options: Any) -> dict[str, list[dict[str, Any]]]:
    """Write batches in one epoch; return what the file holds: entity → rows by component."""
    sink = RerunSink(RerunOptions(path=folder, **options))
    schemas = {node: batch.schema for node, batch in writes}
    sink.open(schemas, attempt=1, shard=0)
    for node, batch in writes:
        sink.write(node, batch)
    staged = sink.prepare(0)
    assert [part.rows for part in staged] == [sum(batch.num_rows for _, batch in writes)]
    sink.commit(0, staged)
    sink.close()
    return read(folder / staged[0].final)


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for chunk in RrdReader(path).stream():
        found.setdefault(chunk.entity_path, []).extend(chunk.to_record_batch().to_pylist())
    return found


def component(found: Mapping[str, list[dict[str, Any]]], entity: str, name: str) -> list[Any]:
    return [row[name] for row in found[entity] if row.get(name) is not None]


def seconds(found: Mapping[str, list[dict[str, Any]]], entity: str) -> list[float]:
    return [row["event_time"].timestamp() for row in found[entity] if row.get("event_time") is not None]


def box(label: int, score: float) -> dict[str, Any]:
    return {"x1": 2.0, "y1": 4.0, "x2": 12.0, "y2": 10.0, "score": score, "label": label}


def test_frames_boxes_with_class_names_and_gauges_lie_on_the_line_of_event_time(tmp_path: Path) -> None:
    detections = rows(
        detection_schema(["cat", "dog"], "x"),
        {"detections": [box(1, 0.9), box(0, 0.1)], "bank_size": [3, 4], "status": "ok"},
        {"detections": [], "bank_size": [6, 8], "status": "no_detection"},
        {"status": "rejected_corrupt", "error": "cut short"},
    )
    found = written(tmp_path, ("clips", rows(records.FRAME, frame(9), frame(90), {"error": "cut"})), ("detect", detections))

    assert len(component(found, "/gate/clips", "EncodedImage:blob")) == 2
    assert seconds(found, "/gate/detect/bank_size") == [0.0, 1.0]
    assert component(found, "/gate/detect/bank_size", "Scalars:scalars") == [[3.0, 4.0], [6.0, 8.0]]
    assert component(found, "/gate/detect", "Boxes2D:labels") == [["dog 0.90"], []]
    assert component(found, "/gate/detect", "Boxes2D:centers")[0] == [[7.0, 7.0]]
    assert "dog" in str(component(found, "/gate/detect", "AnnotationContext:context"))
    assert component(found, "/gate/detect/status", "TextLog:text") == [["rejected_corrupt: cut short"]]


def test_depth_becomes_a_cloud_of_points_in_the_world(tmp_path: Path) -> None:
    depth = np.full((SIDE, SIDE), 2000, "<u2")
    depth[0] = 0  # no reading
    pose = np.eye(4)
    pose[:3] = [[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30]]  # turned by 90 degrees about the axis of sight
    camera = [16.0, 0, 15.5, 0, 16.0, 15.5, 0, 0, 1]
    image = frame(200) | {"depth": depth.tobytes(), "depth_encoding": "raw_u16", "depth_scale": 1000.0, "intrinsics": camera}
    found = written(tmp_path, ("scan", rows(records.RGBD, image | {"pose": pose.ravel().tolist()})), points=SIDE * SIDE)

    [cloud] = component(found, "/gate/scan/points", "Points3D:positions")
    points = np.array(cloud)
    assert points.shape == (SIDE * (SIDE - 1), 3)
    assert points[:, 2] == pytest.approx(32.0) and points[:, 1].mean() == pytest.approx(20.0)
    assert points[0, :2] == pytest.approx([10 + 14.5 / 16 * 2, 20 - 15.5 / 16 * 2], abs=1e-4)
    assert component(found, "/gate/scan/camera", "Transform3D:mat3x3") == [[[0, 1, 0, -1, 0, 0, 0, 0, 1]]]  # by columns
    assert component(found, "/gate/scan/camera", "Transform3D:translation") == [[[10.0, 20.0, 30.0]]]
    assert component(found, "/gate/scan/camera", "Pinhole:image_from_camera") == [[[16.0, 0, 0, 0, 16.0, 0, 15.5, 15.5, 1]]]
    assert len(component(found, "/gate/scan/camera", "EncodedImage:blob")) == 1


def test_sensors_are_series_by_channel_and_states_are_told_where_they_change(tmp_path: Path) -> None:
    schema = records.sample_schema(["x", "y"])
    samples = rows(schema, {"values": [1.0, 2.0]}, {"values": [3.0, None]}, {"values": [5.0, 6.0]})
    states = rows(STATES, *({"state": state, "status": "ok"} for state in (1, 1, 2)))
    found = written(tmp_path, ("here", samples), ("states", states))

    assert component(found, "/gate/here/x", "Scalars:scalars") == [[1.0], [3.0], [5.0]]
    assert seconds(found, "/gate/here/y") == [0.0, 2.0]
    assert component(found, "/gate/states/state", "StateChange:state") == [["1"], ["2"]]


def test_an_answer_shows_the_frames_that_it_rests_on(tmp_path: Path) -> None:
    frames = rows(records.FRAME, frame(10), frame(120), frame(250))
    retrieved = [
        [{"event_time": 1_000_000, "sequence": 1, "score": 2.0}, {"event_time": 2_000_000, "sequence": 2, "score": 5.0}]
    ]
    answer = rows(ANSWER, {"question": "where?", "answer": "there", "retrieved": retrieved, "status": "ok"})
    found = written(tmp_path, ("clips", frames), ("watch", answer), retrieved=2)

    assert component(found, "/gate/watch/answer", "TextLog:text") == [["where? there"]]
    cv2 = pytest.importorskip("cv2")
    shades = []
    for place in range(2):
        [blob] = component(found, f"/gate/watch/retrieved/{place}", "EncodedImage:blob")
        shades.append(int(cv2.imdecode(np.frombuffer(bytes(blob[0]), np.uint8), cv2.IMREAD_COLOR).mean()))
    assert shades == pytest.approx([250, 120], abs=3)


def test_files_of_all_epochs_and_attempts_are_one_recording(tmp_path: Path) -> None:
    ids = set()
    for epoch in range(2):
        sink = RerunSink(RerunOptions(path=tmp_path))
        sink.open({"clips": records.FRAME}, attempt=epoch + 1, shard=0)
        sink.write("clips", rows(records.FRAME, frame(epoch)))
        sink.commit(epoch, sink.prepare(epoch))
        sink.close()
    for path in sorted(tmp_path.glob("*.rrd")):
        [entry] = RrdReader(path).recordings()
        ids.add((entry.application_id, entry.recording_id))
    assert len(ids) == 1 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:RRD file has no footer")  # of a file that is being written
def test_a_live_viewer_gets_rows_before_their_epoch_is_committed(tmp_path: Path) -> None:
    """In place of a window: Rerun's own receiver, which writes what reaches it to a file."""
    (port,), seen = free_ports(), tmp_path / "seen.rrd"
    program = Path(find_spec("rerun_cli").origin).parent / "rerun"  # type: ignore[union-attr, arg-type]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", str(seen)]
    env = os.environ | {"HOME": str(tmp_path)}
    receiver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    try:
        wait_for(lambda: _listens(port))
        folder = tmp_path / "rows"
        sink = RerunSink(RerunOptions(path=folder, viewer=f"rerun+http://127.0.0.1:{port}/proxy"))
        detections = rows(detection_schema(["cat", "dog"], "x"), {"detections": [box(1, 0.9)], "status": "ok"})
        sink.open({"clips": records.FRAME, "detect": detections.schema}, attempt=1, shard=0)
        sink.write("clips", rows(records.FRAME, frame(9), frame(90)))
        sink.write("detect", detections)
        wait_for(lambda: "/gate/detect" in _reached(seen) and "/gate/clips" in _reached(seen))
        assert not list(folder.glob("*.rrd"))
        sink.commit(0, sink.prepare(0))
        sink.close()
    finally:
        receiver.kill()
        receiver.wait()
    found, [committed] = read(seen), folder.glob("*.rrd")
    for entity, name in (("/gate/clips", "EncodedImage:blob"), ("/gate/detect", "Boxes2D:labels")):
        assert component(found, entity, name) == component(read(committed), entity, name)
    assert seconds(found, "/gate/clips") == [0.0, 1.0] and component(found, "/gate/detect", "Boxes2D:labels") == [["dog 0.90"]]


def wait_for(holds: Callable[[], bool], seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _reached(seen: Path) -> set[str]:
    try:
        return set(read(seen)) if seen.exists() else set()
    except (OSError, RuntimeError, ValueError):  # not begun yet
        return set()


@pytest.mark.slow  # ten seconds until Rerun gives up
def test_files_are_whole_where_a_viewer_is_away(tmp_path: Path) -> None:
    away = "rerun+http://127.0.0.1:9/proxy"
    found = written(tmp_path, ("clips", rows(records.FRAME, frame(7), frame(8))), viewer=away)
    assert len(component(found, "/gate/clips", "EncodedImage:blob")) == 2


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"viewer='localhost'.*rerun\+http"):
        RerunOptions(path=tmp_path, viewer="localhost")
