"""Tasks, edges and the order of nodes."""

from __future__ import annotations

import itertools
from typing import Any

from pipelines.file import spec_from_dict
from pipelines.graph import Graph, topological_order
from pipelines.runtime.messages import Edge, TaskId


def graph(**operators: dict[str, Any]) -> Graph:
    last = list(operators)[-1]
    return Graph(
        spec_from_dict(
            {
                "name": "g",
                "state": "s",
                "sources": {"a": {"type": "video", "path": "x", "parallelism": 2}},
                "operators": operators,
                "sinks": {"out": {"type": "jsonl", "path": "y", "inputs": ["a", last]}},
            }
        )
    )


def test_every_sender_has_an_edge_to_every_shard_of_a_receiver() -> None:
    found = graph(f={"type": "null", "input": "a", "shards": 3})
    assert found.tasks == [TaskId("a", 0), TaskId("a", 1), *(TaskId("f", n) for n in range(3)), TaskId("out", 0)]
    assert set(found.inputs_of(TaskId("f", 1))) == {Edge(TaskId("a", n), TaskId("f", 1)) for n in range(2)}
    assert {edge.receiver for edge in found.outputs_of(TaskId("a", 0))} == {*found.tasks_of("f"), TaskId("out", 0)}
    assert len(found.edges) == 2 * 3 + 2 + 3


def test_control_rows_have_edges_of_their_own() -> None:
    spec = {
        "name": "g",
        "state": "s",
        "sources": {n: {"type": "pipeline_types:NumberSource", "path": n} for n in ("numbers", "hints")},
        "operators": {"label": {"type": "pipeline_types:LabelOperator", "input": "numbers", "control": "hints"}},
        "sinks": {"out": {"type": "jsonl", "path": "y", "input": "label"}},
    }
    edges = Graph(spec_from_dict(spec)).inputs_of(TaskId("label", 0))
    assert [(edge.sender.node, edge.role) for edge in edges] == [("numbers", "data"), ("hints", "control")]


def test_each_output_has_edges_of_its_own() -> None:
    spec = {
        "name": "g",
        "state": "s",
        "sources": {"numbers": {"type": "pipeline_types:NumberSource", "path": "n"}},
        "operators": {
            "cut": {"type": "pipeline_types:SplitOperator", "input": "numbers", "shards": 2},
            "label": {"type": "pipeline_types:LabelOperator", "input": "cut.high", "control": "cut.low"},
        },
        "sinks": {"out": {"type": "flight", "inputs": ["cut.low", "label", "cut.high"]}},
    }
    found = Graph(spec_from_dict(spec))
    assert [(str(edge), edge.source, edge.role) for edge in found.inputs_of(TaskId("label", 0))] == [
        ("cut[0]:high->label[0]", "cut.high", "data"),
        ("cut[1]:high->label[0]", "cut.high", "data"),
        ("cut[0]:low->label[0]:control", "cut.low", "control"),
        ("cut[1]:low->label[0]:control", "cut.low", "control"),
    ]
    assert len(set(found.inputs_of(TaskId("out", 0)))) == 5


def test_operators_stand_after_what_they_read() -> None:
    found = graph(c={"type": "null", "input": "b"}, b={"type": "null", "input": "a"}, d={"type": "null", "inputs": ["c", "b"]})
    assert [node.name for node in found.spec.operators] == ["b", "c", "d"]


def test_a_cycle_is_returned_in_the_direction_of_the_rows() -> None:
    order, cycle = topological_order({"free": ["source"], "x": ["z"], "y": ["x"], "z": ["y", "free"]})
    assert order == ["free"]
    assert cycle[0] == cycle[-1]
    assert set(itertools.pairwise(cycle)) == {("x", "y"), ("y", "z"), ("z", "x")}
