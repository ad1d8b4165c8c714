"""What ``check`` finds without running: files, schemas between nodes, checkpoints, devices, folders."""

from __future__ import annotations

import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_types import LabelOperator

from connectors.records import FRAME
from operators.streams import StreamOptions
from pipelines import check
from pipelines.api import Pipeline
from pipelines.check import Finding
from pipelines.registry import ready_pipelines
from pipelines.runtime.keys import shard_of


def findings(tmp_path: Path, **changes: Any) -> list[Finding]:
    """Check a sound pipeline with some dotted keys changed; ``__`` stands for a dot."""
    (tmp_path / "n.txt").touch()
    pipeline = {
        "name": "labels",
        "state": "state",
        "sources": {"numbers": {"type": "pipeline_types:NumberSource", "path": "n.txt"}},
        "operators": {"label": {"type": "pipeline_types:LabelOperator", "input": "numbers"}},
        "sinks": {"rows": {"type": "parquet", "input": "label", "path": "rows"}},
    }
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    return Pipeline.from_dict(pipeline, base=tmp_path, overrides=overrides).check()


def problems(found: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.where, finding.message) for finding in found if finding.level != "ok"]


def test_a_sound_pipeline_is_said_to_be_ok_node_by_node(tmp_path: Path) -> None:
    assert findings(tmp_path) == [
        Finding("ok", "sources.numbers", "pipeline_types:NumberSource, 1 split (only), rows of numbers.v1"),
        Finding("ok", "operators.label", "pipeline_types:LabelOperator on auto, gives labeled.v1"),
        Finding("ok", "sinks.rows", f"parquet into {tmp_path}/rows"),
    ]


def test_every_output_is_named_with_its_schema_and_whether_somebody_reads_it(tmp_path: Path) -> None:
    changes = {"operators__label__type": "pipeline_types:SplitOperator", "sinks__rows__input": "label.high"}
    found = findings(tmp_path, **changes)
    assert (
        Finding(
            "ok",
            "operators.label",
            "pipeline_types:SplitOperator on auto, gives label.low (labeled.v1), label.high (high.v1); nobody reads label.low",
        )
        in found
    )
    assert problems(found) == []
    wrong = problems(findings(tmp_path, **changes, sinks__rows__columns=["label"]))
    assert [(level, where) for level, where, _ in wrong] == [("error", "sinks.rows")]
    assert "'label'" in wrong[0][2]  # which only the other output has


def test_schemas_of_outputs_that_options_decide_are_told(tmp_path: Path) -> None:
    found = findings(tmp_path, operators__label__type="pipeline_types:TaggedOperator", operators__label__high=7)
    gives = "gives label, label.low, label.high (high_7.v1); nobody reads label.low, label.high"
    assert f"pipeline_types:TaggedOperator on auto, {gives}" in [finding.message for finding in found]


def test_rows_of_one_output_that_do_not_fit_an_operator(tmp_path: Path) -> None:
    more = {"type": "pipeline_types:LabelOperator", "input": "label.low"}
    changes = {"operators__label__type": "pipeline_types:SplitOperator", "operators__more": more, "sinks__rows__input": "more"}
    assert problems(findings(tmp_path, **changes))[0][:2] == ("error", "operators.more.input")
    more["input"] = "label.high"
    assert problems(findings(tmp_path, **changes)) == []


def test_nothing_is_written_by_a_check(tmp_path: Path) -> None:
    findings(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["n.txt"]


def test_all_nodes_are_checked_and_all_problems_reported(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    found = problems(
        findings(
            tmp_path, numbers__path=tmp_path / "none.txt", rows__path=blocked / "rows", numbers__parallelism=2, state=blocked
        )
    )
    assert found == [
        ("error", "state", f"{blocked} is a file, so the folder {blocked} cannot be made; choose another path"),
        ("error", "sources.numbers", f"no such file: '{tmp_path}/none.txt'"),
        ("error", "sinks.rows.path", f"{blocked} is a file, so the folder {blocked}/rows cannot be made; choose another path"),
    ]


def test_more_tasks_than_files_are_a_warning(tmp_path: Path) -> None:
    assert problems(findings(tmp_path, numbers__parallelism=2)) == [
        ("warning", "sources.numbers.parallelism", "is 2, but there is only 1 split; the other tasks idle")
    ]


def test_rows_that_do_not_fit_an_operator(tmp_path: Path) -> None:
    found = problems(findings(tmp_path, operators={"label": {"type": "null", "input": "numbers"}}))
    assert [(level, where) for level, where, _ in found] == [("error", "operators.label.input")]
    assert found[0][2].startswith("rows of 'numbers' do not fit: column 'image' (binary) is missing; column 'encoding'")


def test_control_rows_that_do_not_fit(tmp_path: Path) -> None:
    found = problems(findings(tmp_path, label__control="numbers"))
    assert [(level, where) for level, where, _ in found] == [("error", "operators.label.control")]
    assert "column 'label' (string) is missing" in found[0][2]


def test_options_of_a_sink_that_do_not_fit_its_input(tmp_path: Path) -> None:
    found = problems(findings(tmp_path, rows__columns=["stream_id", "lable"]))
    assert [(level, where) for level, where, _ in found] == [("error", "sinks.rows")]
    assert "lable" in found[0][2]


def test_a_sink_of_one_input_with_two(tmp_path: Path) -> None:
    found = problems(findings(tmp_path, sinks__rows={"type": "parquet", "inputs": ["label", "numbers"], "path": "rows"}))
    assert [(level, where) for level, where, _ in found] == [("error", "sinks.rows")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    message = "device 'cuda' is not there: on this machine there is no CUDA GPU; set 'device: auto' or 'device: cpu'"
    assert problems(findings(tmp_path, label__device="cuda")) == [("error", "operators.label.device", message)]
    [(level, where, _)] = problems(findings(tmp_path, label__device="cuda", runner="ray"))
    assert (level, where) == ("warning", "operators.label.device")


def test_a_state_folder_with_epochs_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "state/epochs").mkdir(parents=True)
    (tmp_path / "state/epochs/000000.json").touch()
    message = (
        f"{tmp_path}/state holds epochs of an earlier run: go on with --resume, start over with --fresh, or choose another"
    )
    assert problems(findings(tmp_path)) == [("warning", "state", message)]


def mamba(tmp_path: Path, checkpoint: Path) -> list[tuple[str, str, str]]:
    return problems(findings(tmp_path, operators={"label": {"type": "mamba", "input": "numbers", "checkpoint": checkpoint}}))


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    found = mamba(tmp_path, tmp_path / "none.safetensors")
    message = f"{tmp_path}/none.safetensors: cannot be read: No such file or directory; check the path"
    assert ("error", "operators.label", message) in found


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{nothing")
    assert any(
        where == "operators.label" and "not a complete safetensors file" in text
        for _, where, text in mamba(tmp_path, tmp_path / "m.safetensors")
    )


def pipelines_of_videos() -> list[str]:
    from pipelines.file import load_spec

    return [name for name in sorted(ready_pipelines()) if {source.type for source in load_spec(name).sources} == {"video"}]


@pytest.mark.parametrize("name", pipelines_of_videos())
def test_schemas_of_ready_pipelines_fit(name: str, tmp_path: Path) -> None:
    """Input files are the user's, so the checks run on a video and weights that stand in for them.

    Pipelines of other sources are checked beside the tests of their operators.
    """
    import cv2
    import numpy as np

    from pipelines.file import load_spec

    video = tmp_path / "v.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    weights = Path(__file__).resolve().parents[2] / "models/mamba/weights/shapes.safetensors"
    spec = load_spec(name)
    overrides: dict[str, Any] = {f"{source.name}.path": video for source in spec.sources}
    overrides |= {f"{sink.name}.path": tmp_path / sink.name for sink in spec.sinks}
    overrides |= {f"{node.name}.checkpoint": weights for node in spec.operators if node.type == "mamba"}
    found = Pipeline.load(name, overrides={**overrides, "state": tmp_path / "state"}).check()
    assert [finding for finding in found if finding.level == "error"] == []
    assert len(found) >= len(spec.nodes)


@pytest.mark.filterwarnings("ignore:.*_text is deprecated")  # by kafka-python when it is imported
def test_a_broker_that_does_not_answer_is_found_out_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LISTING_S", 0.2)
    with socket.socket() as held:  # bound and not listening: refuses, and nobody else gets the port
        held.bind(("127.0.0.1", 0))
        topic = {
            "type": "kafka",
            "bootstrap_servers": f"127.0.0.1:{held.getsockname()[1]}",
            "topic": "t",
            "columns": {"n": "int64"},
        }
        began = time.monotonic()
        [(level, where, message)] = problems(findings(tmp_path, sources__numbers=topic))
    assert (level, where) == ("error", "sources.numbers")
    assert "cannot list topics" in message and "check that bootstrap_servers can be reached" in message
    assert time.monotonic() - began < 15  # a client asks for 30 s before a run


# Streams and slots


@dataclass(frozen=True, kw_only=True)
class SlotOptions(StreamOptions):
    """Those of every operator with a memory per stream."""


class Slots(LabelOperator):
    """Has a memory per stream."""

    Options = SlotOptions
    input_schema = FRAME
    control_schema = None


def room(tmp_path: Path, files: int, *, kind: str = "video", shards: int = 1, **options: Any) -> list[tuple[str, str, str]]:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(files):
        (folder / f"cam{n}.mp4").touch()
    sources: dict[str, Any] = {"frames": {"type": "video", "path": str(folder)}}
    if kind == "camera":
        sources = {"frames": {"type": "camera", "cameras": {f"cam{n}": str(n) for n in range(files)}}}
    values = {
        "name": "p",
        "state": "state",
        "sources": sources,
        "operators": {"detect": {"type": "test_check:Slots", "input": "frames", "shards": shards, **options}},
        "sinks": {"rows": {"type": "jsonl", "input": "detect", "path": "rows"}},
    }
    return problems(Pipeline.from_dict(values, base=tmp_path).check())


def test_more_streams_than_slots_are_a_warning_that_says_what_becomes_of_them(tmp_path: Path) -> None:
    assert room(tmp_path, 5, max_streams=4) == [
        (
            "warning",
            "operators.detect.max_streams",
            "is 4, but 5 streams come at the same time: the others lose their memory (status reset); set it to 5 or more",
        )
    ]


def test_streams_that_are_refused_are_called_so(tmp_path: Path) -> None:
    [(_, _, message)] = room(tmp_path, 3, kind="camera", max_streams=2, on_streams_full="reject")
    assert message.startswith("is 2, but 3 streams come at the same time: those beyond are refused (status rejected_full)")


def test_files_that_follow_one_another_need_slots_for_those_that_are_open_at_once(tmp_path: Path) -> None:
    assert room(tmp_path, 200, max_streams=64) == []


def test_cameras_are_all_open_at_once(tmp_path: Path) -> None:
    [(_, _, message)] = room(tmp_path, 200, kind="camera", max_streams=64)
    assert message.startswith("is 64, but 200 streams come at the same time")


def test_slots_are_those_of_a_shard(tmp_path: Path) -> None:
    fullest = max(Counter(shard_of(f"cam{n}", 3) for n in range(10)).values())
    [(_, _, message)] = room(tmp_path, 10, kind="camera", shards=3, max_streams=fullest - 1)
    assert f"but {fullest} streams come at the same time in the fullest of 3 shards" in message


def test_enough_slots_are_no_warning_with_shards_either(tmp_path: Path) -> None:
    fullest = max(Counter(shard_of(f"cam{n}", 3) for n in range(10)).values())
    assert room(tmp_path, 10, kind="camera", shards=3, max_streams=fullest) == []
