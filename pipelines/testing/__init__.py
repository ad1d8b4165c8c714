"""The public test kit: an in-memory source with markers, a sink that keeps rows in a list, a clock that stands still.

:class:`pipelines.testing.running_mean.RunningMean` is an operator to test sources, sinks and pipelines with.

A recovery test is then: run until the crash, run again with ``resume``, compare the lists.
"""

from pipelines.testing.clock import FakeClock
from pipelines.testing.sinks import ListSink, ListSinkOptions, RowStore
from pipelines.testing.sources import Crash, End, Gap, InjectedCrash, MemoryOptions, MemorySource

__all__ = [
    "Crash",
    "End",
    "FakeClock",
    "Gap",
    "InjectedCrash",
    "ListSink",
    "ListSinkOptions",
    "MemoryOptions",
    "MemorySource",
    "RowStore",
]
