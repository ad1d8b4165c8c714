"""Sends a task's messages to other tasks: a bounded number under way, copied into the object store by a thread of its own.

So a source decodes the next frames while the last ones are copied. What the sender may run ahead is one batch in hand plus the
credit of each edge; a receiver that is behind therefore stops it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from pipelines.runtime.edges import Inbox, InboxClosed, StaleAttempt
from pipelines.runtime.messages import Body, Data, Edge, TaskId
from pipelines.runtime.metrics import TaskStats

__all__ = ["CREDIT", "CREDIT_BYTES", "INLINE_BYTES", "CreditTransport", "PeerLost"]

CREDIT = 4
"""Messages under way on one edge."""

CREDIT_BYTES = 64 << 20
"""Their size, if they are more than one."""

INLINE_BYTES = 100 << 10
"""Ray sends smaller arguments with the call, larger ones through the object store."""

_LOOK_S = 0.5

Messages = Sequence[tuple[Edge, int, Body]]


class PeerLost(Exception):
    """A receiver has died or failed; the receiver or its death reports the cause."""


class CreditTransport:
    """The outgoing edges of one task. ``here`` are the inboxes of receivers in the same actor: nothing is copied for them."""

    def __init__(self, receivers: Mapping[TaskId, ActorHandle], here: Mapping[TaskId, Inbox], attempt: int) -> None:
        self.stats: TaskStats | None = None
        """Where the time spent waiting is counted."""
        self._receivers = receivers
        self._here = here
        self._attempt = attempt
        self._under_way: dict[Edge, deque[tuple[Callable[[], object], int]]] = {}
        """Per edge what is under way: how to wait until it has been taken, and its size."""
        self._queue: queue.Queue[Messages] = queue.Queue(1)
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, name="send", daemon=True).start()

    def send(self, messages: Messages) -> None:
        """Hand messages over; block while those before them cannot leave. Raise ``PeerLost`` if a receiver is gone."""
        started = monotonic()
        while True:
            if self._failure is not None:
                raise self._failure
            with contextlib.suppress(queue.Full):
                self._queue.put(messages, timeout=_LOOK_S)
                break
        if self.stats is not None:
            self.stats.blocked_s += monotonic() - started

    def _run(self) -> None:
        try:
            while True:
                self._deliver(self._queue.get())
        except (RayActorError, InboxClosed, StaleAttempt) as error:
            self._failure = PeerLost(str(error))
        except BaseException as error:
            self._failure = error

    def _deliver(self, messages: Messages) -> None:
        away = [body for edge, _, body in messages if edge.receiver not in self._here]
        shared: dict[int, Any] = {}
        for edge, sequence, body in messages:
            size = body.batch.nbytes if isinstance(body, Data) else 0
            waiting = self._under_way.setdefault(edge, deque())
            while waiting and (len(waiting) >= CREDIT or size + sum(s for _, s in waiting) > CREDIT_BYTES):
                waiting.popleft()[0]()
            inbox = self._here.get(edge.receiver)
            if inbox is not None:
                inbox.offer(edge, self._attempt, sequence, body)
                waiting.append((partial(inbox.wait_taken, edge, sequence), size))
                continue
            payload: Any = body
            if size > INLINE_BYTES and sum(other is body for other in away) > 1:
                # One copy for all receivers.
                payload = shared[id(body)] if id(body) in shared else shared.setdefault(id(body), ray.put(body))
            answer = self._receivers[edge.receiver].push.remote(edge, self._attempt, sequence, payload)
            waiting.append((partial(ray.get, answer), size))
