"""Divides the CPUs and GPUs of a Ray cluster among the actors of a pipeline, so that they fit onto its nodes.

Pure arithmetic over what the nodes have; asks nothing of Ray but their list. CPUs are wishes: where they do not fit, each
actor gets the same part of its own. GPUs are needs, but for operators with ``device: auto``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from connectors.errors import DeviceError
from pipelines.graph import Graph
from pipelines.runtime.messages import TaskId
from pipelines.spec import OperatorSpec

__all__ = ["Node", "Share", "alive_nodes", "divide"]

_RAY_PRECISION = 1e-4
_SHRINK = 0.97
"""How much less everyone gets at the next try to fit all actors onto the nodes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one actor gets of the cluster."""

    cpus: float
    gpus: float = 0.0
    device: str = "cpu"


def alive_nodes() -> tuple[Node, ...]:
    """Return the nodes that Ray holds for alive; a lost one is among them until its health check has failed."""
    return tuple(
        Node(node["NodeID"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    )


def divide(graph: Graph, actors: Sequence[Sequence[TaskId]], nodes: Sequence[Node]) -> list[Share]:
    """Return what each of ``actors`` gets.

    Raise ``DeviceError`` where an operator asks for more GPU than there is; one with ``device: auto`` then gets the CPU.
    """
    there = sum(node.cpus for node in nodes)
    largest = max((node.cpus for node in nodes), default=0.0)
    gpus = _gpu_shares(graph, sum(node.gpus for node in nodes))
    asked = [_operator(graph, tasks) for tasks in actors]
    wished = [min(largest, sum(graph.spec.node(task.node).num_cpus for task in tasks)) for tasks in actors]
    given = [gpus.get(operator.name, 0.0) if operator is not None else 0.0 for operator in asked]
    total = sum(wished)
    part = min(1.0, there / total) if total else 1.0
    while part > _RAY_PRECISION and not _fits([_floor(wish * part) for wish in wished], given, nodes):
        part *= _SHRINK
    if part < 1.0:
        logger.info(
            "actors=%d ask for %.1f CPUs, the cluster has %.1f: each gets %.0f %%", len(actors), total, there, part * 100
        )
    return [
        Share(
            # More than nothing: so a node without CPUs, such as a head, gets no actor.
            cpus=max(_RAY_PRECISION, wish if part == 1.0 else _floor(wish * part)),
            gpus=gpu,
            # The actor sees its own GPU only, so numbers of devices do not apply.
            device="cpu" if operator is None or not gpu else "auto" if operator.device == "auto" else "cuda",
        )
        for wish, gpu, operator in zip(wished, given, asked, strict=True)
    ]


def _operator(graph: Graph, tasks: Sequence[TaskId]) -> OperatorSpec | None:
    """Return the operator of an actor. None has more than one."""
    nodes = [graph.spec.node(task.node) for task in tasks]
    return next((node for node in nodes if isinstance(node, OperatorSpec)), None)


def _fits(cpus: Sequence[float], gpus: Sequence[float], nodes: Sequence[Node]) -> bool:
    """Return whether actors fit onto nodes, the largest ones placed first, each where it leaves the least room."""
    free = [[node.gpus, node.cpus] for node in nodes]
    for gpu, cpu in sorted(zip(gpus, cpus, strict=True), reverse=True):
        rooms = [room for room in free if room[0] >= gpu - _RAY_PRECISION / 2 and room[1] >= cpu - _RAY_PRECISION / 2]
        if not rooms:
            return False
        room = min(rooms)
        room[0] -= gpu
        room[1] -= cpu
    return True


def _gpu_shares(graph: Graph, there: float) -> dict[str, float]:
    """Return operator → GPU share of one of its shards; operators that run on the CPU are left out."""
    users = [node for node in graph.spec.operators if node.device != "cpu"]
    open_shards = sum(node.shards for node in users if not node.gpus)
    firm = sum(node.gpus * node.shards for node in users)
    each = _each(max(0.0, there - firm), open_shards)
    result = {}
    for node in users:
        share = node.gpus or each
        if share and firm <= there:
            result[node.name] = share
        elif node.device != "auto":
            raise DeviceError(_missing(node, there))
        elif node.gpus:
            logger.warning(
                "operator=%s asks for %g GPUs per shard, the cluster has %g: it runs on the CPU", node.name, share, there
            )
    return result


def _each(rest: float, shards: int) -> float:
    """Divide the GPUs that the others leave among the shards that name no share. No shard has parts of two GPUs."""
    if not shards:
        return 0.0
    whole = int(rest)
    return _floor(rest / shards) if not whole else _floor(1.0 / max(1, -(-shards // whole)))


def _floor(amount: float) -> float:
    return round(int(amount / _RAY_PRECISION + 1e-6) * _RAY_PRECISION, 4)


def _missing(node: OperatorSpec, there: float) -> str:
    asks = f"{node.gpus * node.shards:g} GPU" if node.gpus else "a GPU"
    if node.gpus and node.shards > 1:
        asks += f" ({node.shards} shards of {node.gpus:g})"
    return (
        f"operators.{node.name}: device {node.device!r} asks for {asks}, the Ray cluster has {there:g}; add GPU workers, "
        "ask for less, or set 'device: auto' or 'device: cpu'"
    )
