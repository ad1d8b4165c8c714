"""What sinks share that hand rows to another service once their epoch is committed: rows wait in staged files of JSON lines.

A commit hands each file over and deletes it, so what a crash or a service that is away holds back is handed over by the next
commit or the next run: at least once. What was sent has the same name however often it is sent, by which repeats can be told.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from connectors import faults
from connectors.base import Shown, Staged, Tail
from connectors.errors import ConfigError, SinkError
from connectors.options import REQUIRED, option
from connectors.sinks.jsonl import JsonlSink
from connectors.sinks.staged import STAGING, sha256_of, sink_error
from connectors.sinks.tables import ColumnOptions

__all__ = ["DeliveringOptions", "DeliveringSink"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveringOptions(ColumnOptions):
    """Options of every sink that hands rows over."""

    path: Path = option(
        REQUIRED, "Folder where rows wait for the commit of their epoch; on a cluster one that all machines share."
    )
    timeout_s: float = option(10.0, "How long the other side may take to answer.", unit="s", gt=0)
    retry_s: float = option(
        240.0, "How long rows are sent again where the other side is away or busy, before the run ends.", unit="s", ge=0
    )


class DeliveringSink(JsonlSink):
    """Hands files over. Values are written as by the sink ``jsonl``."""

    @abstractmethod
    def deliver(self, path: Path, identity: str) -> None:
        """Hand over the lines of a file, each or each part of them under a name made of ``identity`` and its place."""

    @abstractmethod
    def address(self) -> str:
        """Return where rows go, without anything that is secret, for messages."""

    def _new_path(self) -> Path:
        path = super()._new_path()
        return path.with_name(f"{uuid4().hex}-{path.name}")  # so that a name means one file of one run

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Hand each staged file over, then delete it. One that is gone has been handed over."""
        for file in staged:
            path = self._inside(file.staged)
            if path.exists():
                try:
                    self.deliver(path, path.name.partition(".")[0])
                except OSError as error:
                    raise sink_error(path, error) from error
                faults.reach("between_renames", epoch)
                path.unlink(missing_ok=True)

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Hand over what the newest manifest promises and is still staged, then delete what is staged besides."""
        for file in staged:
            path = self._inside(file.staged)
            try:
                changed = path.exists() and sha256_of(path) != file.sha256
            except OSError as error:
                raise sink_error(path, error) from error
            if changed:
                raise SinkError(f"{path} was changed after its epoch was committed; put it back, or start over with --fresh")
        self.commit(epoch, staged)
        self._remove_staged()

    def shown(self, column: str) -> Shown:
        """Refuse: what was handed over cannot be read back."""
        raise ConfigError(f"its rows are sent to {self.address()} and cannot be read back")

    def tail(self, source: str, column: str, streams: Sequence[str], shards: Sequence[int]) -> Tail:
        """Refuse as ``shown`` does."""
        raise SinkError(f"rows of a {self.kind} cannot be read back")

    def until_taken(self, send: Callable[[], str | None], retry_s: float) -> None:
        """Call ``send`` until it returns None, waiting longer each time; what it returns else is wrong but may pass.

        Raise ``SinkError`` where it has not passed within ``retry_s``.
        """
        until_s, wait_s = time.monotonic() + retry_s, _FIRST_WAIT_S
        while (problem := send()) is not None:
            if time.monotonic() + wait_s > until_s:
                then = "run again with --resume to send them"
                raise SinkError(f"{self.address()}: {problem}, for {retry_s:g} s (retry_s). {self.held(then)}")
            logger.warning("%s=%s %s; trying again in %.1f s", self.kind, self.address(), problem, wait_s)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def held(self, then: str) -> str:
        """Return where rows are now, and what to do: the end of a message."""
        return f"Rows of committed epochs wait in {self.root / STAGING}; {then}"
