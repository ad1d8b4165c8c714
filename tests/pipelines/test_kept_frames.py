"""Who may read a source that keeps its frames on a device; everyone else is refused when the file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from connectors.errors import ConfigError
from pipelines.api import Pipeline
from pipelines.check import check_spec
from pipelines.file import spec_from_dict


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "kept",
        "state": str(folder / "state"),
        "sources": {"clips": {"type": "video", "path": str(folder), "decoder": "torchcodec", "device": "cpu"}},
        "operators": {"detect": {"type": "mamba", "input": "clips", "checkpoint": "x.safetensors"}},
        "sinks": {"rows": {"type": "parquet", "input": "detect", "path": str(folder / "rows")}},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = made
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return made


def test_one_operator_in_its_process_may_read_it(tmp_path: Path) -> None:
    spec = spec_from_dict(values(tmp_path))
    assert spec.sources[0].kept_on == "cpu"
    assert spec.takes_kept(spec.operators[0])
    plain = spec_from_dict(values(tmp_path, sources__clips__device=None))
    assert plain.sources[0].kept_on is None
    assert not plain.takes_kept(plain.operators[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sinks__rows__input": "clips"},
            "sinks.rows: 'clips' keeps its frames on 'cpu', so its rows hold no pixels for a sink",
        ),
        (
            {
                "operators__again": {"type": "mamba", "input": "clips", "checkpoint": "x"},
                "sinks__rows__inputs": ["detect", "again"],
            },
            "sources.clips.device: 'detect' and 'again' read it, but a kept frame goes to one operator; give each a source",
        ),
        ({"operators__detect__shards": 2}, "operators.detect.shards: is 2, but 'clips' keeps its frames on 'cpu'"),
        ({"sources__clips__parallelism": 2}, "sources.clips.parallelism: is 2, but frames kept on a device go to one operator"),
        (
            {"operators__detect__align_s": 1.0},
            "operators.detect.align_s: lets rows wait, and 'clips' keeps its frames on 'cpu'",
        ),
        (
            {"operators__detect": {"type": "null", "input": "clips"}},
            "operators.detect: 'clips' keeps its frames on 'cpu', and operators of type 'null' take frames with",
        ),
        (
            {"sources__clips__device": "cuda", "operators__detect__device": "cpu"},
            "operators.detect.device: is 'cpu', but 'clips' keeps its frames on 'cuda'; set 'cuda', or remove device from",
        ),
        (
            {"sources__clips__device": "cuda:1", "runner": "ray"},
            "sources.clips.device: is 'cuda:1', but on Ray every task sees",
        ),
    ],
)
def test_who_cannot_take_kept_frames_is_refused_with_what_to_do(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = values(tmp_path, **changes)
    if "sinks__rows__inputs" in changes:
        del given["sinks"]["rows"]["input"]
    for read in (spec_from_dict, Pipeline.from_dict):
        with pytest.raises(ConfigError) as refused:
            read(given)
        assert message in str(refused.value)


def test_another_runner_refuses_a_numbered_gpu(tmp_path: Path) -> None:
    spec = spec_from_dict(values(tmp_path, sources__clips__device="cuda:1"))
    with pytest.raises(ConfigError, match=r"sources.clips.device: is 'cuda:1', but on Ray"):
        spec.with_runner("ray")


def test_a_gpu_that_is_not_there_is_told_by_check_and_before_a_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "a.mp4").touch()
    spec = spec_from_dict(values(tmp_path, sources__clips__device="cuda"))
    message = "device 'cuda' is not there: on this machine there is no CUDA GPU; set 'device: cpu', or remove it"
    assert ("sources.clips.device", message) in [(found.where, found.message) for found in check_spec(spec)]
