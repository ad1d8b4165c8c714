"""Ports on loopback for servers that a test starts, kills and starts again."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

__all__ = ["free_ports", "free_range"]

_LOWEST = 10_000
_draw = random.SystemRandom()
"""Not the shared generator: tests that are seeded alike would draw alike in two processes."""


def free_ports(count: int = 1) -> list[int]:
    """Return ports that nobody listens on now and that the system gives to nobody who asks for any.

    A port of the ephemeral range may become the near end of somebody's connection while its server is down: of the client,
    even, that tries to reach it.
    """
    found: list[int] = []
    while len(found) < count:
        port = free_range(1)
        if port not in found:
            found.append(port)
    return found


def free_range(count: int) -> int:
    """Return the first of ``count`` such ports in a row."""
    low = _ephemeral_low()
    while True:
        first = _draw.randrange(_LOWEST, low if low > _LOWEST + 1000 else 65_535) - count
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def _ephemeral_low() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768
