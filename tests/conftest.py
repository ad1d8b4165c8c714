"""Markers by place, one Ray for all tests, and what keeps a test independent of the machine and of its neighbors."""

from __future__ import annotations

import gc
import logging
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from unwritten import fill_unwritten

HERE = Path(__file__).resolve().parent

# Importing 300 files makes millions of objects that stay; looking through them again and again took a third of the collection.
gc.disable()

# Ray reads these when it is imported: a machine that is busy with other things takes longer to start its processes.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "240")

# The terminal of whoever starts the tests must not change what is printed.
for _name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"):
    os.environ.pop(_name, None)

# The same examples on every machine: a suite that guards a release does not draw. `make test-random` does.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.register_profile("random", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


_HEAVY = re.compile(
    r"^(benchmarks|faults|real)/|_(conformance|launches|on_a_device|other_sizes|qwen_vl\w*)\.py|test_wheel\.py|_conforms"
)
_ON_RAY = re.compile(r"(?<![a-z])ray(?![a-z])")


def _together(nodeid: str) -> str:
    """Return what a test has to share a process with: all others on Ray, all others of Kafka, or those of its file."""
    if _ON_RAY.search(nodeid):
        return "ray"
    return "kafka" if "/kafka/" in nodeid else nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by where they are and what they use. Those on Ray come first, those of Kafka next: they take the longest."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in ("golden", "kafka"):
            item.add_marker(folder)
        if "train" in item.path.stem or "finetune" in item.path.stem:
            item.add_marker("training")
        if _HEAVY.search(f"{item.path.relative_to(HERE)}::{item.name}"):
            item.add_marker("heavy")
        if "ray_address" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        if item.get_closest_marker("ray") and _together(item.nodeid) != "ray":
            raise pytest.UsageError(f"{item.nodeid}: a test on Ray has the word in its name, so that all run in one process")
    first = ("ray", "kafka")
    items.sort(key=lambda item: first.index(group) if (group := _together(item.nodeid)) in first else len(first))


def pytest_collection_finish() -> None:
    """Set aside what the imports made, and look for garbage again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter end as ever: libraries that count what is left would say so."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Spread tests over processes so that there is one Ray cluster, one broker, and one set of a file's fixtures.

    The marker ``xdist_group`` would do, but has no effect with pytest 9.2 and pytest-xdist 3.8.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid)

    return Together(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the shared generators, so that no test draws on where its neighbors left them; mark unwritten memory."""
    fill_unwritten()
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """Restore what is global in a process: environment, current folder, logging, threads and default type of torch."""
    environment, folder, root = dict(os.environ), Path.cwd(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    torch = sys.modules.get("torch")
    threads, dtype = (torch.get_num_threads(), torch.get_default_dtype()) if torch is not None else (None, None)
    yield
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    ours = [handler for handler in root.handlers if handler not in handlers and "_pytest" not in type(handler).__module__]
    for handler in ours:
        root.removeHandler(handler)
    root.setLevel(level)
    if torch is not None:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of a small Ray cluster on this machine, to which this process is connected. Started once per session."""
    import ray

    for attempt in range(2):  # Ray draws ports; another Ray that starts at the same time may draw the same
        try:
            ray.init(
                address="local",
                num_cpus=4,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=200 << 20,
                namespace="tests",
                logging_level="ERROR",
                log_to_driver=False,
            )
            break
        except Exception:
            ray.shutdown()
            if attempt:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
