"""Runs a checked pipeline, in this process (``local``) or on Ray (``ray``). Same tasks, same rows, same state folder."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from connectors import faults
from connectors.errors import ConfigError
from connectors.extras import need
from connectors.signals import graceful
from pipelines.runners.report import Progress, RunReport
from pipelines.runtime.logs import about_process
from pipelines.spec import PipelineSpec

__all__ = ["Progress", "RunReport", "run"]

logger = logging.getLogger(__name__)


def run(
    spec: PipelineSpec,
    *,
    runner: str | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    fault: str | None = None,
) -> RunReport:
    """Run ``spec`` to the end of its sources, or until ``stop`` is set or SIGINT or SIGTERM arrives.

    A stop is graceful: the sources stop, a last epoch is committed, and a run with ``resume=True`` goes on from there; a second
    signal ends the run at once. ``runner`` wins over the spec's own. ``fault`` (default: the environment's STREAMBANK_FAULT)
    arms a fault point of ``connectors.faults`` in this process and, on Ray, in every task of the first attempt.

    Raise ``RecoveryError`` where the state folder does not fit, ``DeviceError`` where a device is not there, ``SourceError``
    and ``SinkError`` for what a source or a sink cannot do. What was committed before stays committed.
    """
    name = runner or spec.runner
    fault = os.environ.get(faults.VARIABLE) if fault is None else fault
    stop = stop or threading.Event()
    about_process(pipeline=spec.name)
    with graceful(stop.set, "stopping after one more epoch"):
        if name == "local":
            from pipelines.runners.local import LocalRunner

            faults.arm(fault)
            return LocalRunner(spec, resume=resume, on_progress=on_progress, stop=stop).run()
        if name == "ray":
            need("ray", "runner: ray")
            from pipelines.runners.ray import RayRunner

            return RayRunner(spec, resume=resume, on_progress=on_progress, stop=stop, fault=fault).run()
    raise ConfigError(f"runner: {name!r} is not a runner; allowed: 'local', 'ray'")
