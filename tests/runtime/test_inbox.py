from __future__ import annotations

import threading

import pytest
from engine_workload import value_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.runtime.edges import Inbox, InboxClosed, SequenceGap, StaleAttempt
from pipelines.runtime.messages import Barrier, Body, Close, Data, Edge, End, TaskId

SINK = TaskId("sink", 0)
A, B = (Edge(TaskId(name, 0), SINK) for name in "ab")


def mark(name: str) -> Close:
    """A message that is told apart by its stream id; to an inbox it is like any other."""
    return Close((name,))


def drain(inbox: Inbox) -> list[tuple[Edge | None, Body]]:
    taken = []
    while (message := inbox.take()) is not None:
        taken.append(message)
    return taken


@pytest.mark.heavy
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_order_of_deliveries_within_the_credit_is_taken_once_and_in_order(data: st.DataObject) -> None:
    window, count = 4, 12
    inbox = Inbox([A], attempt=1, window=window)
    pending, taken, sent = [], [], 0
    while len(taken) < count:
        while sent < count and sent - len(taken) < window:
            pending += [sent] * data.draw(st.integers(1, 2))  # some are delivered twice
            sent += 1
        sequence = pending.pop(data.draw(st.integers(0, len(pending) - 1)))
        inbox.offer(A, 1, sequence, mark(str(sequence)))
        taken += [body for _, body in drain(inbox)]
    assert taken == [mark(str(i)) for i in range(count)]
    assert inbox.waiting() == 0


def test_a_duplicate_is_dropped_and_counted() -> None:
    inbox = Inbox([A], attempt=1, window=4)
    assert inbox.offer(A, 1, 0, mark("x"))
    assert not inbox.offer(A, 1, 0, mark("x"))
    assert inbox.offer(A, 1, 2, mark("z"))
    assert not inbox.offer(A, 1, 2, mark("z"))
    assert inbox.duplicates == 2
    assert [body for _, body in drain(inbox)] == [mark("x")]


@pytest.mark.parametrize("attempt", [0, 2])
def test_a_message_of_another_attempt_is_refused(attempt: int) -> None:
    inbox = Inbox([A], attempt=1, window=4)
    with pytest.raises(StaleAttempt, match=f"message of attempt {attempt} at a task of attempt 1"):
        inbox.offer(A, attempt, 0, mark("x"))
    assert drain(inbox) == []


def test_a_message_beyond_the_credit_means_that_one_is_lost() -> None:
    inbox = Inbox([A], attempt=1, window=3)
    inbox.offer(A, 1, 1, mark("1"))
    inbox.offer(A, 1, 2, mark("2"))
    with pytest.raises(SequenceGap, match="message 3 arrived while message 0 is missing"):
        inbox.offer(A, 1, 3, mark("3"))


def test_within_one_thread_nothing_may_overtake() -> None:
    inbox = Inbox([A], attempt=1)
    for sequence in range(100):
        inbox.offer(A, 1, sequence, mark("x"))
    with pytest.raises(SequenceGap, match="message 101 arrived while message 100 is missing"):
        inbox.offer(A, 1, 101, mark("y"))


def test_nothing_behind_a_barrier_is_taken_before_every_edge_has_delivered_it() -> None:
    inbox = Inbox([A, B], attempt=1, window=8)
    for sequence, body in enumerate([mark("a0"), Barrier(0), mark("a1"), mark("a2")]):
        inbox.offer(A, 1, sequence, body)
    assert drain(inbox) == [(A, mark("a0"))]
    inbox.offer(B, 1, 0, mark("b0"))
    assert drain(inbox) == [(B, mark("b0"))]
    assert not inbox.wait_taken(A, 2, timeout_s=0)  # its sender gets no credit for what waits behind the barrier
    inbox.offer(B, 1, 1, Barrier(0))
    assert drain(inbox) == [(None, Barrier(0)), (A, mark("a1")), (A, mark("a2"))]
    assert inbox.wait_taken(A, 3, timeout_s=0)


@given(st.lists(st.integers(0, 2), min_size=60, max_size=60), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_epochs_stay_apart_under_any_interleaving_of_edges(turns: list[int], epochs: int) -> None:
    edges = [Edge(TaskId(name, 0), SINK) for name in "abc"]
    scripts: list[list[Body]] = [
        [body for epoch in range(epochs) for body in (mark(f"{edge}.{epoch}"), Barrier(epoch))] + [End()] for edge in edges
    ]
    inbox = Inbox(edges, attempt=1, window=1 << 20)
    taken: list[Body] = []
    sent = [0, 0, 0]
    for turn in [*turns, *(i % 3 for i in range(60))]:
        if sent[turn] < len(scripts[turn]):
            inbox.offer(edges[turn], 1, sent[turn], scripts[turn][sent[turn]])
            sent[turn] += 1
        taken += [body for _, body in drain(inbox)]
    expected_epoch = 0
    seen: set[Body] = set()
    for body in taken[:-1]:
        if isinstance(body, Barrier):
            assert body.epoch == expected_epoch
            assert seen == {mark(f"{edge}.{expected_epoch}") for edge in edges}
            seen, expected_epoch = set(), expected_epoch + 1
        else:
            assert body not in seen
            seen.add(body)
    assert expected_epoch == epochs
    assert taken[-1] == End()


def test_an_edge_that_has_ended_does_not_hold_up_barriers() -> None:
    inbox = Inbox([A, B], attempt=1, window=8)
    inbox.offer(A, 1, 0, End())
    inbox.offer(B, 1, 0, Barrier(5))
    inbox.offer(B, 1, 1, End())
    assert drain(inbox) == [(None, Barrier(5)), (None, End())]


def test_barriers_of_different_epochs_are_an_error() -> None:
    inbox = Inbox([A, B], attempt=1, window=8)
    inbox.offer(A, 1, 0, Barrier(1))
    inbox.offer(B, 1, 0, Barrier(2))
    with pytest.raises(SequenceGap, match="barriers of different epochs meet: \\[1, 2\\]"):
        drain(inbox)


def test_edges_take_turns() -> None:
    inbox = Inbox([A, B], attempt=1, window=8)
    for sequence in range(3):
        inbox.offer(A, 1, sequence, mark(f"a{sequence}"))
    inbox.offer(B, 1, 0, mark("b0"))
    assert [edge for edge, _ in drain(inbox)] == [A, B, A, A]


def test_closing_releases_whoever_waits_for_credit() -> None:
    inbox = Inbox([A], attempt=1, window=8)
    inbox.offer(A, 1, 0, Data(value_batch(["k"])))
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            inbox.wait_taken(A, 0)
        except InboxClosed as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    inbox.close("task sink[0] has failed")
    thread.join(60)
    assert not thread.is_alive()
    assert "task sink[0] has failed" in str(raised[0])
    with pytest.raises(InboxClosed):
        inbox.offer(A, 1, 1, mark("x"))
