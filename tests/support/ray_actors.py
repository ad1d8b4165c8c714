"""Processes of actors on the Ray cluster that this process has started, to be killed."""

from __future__ import annotations

from collections.abc import Iterator

import psutil

__all__ = ["KINDS", "Actors"]

KINDS = ("SourceActor", "OperatorActor", "SinkActor")


class Actors:
    """The actors of the run that is started next: those that are there already, on their way out, are not touched."""

    def __init__(self) -> None:
        self._old = {process.pid for kind in KINDS for process in _actors(kind)}

    def find(self, kind: str) -> psutil.Process | None:
        """Return the process of an actor of this class, if there is one."""
        return next((process for process in _actors(kind) if process.pid not in self._old), None)

    def kill(self, kind: str) -> bool:
        """Kill an actor of this class; return whether there was one."""
        process = self.find(kind)
        if process is None:
            return False
        process.kill()
        return True


def _actors(kind: str) -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{kind}" in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue
