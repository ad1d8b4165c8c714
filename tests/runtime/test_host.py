from __future__ import annotations

import threading

import pytest

from pipelines.runtime.edges import Inbox, InboxClosed
from pipelines.runtime.host import Host
from pipelines.runtime.messages import Close, Edge, Exhausted, TaskId
from pipelines.runtime.metrics import TaskStats

TASK = TaskId("t", 0)
EDGE = Edge(TaskId("s", 0), TASK)


class FakeTask:
    """Takes messages and does what their names say."""

    def __init__(self, inbox: Inbox) -> None:
        self.task = TASK
        self.stats = TaskStats(task=TASK, kind="sink")
        self.ended = False
        self.inbox = inbox
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def step(self) -> bool:
        self.threads.add(threading.get_ident())
        message = self.inbox.take()
        if message is None:
            return False
        if message[1] == Close(("fail",)):
            raise ValueError("no such luck")
        self.stats.rows_in += 1
        return True

    def idle_s(self) -> float | None:
        return None

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def host() -> Host:
    host = Host(Inbox([EDGE], attempt=1, window=4))
    yield host
    host.close()


def test_commands_run_in_the_thread_of_the_task(host: Host) -> None:
    task = FakeTask(host.inbox)
    host.start(task)
    thread = host.call(threading.get_ident)
    assert thread != threading.get_ident()
    host.close()
    assert task.threads == {thread}


def test_an_error_of_a_command_is_raised_where_it_was_asked_for_and_the_task_lives_on(host: Host) -> None:
    host.start(FakeTask(host.inbox))
    with pytest.raises(ZeroDivisionError):
        host.call(lambda: 1 / 0)
    assert host.call(lambda: 7) == 7


def test_events_and_counters_are_told_when_asked(host: Host) -> None:
    host.start(FakeTask(host.inbox))
    host.report(Exhausted(TASK))
    host.inbox.offer(EDGE, 1, 0, Close(("x",)))
    assert host.inbox.wait_taken(EDGE, 0, timeout_s=60)
    assert host.bell.wait(60)
    host.call(lambda: None)  # taken is not yet counted: the step is over before a command runs
    reading = host.read()
    assert reading.events == (Exhausted(TASK),)
    assert reading.stats.rows_in == 1
    assert reading.failure is None
    assert host.read().events == ()


def test_a_failed_task_is_told_at_once_and_releases_its_senders(host: Host) -> None:
    task = FakeTask(host.inbox)
    host.start(task)
    host.inbox.offer(EDGE, 1, 0, Close(("fail",)))
    assert host.bell.wait(60)
    assert isinstance(host.read().failure, ValueError)
    assert task.closed.wait(60)
    with pytest.raises(InboxClosed, match=r"task t\[0\] has failed: no such luck"):
        host.inbox.offer(EDGE, 1, 1, Close(("x",)))
    with pytest.raises(ValueError, match="no such luck"):
        host.call(lambda: None)


def test_closing_ends_the_thread_and_the_task(host: Host) -> None:
    task = FakeTask(host.inbox)
    host.start(task)
    host.close()
    assert task.closed.is_set()
    assert host.call(lambda: "done all the same") == "done all the same"
