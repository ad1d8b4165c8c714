"""The room of an attempt on the cluster: asked for as a whole, waited for, given back.

A Ray placement group holds one bundle per actor. It is ready only when every node in it has answered, so an attempt that
follows a lost node does not begin on a node that is dead and that Ray has not yet found out about.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from connectors.errors import DeviceError, StreambankError
from pipelines.graph import Graph
from pipelines.runners.shares import Node, Share, alive_nodes, divide
from pipelines.runtime.messages import TaskId

__all__ = ["Reservation", "Stopped", "reserve"]

_LOOK_S = 0.5
"""How often the list of nodes is looked at while there is no room."""

_TELL_AFTER_S = 5.0

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was stopped before an attempt was at work."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room for the actors of an attempt."""

    actors: Sequence[tuple[TaskId, ...]]
    shares: Sequence[Share]
    """Of each actor."""
    group: PlacementGroup

    def options(self, actor: int) -> dict[str, Any]:
        """Return the options of Ray that put an actor into its place."""
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=actor)
        share = self.shares[actor]
        return {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": strategy}

    def release(self) -> None:
        """Give the room back. What still runs in it is killed."""
        remove_placement_group(self.group)


def reserve(graph: Graph, actors: Sequence[tuple[TaskId, ...]], *, again: bool, stop: threading.Event) -> Reservation:
    """Return room for ``actors``, divided anew whenever a node comes or goes; wait ``resources_wait_s`` for it.

    ``again``: an earlier attempt had room, so a GPU that is not there is waited for as well. Raise ``DeviceError`` or
    ``StreambankError`` where there is none in time, ``Stopped`` when ``stop`` is set.
    """
    wait_s = graph.spec.resources_wait_s
    began = monotonic()
    told = False
    while True:
        nodes = alive_nodes()
        problem: StreambankError
        try:
            shares = divide(graph, actors, nodes)
        except DeviceError as error:
            if not again:
                raise
            problem = error
            stop.wait(_LOOK_S)
        else:
            group = _wait(graph, shares, nodes, began + wait_s, stop)
            if group is not None:
                return Reservation(actors, shares, group)
            problem = StreambankError(_no_room(graph, shares, nodes))
        if stop.is_set():
            raise Stopped
        waited_s = monotonic() - began
        if waited_s >= wait_s:
            raise type(problem)(f"{problem} (waited {waited_s:.0f} s, as resources_wait_s says)")
        if not told and waited_s >= _TELL_AFTER_S:
            told = True
            logger.warning("waiting for resources, %.0f s at most: %s", wait_s, problem)


def _wait(
    graph: Graph, shares: Sequence[Share], nodes: Sequence[Node], deadline: float, stop: threading.Event
) -> PlacementGroup | None:
    """Return a placement group that is ready, None as soon as the cluster is another one or it is too late."""
    bundles = [{"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})} for share in shares]
    group = placement_group(bundles, strategy=graph.spec.placement.upper())
    began = monotonic()
    while not group.wait(_LOOK_S):
        # After a while it is asked for anew, so that the log tells what is missing.
        waited_s = monotonic() - began
        if stop.is_set() or monotonic() >= deadline or waited_s > _TELL_AFTER_S or alive_nodes() != tuple(nodes):
            remove_placement_group(group)
            return None
    return group


def _no_room(graph: Graph, shares: Sequence[Share], nodes: Sequence[Node]) -> str:
    free = ray.available_resources()
    return (
        f"pipeline {graph.spec.name!r}: no room for its {len(shares)} actors, which ask for "
        f"{sum(share.cpus for share in shares):g} CPUs and {sum(share.gpus for share in shares):g} GPUs; the Ray cluster has "
        f"{len(nodes)} nodes with {sum(node.cpus for node in nodes):g} CPUs and {sum(node.gpus for node in nodes):g} GPUs, of "
        f"which {free.get('CPU', 0.0):g} and {free.get('GPU', 0.0):g} are free. End other runs, add nodes, or ask for less by "
        "num_cpus, num_gpus or shards; --resume goes on from the last commit"
    )
