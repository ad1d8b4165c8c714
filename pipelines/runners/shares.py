"""What each actor of a pipeline asks of a Ray cluster, as bundles of one placement group.

CPUs are what the pipeline file says; Ray finds the places. GPUs that no operator names a share of are divided among the shards
that want one, and ``device: auto`` makes do with the CPU. Pure arithmetic; asks nothing of Ray but its list of nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from connectors.errors import DeviceError
from pipelines.graph import Graph
from pipelines.runtime.messages import TaskId
from pipelines.spec import OperatorSpec

__all__ = ["Node", "Share", "alive_nodes", "cannot_fit", "divide"]

_RAY_PRECISION = 1e-4
_LEAST_CPUS = 1e-3
"""What an actor reserves where none reserves anything: Ray takes no empty bundles, and a node without CPUs gets no actor."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one actor asks for."""

    cpus: float
    gpus: float = 0.0
    device: str = "cpu"
    bundle: int = 0
    """The bundle that it is placed in: its own or, for an actor that reserves nothing, the one of an actor next to it."""


def alive_nodes() -> tuple[Node, ...]:
    """Return the nodes that Ray considers alive; a lost one is among them until its health check has failed."""
    return tuple(
        Node(node["NodeID"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    )


def divide(
    graph: Graph, actors: Sequence[Sequence[TaskId]], nodes: Sequence[Node]
) -> tuple[list[Share], list[dict[str, float]]]:
    """Return what each of ``actors`` gets, and the bundles to reserve.

    Raise ``DeviceError`` where an operator asks for more GPU than there is; one with ``device: auto`` then gets the CPU.
    """
    gpus = _gpu_shares(graph, sum(node.gpus for node in nodes))
    asked = [_operator(graph, tasks) for tasks in actors]
    cpus = [sum(graph.spec.node(task.node).num_cpus for task in tasks) for tasks in actors]
    given = [gpus.get(operator.name, 0.0) if operator is not None else 0.0 for operator in asked]
    if not any(cpus) and not any(given):
        cpus = [_LEAST_CPUS] * len(actors)
    owners = [number for number in range(len(actors)) if cpus[number] or given[number]]
    hosts = _hosts(graph, actors, owners)
    shares = [
        # The actor sees its own GPU only, so numbers of devices do not apply.
        Share(cpu, gpu, "cpu" if operator is None or not gpu else "auto" if operator.device == "auto" else "cuda", host)
        for cpu, gpu, operator, host in zip(cpus, given, asked, hosts, strict=True)
    ]
    bundles = [{name: amount for name, amount in (("CPU", cpus[n]), ("GPU", given[n])) if amount} for n in owners]
    return shares, bundles


def cannot_fit(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Node]) -> str | None:
    """Return why ``bundles`` cannot be placed on ``nodes`` even when all are free, None where that is not plain to see."""
    for name, have in (("CPU", [node.cpus for node in nodes]), ("GPU", [node.gpus for node in nodes])):
        wanted = [bundle.get(name, 0.0) for bundle in bundles]
        largest, total = max(wanted, default=0.0), sum(wanted)
        if largest > max(have, default=0.0) + _RAY_PRECISION:
            return f"one actor asks for {largest:g} {name}s, and no node has more than {max(have, default=0.0):g}"
        if total > sum(have) + _RAY_PRECISION:
            return f"all actors together ask for {total:g} {name}s, and all nodes have {sum(have):g}"
    return None


def _hosts(graph: Graph, actors: Sequence[Sequence[TaskId]], owners: Sequence[int]) -> list[int]:
    """Return the bundle of each actor; ``owners`` are those that have one of their own, in this order.

    One that has none goes where its rows go to, else where they come from, shard by shard.
    """
    bundle_of = {task: bundle for bundle, number in enumerate(owners) for task in actors[number]}
    hosts = []
    for number, tasks in enumerate(actors):
        own = bundle_of.get(tasks[0])
        if own is None:
            others = [edge.receiver for task in tasks for edge in graph.outputs_of(task)]
            others += [edge.sender for task in tasks for edge in graph.inputs_of(task)]
            near = list(dict.fromkeys(bundle_of[other] for other in others if other in bundle_of))
            own = near[tasks[0].shard % len(near)] if near else number % len(owners)
        hosts.append(own)
    return hosts


def _operator(graph: Graph, tasks: Sequence[TaskId]) -> OperatorSpec | None:
    """Return the operator of an actor. None has more than one."""
    nodes = [graph.spec.node(task.node) for task in tasks]
    return next((node for node in nodes if isinstance(node, OperatorSpec)), None)


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
