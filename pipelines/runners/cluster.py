"""The Ray cluster of a run: joined, or started on this machine and ended with the run.

Ray waits for many minutes for what does not answer, and says little. So what can be known is looked at first, the wait is
bounded, and whatever goes wrong becomes one line that names the cause and the remedy.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.job_config import JobConfig

from connectors.errors import StreambankError
from pipelines.graph import Graph

__all__ = ["check_local_gpus", "cluster"]

NAMESPACE = "streambank"
_STORE_BYTES = 2 << 30
_STORE_PART_OF_SHM = 0.5

_ANSWER_S = 20.0
"""How long the address of a cluster may take to accept a connection: its head may be starting."""

_TRIES = 1
"""How often Ray then looks for the cluster's head there; it gives each try about 40 seconds, and would take 20."""

_SOCKET_BYTES = 107
"""Longest path of a Unix socket."""

_FREE_BYTES = 50 << 20
"""Least free space for the logs and sockets of a Ray that is started here."""


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
    address = os.environ.get("RAY_ADDRESS")  # set by `ray job submit`, or by a person who wants a running cluster
    try:
        if address == "local":
            _require_room()
        if address:
            _require_answer(address)
            with _bounded_wait():
                ray.init(namespace=NAMESPACE, logging_level=logging.WARNING, job_config=_Job())
        else:
            _require_room()
            ray.init(
                address="local",
                num_cpus=max(1, math.ceil(cpus)),
                namespace=NAMESPACE,
                include_dashboard=False,
                object_store_memory=_store_bytes(),
                logging_level=logging.ERROR,
                job_config=_Job(),
            )
    except StreambankError:
        raise
    except Exception as error:  # of any kind, from RuntimeError to those of gRPC
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise StreambankError(_explain(error, address)) from error


def _require_answer(address: str) -> None:
    """Raise ``StreambankError`` unless something accepts connections at the address."""
    if address in ("auto", "local"):  # Ray knows where
        return
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rstrip("/").rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isdecimal():
        dashboard = "; this is the address of a dashboard, for `ray job submit`" if scheme.startswith("http") else ""
        raise StreambankError(
            f"RAY_ADDRESS is {address!r}, which is no cluster's address{dashboard}. Set it to HOST:PORT as `ray start --head` "
            "prints it, submit the pipeline by `ray job submit`, or unset it to run on this machine"
        )
    ends_s = time.monotonic() + _ANSWER_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), max(1.0, ends_s - time.monotonic())).close()
            return
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if isinstance(error, (socket.gaierror, OverflowError)) or time.monotonic() + 1 >= ends_s:
                raise StreambankError(
                    f"no Ray cluster answers at {address} (RAY_ADDRESS): {reason}. Start one there (`ray start --head`), "
                    "correct the address, or unset RAY_ADDRESS to run on this machine"
                ) from error
        time.sleep(1)


@contextlib.contextmanager
def _bounded_wait() -> Iterator[None]:
    """Make Ray give up on a head that does not answer, unless the environment says how long it may take."""
    name = "RAY_gcs_server_port_wait_time_s"  # counts tries where a cluster is joined
    if name in os.environ:
        yield
        return
    os.environ[name] = str(_TRIES)
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _require_room() -> None:
    """Raise ``StreambankError`` where the folder for Ray's logs and sockets has too long a name, is full or read-only."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir())
    remedy = "set RAY_TMPDIR to another folder, such as /tmp"
    longest = folder / "ray" / f"session_2000-01-01_00-00-00_000000_{os.getpid()}" / "sockets" / "plasma_store"
    if (size := len(os.fsencode(longest))) > _SOCKET_BYTES:
        raise StreambankError(
            f"the temporary folder {str(folder)!r} has too long a name for Ray's sockets below it: {size} bytes, at most "
            f"{_SOCKET_BYTES} are possible; {remedy}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StreambankError(f"Ray cannot write into {str(folder)!r}: {error.strerror}; {remedy}") from error
    if free < _FREE_BYTES:
        raise StreambankError(
            f"Ray cannot start: the disk of {str(folder)!r} is full ({free >> 20} MiB are free, {_FREE_BYTES >> 20} are "
            f"needed for its logs and sockets); free space, or {remedy}"
        )


def _explain(error: Exception, address: str | None) -> str:
    """Return one line on why Ray did not start."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "ersion mismatch" in text:
        return f"{text}. Run with the cluster's versions of Python and Ray, or unset RAY_ADDRESS to run on this machine"
    if address:
        return (
            f"cannot join the Ray cluster at {address} (RAY_ADDRESS): {text}. Is it a cluster's head, and this machine one of "
            "its nodes (`ray status`)? Correct the address, or unset RAY_ADDRESS to run on this machine"
        )
    return f"Ray does not start on this machine: {text}. See the logs in {_logs()}; runner: local needs no Ray"


def _logs() -> str:
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    return str(Path(folder, "ray", "session_latest", "logs"))


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
