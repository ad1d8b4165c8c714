"""One thread that drives one task, with the ways in and out that an actor needs: commands, events, the first failure.

Knows nothing of Ray. The task and what belongs to it (operator, sink, readers) are touched by the thread only.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.runtime.edges import Inbox
from pipelines.runtime.logs import about_thread
from pipelines.runtime.messages import Event, TaskId
from pipelines.runtime.metrics import TaskStats

__all__ = ["Host", "Reading", "Task"]

_SLICE_S = 0.05

logger = logging.getLogger(__name__)


class Task(Protocol):
    """A source, operator or sink task."""

    task: TaskId
    stats: TaskStats
    ended: bool

    def step(self) -> bool:
        """Do one unit of work; False if there is none."""
        ...

    def idle_s(self) -> float | None:
        """Return how long it is useless to call ``step`` if no message comes; None: for ever."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What a task has to tell since it was last asked."""

    stats: TaskStats
    events: tuple[Event, ...] = ()
    failure: BaseException | None = None


class Host:
    """Drives a task from ``start`` to ``close``."""

    def __init__(self, inbox: Inbox, bell: threading.Event | None = None) -> None:
        self.inbox = inbox
        self.bell = bell or threading.Event()
        """Set when there is news for ``read``; several hosts may share one."""
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._task: Task | None = None

    def report(self, event: Event) -> None:
        """Keep an event for ``read``; called by the task, from any thread."""
        self._events.put(event)
        self.bell.set()

    def start(self, task: Task) -> None:
        """Begin to drive ``task``."""
        self._task = task
        self._thread = threading.Thread(target=self._drive, args=(task,), name=str(task.task), daemon=True)
        self._thread.start()

    def call(self, command: Callable[[], Any]) -> Any:
        """Run ``command`` in the task's thread, between two steps; return what it returns or raise what it raises."""
        if self._failure is not None:
            raise self._failure
        answer: Future[Any] = Future()
        self._commands.put((command, answer))
        self.inbox.wake()
        while not answer.done():
            with contextlib.suppress(TimeoutError):
                answer.exception(timeout=1.0)
            if self._thread is None or not self._thread.is_alive():
                self._obey()  # it ended before it saw the command
        return answer.result()

    @property
    def started(self) -> bool:
        """Whether there is a task."""
        return self._task is not None

    def read(self) -> Reading:
        """Return what has been reported since the last call."""
        assert self._task is not None  # read after start only
        events: list[Event] = []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return Reading(self._task.stats.copy(), tuple(events), self._failure)

    def close(self) -> None:
        """End the thread and close the task. Does not wait for a step that hangs longer than 5 s."""
        self._closing = True
        self.inbox.close("the task has been closed")
        if self._thread is not None:
            self._thread.join(5.0)

    def _drive(self, task: Task) -> None:
        about_thread(lambda: {"task": str(task.task), "epoch": task.stats.last_epoch})
        logger.info("started")
        try:
            while not self._closing:
                self._obey()
                if not task.step():
                    self.inbox.wait(_wait_s(task))
        except BaseException as error:
            self._failure = error
            if not self._closing:
                logger.debug("task=%s failed", task.task, exc_info=error)
            self.inbox.close(f"task {task.task} has failed: {error}")
            self.bell.set()
        finally:
            self._obey()
            task.close()

    def _obey(self) -> None:
        while not self._commands.empty():
            command, answer = self._commands.get_nowait()
            try:
                answer.set_result(command())
            except BaseException as error:
                answer.set_exception(error)


def _wait_s(task: Task) -> float:
    idle = task.idle_s()
    return _SLICE_S if idle is None or task.ended else min(idle, _SLICE_S)
