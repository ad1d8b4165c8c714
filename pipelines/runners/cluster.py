"""The Ray cluster of a run: joined, or started on this machine and ended with the run."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.job_config import JobConfig

from pipelines.graph import Graph

__all__ = ["check_local_gpus", "cluster"]

NAMESPACE = "streambank"
_STORE_BYTES = 2 << 30
_STORE_PART_OF_SHM = 0.5


@contextlib.contextmanager
def cluster(graph: Graph) -> Iterator[None]:
    """Use the Ray that this process is connected to, else the one that ``RAY_ADDRESS`` names, else start one here.

    What was started here ends here. It is for this run only, so it counts as many CPUs as the pipeline reserves.
    """
    if ray.is_initialized():
        yield
        return
    with _own_sigterm():
        _init(sum(graph.spec.node(task.node).num_cpus for task in graph.tasks))
    try:
        yield
    finally:
        ray.shutdown()


def _init(cpus: float) -> None:
    if os.environ.get("RAY_ADDRESS"):  # set by `ray job submit`, or by a person who wants a running cluster
        ray.init(namespace=NAMESPACE, logging_level=logging.WARNING, job_config=_Job())
    else:
        ray.init(
            address="local",
            num_cpus=max(1, math.ceil(cpus)),
            namespace=NAMESPACE,
            include_dashboard=False,
            object_store_memory=_store_bytes(),
            logging_level=logging.ERROR,
            job_config=_Job(),
        )


class _Job(JobConfig):  # type: ignore[misc, unused-ignore]
    """A job whose workers start with a module path of their own.

    Ray would put the driver's working folder in front of it, where a folder ``models`` of the user hides ours. What actors
    need of the driver's path comes with their plan and goes behind (``pipelines.runners.actors``).
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # the one thing that keeps Ray from adding folders


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
    """Raise ``DeviceError`` before Ray is started where the cluster will be this machine and has no GPU that is asked for."""
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return
    wanting = [node for node in graph.spec.operators if node.device.startswith("cuda")]
    if wanting:
        from pipelines.devices import resolve_device

        for node in wanting:
            resolve_device("cuda", node.name)


def _store_bytes() -> int:
    """Return a moderate size for the object store: messages under way are bounded, so more would not be used."""
    with contextlib.suppress(OSError):
        status = os.statvfs("/dev/shm")
        return max(100 << 20, min(_STORE_BYTES, int(status.f_bavail * status.f_frsize * _STORE_PART_OF_SHM)))
    return _STORE_BYTES if Path("/dev/shm").exists() else 512 << 20
