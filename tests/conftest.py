"""One Ray for all of the tests; helpers that several folders use stand in ``tests/support``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of a small Ray cluster on this machine, to which this process is connected. Started once per session."""
    import ray

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
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
