from __future__ import annotations

from pathlib import Path
from typing import Any

from connectors.sources.jsonl import JsonlSource
from connectors.sources.video import VideoSource
from pipelines.graph import Graph
from pipelines.runners.placement import placement
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec
from pipelines.testing.running_mean import RunningMeanOptions


def operator(name: str, *inputs: str, shards: int = 1) -> OperatorSpec:
    kind = "pipelines.testing.running_mean:RunningMean"
    return OperatorSpec(name=name, type=kind, options=RunningMeanOptions(), inputs=inputs, shards=shards)


def actors(source: type[Any], operators: list[OperatorSpec], **changes: Any) -> list[list[str]]:
    kind = {VideoSource: "video", JsonlSource: "jsonl"}[source]
    spec = PipelineSpec(
        name="p",
        state=Path("state"),
        sources=(SourceSpec(name="clips", type=kind, options=source.Options(path="x"), **changes),),
        operators=tuple(operators),
        sinks=(SinkSpec(name="rows", type="jsonl", options=None, inputs=("clips", *(node.name for node in operators))),),
    )
    return [[str(task) for task in tasks] for tasks in placement(Graph(spec))]


def test_frames_are_read_where_they_are_used() -> None:
    assert actors(VideoSource, [operator("detect", "clips")]) == [["detect[0]", "clips[0]"], ["rows[0]"]]


def test_the_first_of_several_operators_is_chosen() -> None:
    operators = [operator("wide", "clips", shards=2), operator("a", "clips"), operator("b", "clips")]
    assert actors(VideoSource, operators) == [["wide[0]"], ["wide[1]"], ["a[0]", "clips[0]"], ["b[0]"], ["rows[0]"]]


def test_small_rows_and_work_that_is_spread_get_actors_of_their_own() -> None:
    assert actors(JsonlSource, [operator("mean", "clips")]) == [["clips[0]"], ["mean[0]"], ["rows[0]"]]
    assert len(actors(VideoSource, [operator("detect", "clips", shards=2)])) == 4
    assert len(actors(VideoSource, [operator("detect", "clips")], parallelism=2)) == 4
