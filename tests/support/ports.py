"""Ports on loopback for servers that a test starts, kills and starts again."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

__all__ = ["free_ports"]

_LOWEST = 10_000
_draw = random.SystemRandom()
"""Not the shared generator: tests that are seeded alike would draw alike in two processes."""


def free_ports(count: int = 1) -> list[int]:
    """Return ports that nobody listens on now and that the system gives to nobody who asks for any.

    A port of the ephemeral range may become the near end of somebody's connection while its server is down: of the client,
    even, that tries to reach it.
    """
    ports = range(_LOWEST, _ephemeral_low())
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            listening = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listening.bind(("127.0.0.1", _draw.choice(ports) if len(ports) > 1000 else 0))
                found.append(listening.getsockname()[1])
    return found


def _ephemeral_low() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768
