"""Named points at which a test may kill the process, to prove that recovery loses nothing and doubles nothing.

``STREAMBANK_FAULT=<point>:epoch=<n>[:task=<node>[<shard>]]`` arms one point; otherwise ``reach`` costs one comparison. The
kill is SIGKILL: no handler, no flush, no clean-up, as in a power cut of the process.
"""

from __future__ import annotations

import os
import signal

from connectors.errors import ConfigError, nearest

__all__ = ["POINTS", "TRANSACTION_POINTS", "VARIABLE", "arm", "reach"]

VARIABLE = "STREAMBANK_FAULT"
POINTS = (
    "before_snapshot",
    "after_snapshot",
    "before_prepare",
    "after_prepare",
    "before_manifest",
    "after_manifest",
    "before_commit",
    "between_renames",
    "after_commit",
)

TRANSACTION_POINTS = ("in_transaction", "after_transaction")
"""Points of the Kafka sink: everything is sent and not committed; committed, and the staged file is still there."""

_armed: tuple[str, int, str | None] | None = None


def arm(text: str | None) -> None:
    """Arm the point that ``text`` names in this process; None or empty disarms. Raise ``ConfigError`` if it names none."""
    global _armed
    if not text:
        _armed = None
        return
    point, *rest = text.split(":")
    allowed = (*POINTS, *TRANSACTION_POINTS)
    if point not in allowed:
        raise ConfigError(
            f"{VARIABLE}={text!r}: {point!r} is no fault point{nearest(point, allowed)}; allowed: {', '.join(allowed)}"
        )
    fields = dict(part.partition("=")[::2] for part in rest)
    if set(fields) - {"epoch", "task"} or not fields.get("epoch", "").isdecimal():
        raise ConfigError(
            f"{VARIABLE}={text!r}: write <point>:epoch=<n>[:task=<node>[<shard>]], for example after_prepare:epoch=3"
        )
    _armed = (point, int(fields["epoch"]), fields.get("task"))


def reach(point: str, epoch: int, task: str | None = None) -> None:
    """Kill this process if ``point`` is armed for ``epoch`` (and ``task``, where one was named)."""
    if _armed is None or _armed[0] != point or _armed[1] != epoch:
        return
    if _armed[2] is None or task is None or _armed[2] == task:
        os.kill(os.getpid(), signal.SIGKILL)
