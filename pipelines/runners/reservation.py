"""Reserves cluster resources for one attempt, all or nothing, waits for them, and gives them back.

A Ray placement group holds the bundles of all actors. It is ready only when every node in it has answered, so an attempt that
follows a lost node does not begin on a node that is dead and that Ray has not yet found out about.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from connectors.errors import DeviceError, StreambankError
from pipelines.graph import Graph
from pipelines.runners.shares import Node, Share, alive_nodes, cannot_fit, divide
from pipelines.runtime.messages import TaskId

__all__ = ["Reservation", "Stopped", "reserve"]

_LOOK_S = 0.5
"""How often the list of nodes is looked at while the resources are not there."""

_TELL_AFTER_S = 5.0

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was stopped before an attempt had started."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Resources for the actors of an attempt."""

    actors: Sequence[tuple[TaskId, ...]]
    shares: Sequence[Share]
    """Of each actor."""
    group: PlacementGroup

    def options(self, actor: int) -> dict[str, Any]:
        """Return the options of Ray that put an actor into its place."""
        share = self.shares[actor]
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=share.bundle)
        return {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": strategy}

    def release(self) -> None:
        """Give the resources back. What still runs on them is killed."""
        remove_placement_group(self.group)


def reserve(graph: Graph, actors: Sequence[tuple[TaskId, ...]], *, again: bool, stop: threading.Event) -> Reservation:
    """Reserve what ``actors`` ask for, recomputed whenever a node comes or goes; wait ``resources_wait_s`` for it.

    ``again``: an earlier attempt had its resources, so a GPU that is not there is waited for as well. Raise ``DeviceError`` or
    ``StreambankError`` where they are not there in time, ``Stopped`` when ``stop`` is set.
    """
    wait_s = graph.spec.resources_wait_s
    began = monotonic()
    told = False
    while True:
        nodes = alive_nodes()
        problem: StreambankError
        hopeless = None
        try:
            shares, bundles = divide(graph, actors, nodes)
        except DeviceError as error:
            if not again:
                raise
            problem = error
            stop.wait(_LOOK_S)
        else:
            hopeless = cannot_fit(bundles, nodes)
            problem = StreambankError(_missing(graph, bundles, nodes, hopeless))
            if hopeless is not None and not told:
                told = True
                logger.warning("waiting for nodes to join, %.0f s at most: %s", wait_s, problem)
            group = _wait(graph, bundles, nodes, began + wait_s, stop)
            if group is not None:
                return Reservation(actors, shares, group)
        if stop.is_set():
            raise Stopped
        waited_s = monotonic() - began
        if waited_s >= wait_s:
            raise type(problem)(f"{problem} (waited {waited_s:.0f} s, as resources_wait_s says)")
        if not told and waited_s >= _TELL_AFTER_S:
            told = True
            logger.warning("waiting for resources, %.0f s at most: %s", wait_s, problem)


def _wait(
    graph: Graph, bundles: Sequence[dict[str, float]], nodes: Sequence[Node], deadline: float, stop: threading.Event
) -> PlacementGroup | None:
    """Return a placement group that is ready, None as soon as the cluster is another one or it is too late."""
    group = placement_group(list(bundles), strategy=graph.spec.placement.upper())
    began = monotonic()
    while not group.wait(_LOOK_S):
        # After a while it is asked for again, so that the log tells what is missing.
        waited_s = monotonic() - began
        if stop.is_set() or monotonic() >= deadline or waited_s > _TELL_AFTER_S or alive_nodes() != tuple(nodes):
            remove_placement_group(group)
            return None
    return group


def _missing(graph: Graph, bundles: Sequence[Mapping[str, float]], nodes: Sequence[Node], hopeless: str | None) -> str:
    ask = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
    free = ray.available_resources()
    cluster = (
        f"{len(nodes)} nodes with {sum(node.cpus for node in nodes):g} CPUs and {sum(node.gpus for node in nodes):g} GPUs, of "
        f"which {free.get('CPU', 0.0):g} and {free.get('GPU', 0.0):g} are free"
    )
    if hopeless is not None:
        why = f"its actors can never fit onto the Ray cluster as it is: {hopeless}. It has {cluster}. Add nodes"
    else:
        why = (
            f"there is no room for its actors, which ask for {ask['CPU']:g} CPUs and {ask['GPU']:g} GPUs; the Ray cluster has "
            f"{cluster}. End other runs, add nodes"
        )
    return (
        f"pipeline {graph.spec.name!r}: {why}, or ask for less by num_cpus, num_gpus or shards; --resume goes on from the last "
        "commit"
    )
