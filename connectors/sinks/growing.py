"""Files that grow by one staged piece per epoch and are whole after every commit: one file per stream, however long it runs.

A piece is staged like any other file. Its final name is ``<file>@<offset>``: the file that it becomes part of and where it
begins there. A commit writes it there, flushes, and only then deletes it, so a commit that was cut off is repeated with the
same result. Invariant: what lies before the end of the last committed piece is never written again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from connectors import durable, faults
from connectors.base import Staged
from connectors.errors import SinkError
from connectors.sinks.staged import STAGING, FileSink, StagedFile, sha256_of, sink_error

__all__ = ["GrowingFileSink"]

_FINAL = re.compile(r"(.+)@(\d+)")
_BLOCK = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Piece:
    path: Path
    target: Path
    at: int
    bytes: int
    sha256: str


class GrowingFileSink(FileSink):
    """Base of these sinks. A subclass reports pieces by ``_piece`` and tells by ``_epoch_of`` when a file was last written."""

    trailer: ClassVar[int] = 0
    """Bytes at the end of a staged piece that do not belong into the file: ``_seal`` gets them."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._pieces: list[Staged] = []

    # -- for subclasses

    @abstractmethod
    def _epoch_of(self, path: Path) -> int | None:
        """Return the epoch of the last piece of a committed file; None where it does not end with one of ours."""

    def _seal(self, target: BinaryIO, trailer: bytes, epoch: int) -> None:
        """Change the begin of a file to which a piece was added, durably so far. Must do no harm when it is repeated."""
        return

    def _piece(self, file: StagedFile, *, target: str, at: int, rows: int) -> None:
        """Report a piece that is complete on disk: of the file ``target`` below the root, from byte ``at`` on."""
        staged = file.path.relative_to(self.root).as_posix()
        self._pieces.append(Staged(staged, f"{target}@{at}", rows, file.bytes, file.sha256))

    # -- contract

    def prepare(self, epoch: int) -> list[Staged]:
        """Finish all pieces and the folder that lists them."""
        super().prepare(epoch)  # no piece is a file of its own
        staged, self._pieces = self._pieces, []
        if staged and self._folder is not None:
            try:
                durable.sync(self._folder)
            except OSError as error:
                raise sink_error(self._folder, error) from error
        return staged

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Write each piece into its file. One that is there already is left alone."""
        for piece in map(self._resolve, staged):
            try:
                self._append(piece, epoch)
            except OSError as error:
                raise _commit_error(piece.target, epoch, error) from error

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """See the contract. ``SinkError`` where the folder holds files of a run that is not this one."""
        pieces = [self._resolve(file) for file in staged]
        unfinished = {piece.target for piece in pieces if piece.path.exists()}
        for path in sorted(self.root.glob(f"*{self.suffix}")):
            if path not in unfinished and (of_epoch := self._epoch_of(path)) is not None and of_epoch > epoch:
                raise SinkError(self._foreign(path, epoch))
        for piece in pieces:
            if piece.path.exists() and sha256_of(piece.path) != piece.sha256:
                raise SinkError(f"{piece.path} was changed since epoch {epoch} was committed; put it back, or start over")
        self.commit(epoch, staged)
        super().recover(epoch, [])  # refuses files of earlier versions, removes what is staged besides

    def written(self) -> list[Path]:
        """Return the files that end with a piece of ours, and what is staged."""
        grown = [path for path in sorted(self.root.glob(f"*{self.suffix}")) if self._epoch_of(path) is not None]
        return [*grown, *super().written()]

    def close(self) -> None:
        """Delete what was not prepared."""
        for piece in self._pieces:
            with contextlib.suppress(OSError):
                (self.root / piece.staged).unlink()
        self._pieces = []
        super().close()

    def _resolve(self, file: Staged) -> _Piece:
        match = _FINAL.fullmatch(file.final)
        if match is None:
            raise SinkError(f"{self.root}: the manifest names a file that this sink did not write: {file.final!r}")
        return _Piece(self._inside(file.staged), self._inside(match[1]), int(match[2]), file.bytes, file.sha256)

    def _append(self, piece: _Piece, epoch: int) -> None:
        size = piece.target.stat().st_size if piece.target.exists() else 0
        end = piece.at + piece.bytes - self.trailer
        if not piece.path.exists():
            if size < end:
                raise SinkError(
                    f"{piece.target} has {size} bytes, but epoch {epoch} was committed up to byte {end}. "
                    "Was it deleted or cut, or has the sink's 'path' changed since the last run? Put it back, or start over "
                    "with --fresh"
                )
            return
        if not piece.at <= size <= end:
            raise SinkError(
                f"{piece.target} has {size} bytes where epoch {epoch} begins at byte {piece.at}: was it changed by hand, or "
                "does another run write it? Put it back, or start over with --fresh"
            )
        with piece.path.open("rb") as source, piece.target.open("r+b" if size else "wb") as target:
            target.seek(piece.at)
            left = piece.bytes - self.trailer
            while left and (block := source.read(min(left, _BLOCK))):
                left -= target.write(block)
            target.truncate()
            target.flush()
            faults.reach("between_renames", epoch)
            os.fsync(target.fileno())
            if self.trailer:
                self._seal(target, source.read(self.trailer), epoch)
                target.flush()
                os.fsync(target.fileno())
        if not size:
            durable.sync(piece.target.parent)
        piece.path.unlink()
        durable.sync(piece.path.parent)


def _commit_error(path: Path, epoch: int, error: OSError) -> SinkError:
    reason = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what, remedy = ("the disk (or the quota) is full", "free space") if full else ("cannot write", "make the folder writable")
    return SinkError(
        f"{path}: {what}: {reason}. Epoch {epoch} is committed and its part of the file is kept in {STAGING}: {remedy}, then "
        "run again with --resume"
    )
