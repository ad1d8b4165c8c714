"""One real broker for all tests of this folder, and one more for those that kill it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python reads its own files by importlib.resources.read_text
    from kafka_broker import MORTAL, Broker, unavailable

_numbers = count()


def _started(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Broker]:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    broker = Broker(folder, settings=settings)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker that all share. Use topics of your own."""
    yield from _started(tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="module")
def mortal_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of a module's own, to be killed and started again."""
    yield from _started(tmp_path_factory.mktemp("mortal"), MORTAL)


@pytest.fixture
def topic(broker: Broker) -> Callable[..., str]:
    """Make a new topic: ``topic(partitions, **configuration)``."""
    return lambda partitions=1, **settings: broker.create_topic(f"topic-{next(_numbers)}", partitions, **settings)
