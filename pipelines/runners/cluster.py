"""The Ray cluster of a run: joined or started, and what of it each task gets. Raises before anything can wait for ever.

Ray itself queues an actor whose resources do not exist, without a word; so needs are compared with the cluster first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray

from connectors.errors import DeviceError
from pipelines.graph import Graph
from pipelines.runtime.messages import TaskId
from pipelines.spec import OperatorSpec

__all__ = ["Share", "check_local_gpus", "cluster", "largest_node_cpus", "shares"]

NAMESPACE = "streambank"
_STORE_BYTES = 2 << 30
_STORE_PART_OF_SHM = 0.5
_RAY_PRECISION = 1e-4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """What one task gets of the cluster."""

    cpus: float
    gpus: float = 0.0
    device: str = "cpu"


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Use the Ray that this process is connected to, else the one that ``RAY_ADDRESS`` names, else start one here.

    What was started here ends here.
    """
    if ray.is_initialized():
        yield
        return
    with _own_sigterm():
        _init()
    try:
        yield
    finally:
        ray.shutdown()


def _init() -> None:
    if os.environ.get("RAY_ADDRESS"):  # set by `ray job submit`, or by a person who wants a running cluster
        ray.init(namespace=NAMESPACE, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            include_dashboard=False,
            object_store_memory=_store_bytes(),
            logging_level=logging.ERROR,
        )


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's SIGTERM handler: ``ray.init`` puts one in its place that ends the driver without a last epoch."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray leaves the handler alone, too
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)


def check_local_gpus(graph: Graph) -> None:
    """Raise ``DeviceError`` before Ray is started where the cluster will be this machine and a GPU is asked for in vain."""
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return
    wanting = [node for node in graph.spec.operators if node.device.startswith("cuda")]
    if wanting:
        from pipelines.devices import resolve_device

        for node in wanting:
            resolve_device("cuda", node.name)


def shares(graph: Graph) -> dict[TaskId, Share]:
    """Divide the cluster's CPUs and GPUs among the tasks.

    Raise ``DeviceError`` where an operator asks for more GPU than the cluster has; one with ``device: auto`` then gets the CPU.
    CPUs are shares, not needs: where tasks ask for more than there are, each gets its part.
    """
    resources: Mapping[str, float] = ray.cluster_resources()
    gpus = _gpu_shares(graph, resources.get("GPU", 0.0))
    wanted = {task: graph.spec.node(task.node).num_cpus for task in graph.tasks}
    there, total = resources.get("CPU", 1.0), sum(wanted.values())
    part = min(1.0, there / total) if total else 1.0
    if part < 1.0:
        logger.info(
            "tasks=%d ask for %.1f CPUs, the cluster has %.1f: each gets %.0f %%", len(wanted), total, there, part * 100
        )
    return {
        task: Share(
            cpus=cpus if part == 1.0 else int(cpus * part / _RAY_PRECISION) * _RAY_PRECISION,
            gpus=gpus.get(task.node, 0.0),
            device=_device(graph, task.node) if gpus.get(task.node) else "cpu",
        )
        for task, cpus in wanted.items()
    }


def largest_node_cpus() -> float:
    """Return the CPUs of the largest node. An actor that asks for more would wait for ever."""
    return float(max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0))


def _device(graph: Graph, node: str) -> str:
    """Return the device for a task that has been given a GPU: it sees that one only, so numbers do not apply."""
    operator = graph.spec.node(node)
    return "auto" if isinstance(operator, OperatorSpec) and operator.device == "auto" else "cuda"


def _gpu_shares(graph: Graph, there: float) -> dict[str, float]:
    """Return operator → GPU share of one of its shards; operators that run on the CPU are left out."""
    users = [node for node in graph.spec.operators if node.device != "cpu"]
    open_shards = sum(node.shards for node in users if not node.num_gpus)
    firm = sum(node.num_gpus * node.shards for node in users)
    # Shards that name no share divide what the others leave; Ray takes whole GPUs or fractions of one.
    rest = max(0.0, there - firm) / open_shards if open_shards else 0.0
    each = 1.0 if rest >= 1 else int(rest / _RAY_PRECISION) * _RAY_PRECISION
    result = {}
    for node in users:
        share = node.num_gpus or each
        if share and firm <= there:
            result[node.name] = share
        elif node.device != "auto":
            raise DeviceError(_missing(node, there))
        elif node.num_gpus:
            logger.warning(
                "operator=%s asks for %g GPUs per shard, the cluster has %g: it runs on the CPU", node.name, share, there
            )
    return result


def _missing(node: OperatorSpec, there: float) -> str:
    asks = f"{node.num_gpus * node.shards:g} GPU" if node.num_gpus else "a GPU"
    if node.num_gpus and node.shards > 1:
        asks += f" ({node.shards} shards of {node.num_gpus:g})"
    return (
        f"operators.{node.name}: device {node.device!r} asks for {asks}, the Ray cluster has {there:g}; add GPU workers, "
        "ask for less, or set 'device: auto' or 'device: cpu'"
    )


def _store_bytes() -> int:
    """Return a moderate size for the object store: messages under way are bounded, so more would not be used."""
    with contextlib.suppress(OSError):
        status = os.statvfs("/dev/shm")
        return max(100 << 20, min(_STORE_BYTES, int(status.f_bavail * status.f_frsize * _STORE_PART_OF_SHM)))
    return _STORE_BYTES if Path("/dev/shm").exists() else 512 << 20
