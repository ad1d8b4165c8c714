"""The nodes of a pipeline as a graph of tasks: who sends to whom, in which order they are built.

A *task* is one shard of a node. Between the tasks of two joined nodes runs an edge from every sender to every receiver; rows
take the one that their stream's key group belongs to (``pipelines.runtime.keys``). Knows nothing of runners.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

from pipelines.outputs import node_of, output_of
from pipelines.runtime.messages import Edge, TaskId
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec

__all__ = ["Graph", "topological_order"]


def topological_order(inputs: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Order nodes so that each follows its inputs; return them and the nodes of one cycle (empty where there is none).

    ``inputs`` maps a node to the nodes that it reads. Names that are no key (sources, unknown names) count as given. Nodes
    that do not depend on each other keep their order.
    """
    order: list[str] = []
    waiting = {name: {up for up in ups if up in inputs} for name, ups in inputs.items()}
    while waiting:
        ready = [name for name, ups in waiting.items() if not ups & waiting.keys()]
        if not ready:
            return order, _cycle(waiting)
        order += ready
        for name in ready:
            del waiting[name]
    return order, []


class Graph:
    """Tasks and edges of a pipeline. Built from the spec alone: cheap, no I/O."""

    def __init__(self, spec: PipelineSpec) -> None:
        self.spec = spec

    @cached_property
    def tasks(self) -> list[TaskId]:
        """All tasks: sources, operators in topological order, sinks."""
        return [TaskId(node.name, shard) for node in self.spec.nodes.values() for shard in range(_shards(node))]

    @cached_property
    def edges(self) -> list[Edge]:
        """All edges, grouped by receiver; data edges of a receiver come before its control edges."""
        edges: list[Edge] = []
        receivers: list[OperatorSpec | SinkSpec] = [*self.spec.operators, *self.spec.sinks]
        for node in receivers:
            aligned = node.name in self._align_waits
            for shard in range(node.shards):
                receiver = TaskId(node.name, shard)
                for up in node.inputs:
                    edges += [Edge(sender, receiver, "data", aligned, output_of(up)) for sender in self.tasks_of(node_of(up))]
                if isinstance(node, OperatorSpec):
                    for up in node.control:
                        follows = aligned and node.align_control
                        edges += [
                            Edge(sender, receiver, "control", follows, output_of(up)) for sender in self.tasks_of(node_of(up))
                        ]
        return edges

    def split_wait_s(self, source: str) -> float:
        """Return how long a silent split of a source may hold back those behind it that align its rows (infinity: for ever)."""
        waits = [
            self._align_waits[node.name]
            for node in self.spec.operators
            if node.name in self._align_waits and source in _aligned_inputs(node)
        ]
        return max(waits, default=math.inf)

    @cached_property
    def _align_waits(self) -> dict[str, float]:
        """The longest ``align_wait_s`` of operators that align by event time and, for those that such ones read, of those."""
        waits: dict[str, float] = {}
        for node in reversed(self.spec.operators):
            if node.align_s is not None:
                own = math.inf if node.align_wait_s is None else node.align_wait_s
                waits[node.name] = max(own, waits.get(node.name, own))
            if node.name in waits:
                for up in _aligned_inputs(node):
                    if isinstance(self.spec.node(up), OperatorSpec):
                        waits[up] = max(waits[node.name], waits.get(up, 0.0))
        return waits

    def tasks_of(self, node: str) -> list[TaskId]:
        """Return the tasks of one node, by shard."""
        return [TaskId(node, shard) for shard in range(_shards(self.spec.node(node)))]

    def inputs_of(self, task: TaskId) -> list[Edge]:
        """Return the edges into a task."""
        return [edge for edge in self.edges if edge.receiver == task]

    def outputs_of(self, task: TaskId) -> list[Edge]:
        """Return the edges out of a task."""
        return [edge for edge in self.edges if edge.sender == task]


def _aligned_inputs(node: OperatorSpec) -> tuple[str, ...]:
    return tuple(map(node_of, (*node.inputs, *(node.control if node.align_control else ()))))


def _shards(node: SourceSpec | OperatorSpec | SinkSpec) -> int:
    return node.parallelism if isinstance(node, SourceSpec) else node.shards


def _cycle(waiting: Mapping[str, set[str]]) -> list[str]:
    """Return the nodes of one cycle, in the direction of the rows, the first one repeated at the end."""
    name = next(iter(waiting))
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = sorted(waiting[name] & waiting.keys())[0]
    return [*path[path.index(name) :], name][::-1]
