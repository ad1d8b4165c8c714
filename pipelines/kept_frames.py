"""Who may read a source whose frames stay on a device: one operator that takes them, in the process of the source.

Everyone else would need their pixels on the host: sinks, other processes, rows that wait for event time and are saved with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipelines import registry
from pipelines.devices import device_problem
from pipelines.outputs import node_of
from pipelines.spec import NodeSpec, OperatorSpec, SinkSpec, SourceSpec

__all__ = ["kept_frame_problems"]


def kept_frame_problems(nodes: Iterable[NodeSpec], runner: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the key path and what is wrong, for all nodes of a pipeline."""
    nodes = list(nodes)
    for source in nodes:
        if isinstance(source, SourceSpec) and source.kept_on is not None:
            yield from _problems(source, source.kept_on, nodes, runner)


def _problems(source: SourceSpec, device: str, nodes: list[NodeSpec], runner: str) -> Iterator[tuple[tuple[str, ...], str]]:
    own = ("sources", source.name)
    keeps = f"{source.name!r} keeps its frames on {device!r}"
    remedy = f"remove device from sources.{source.name}"
    problem = device_problem(device, runner)
    if problem is not None:
        yield (*own, "device"), problem
    if source.parallelism > 1:
        yield (
            (*own, "parallelism"),
            f"is {source.parallelism}, but frames kept on a device go to one operator; set 1, or {remedy}",
        )
    operators = [node for node in nodes if isinstance(node, OperatorSpec) and source.name in map(node_of, node.inputs)]
    if len(operators) > 1:
        names = " and ".join(repr(node.name) for node in operators)
        yield (
            (*own, "device"),
            f"{names} read it, but a kept frame goes to one operator; give each a source of its own, or {remedy}",
        )
    for node in nodes:
        if isinstance(node, SinkSpec) and source.name in map(node_of, node.inputs):
            yield ("sinks", node.name), f"{keeps}, so its rows hold no pixels for a sink; read another node, or {remedy}"
        if isinstance(node, OperatorSpec) and source.name in map(node_of, node.control):
            yield ("operators", node.name, "control"), f"{keeps}, and frames control nothing; read another node"
    for node in operators:
        where = ("operators", node.name)
        if not registry.load("operator", node.type).takes_kept_frames:
            yield where, f"{keeps}, and operators of type {node.type!r} take frames with their pixels only; {remedy}"
        if node.shards > 1:
            yield (*where, "shards"), f"is {node.shards}, but {keeps}, for one operator in its process; set 1, or {remedy}"
        if node.align_s is not None:
            yield (*where, "align_s"), f"lets rows wait, and {keeps}, where they cannot be saved; remove align_s, or {remedy}"
        if node.device == "cpu" and device != "cpu":
            yield (*where, "device"), f"is 'cpu', but {keeps}; set {device!r}, or {remedy}"
