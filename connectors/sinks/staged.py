"""What all sinks that write files have in common: stage, prepare, publish, recover.

Layout of a sink's folder: ``_staging/<attempt>/<shard>/<serial><suffix>.staged`` while an epoch is being written, then
``[<partition>/]part-<epoch>-<shard>-<n><suffix>``. Readers never see a staged file: Arrow datasets skip names that start
with ``_``, and ``**/*.parquet`` of DuckDB does not match the suffix ``.staged``. This module knows nothing about rows.

Invariant: a ``part-`` file of epoch e exists only if the manifest of e is durable, since ``commit(e)`` is called only after
that. So a file of an epoch later than the newest manifest was not written by this run, and ``recover`` refuses it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pyarrow as pa

from connectors import durable, faults
from connectors.base import Sink, Staged
from connectors.errors import ConfigError, SinkError

__all__ = ["FileSink", "StagedFile", "encode_name", "published", "sha256_of", "single_input", "sink_error"]

STAGING = "_staging"
_PART = re.compile(r"part-(\d+)-(\d+)-(\d+)\.\w+")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BUFFER_BYTES = 1 << 20
_NAME_BYTES = 200  # file systems allow 255 bytes; leaves room for "stream=" and a suffix

logger = logging.getLogger(__name__)


def sink_error(path: Path, error: OSError) -> SinkError:
    """Turn an ``OSError`` on ``path`` into a message that says what to do about it."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return SinkError(
            f"{path}: the disk (or the quota) is full: {reason}. The epoch is not committed and nothing of it is visible; "
            "free space or set the sink's 'path' to another disk, then run again with --resume"
        )
    if error.errno in _DENIED:
        return SinkError(
            f"{path}: no permission to write: {reason}. Set the sink's 'path' to a folder that this user may write"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return SinkError(f"{path}: {reason}. The sink's 'path' must be a folder, or not exist yet")
    return SinkError(f"{path}: cannot write: {reason}")


def encode_name(text: str) -> str:
    """Make a stream id a single safe folder name: percent-encoded, never hidden, never ``..``, at most 200 bytes.

    Reversible by percent-decoding, except for ids that had to be cut (they end in 16 hex digits of their SHA-256).
    """
    name = quote(text, safe="")
    if name[:1] in (".", "_"):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) > _NAME_BYTES:
        kept = re.sub(r"%.?$", "", name[: _NAME_BYTES - 17])
        name = f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return name


def published(root: Path) -> Iterator[tuple[tuple[int, int, int], Path]]:
    """Yield ``((epoch, shard, n), path)`` of every committed file below ``root``, in no particular order."""
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(("_", "."))]
        for name in files:
            match = _PART.fullmatch(name)
            if match:
                yield (int(match[1]), int(match[2]), int(match[3])), Path(folder, name)


class StagedFile:
    """An append-only file that counts and hashes what passes through it, for Arrow's writers and our own.

    All ``OSError`` become ``SinkError``. ``close`` does nothing, because Arrow's writers call it: use ``finish`` or ``abort``.
    """

    # Buffers on its own: io.BufferedWriter would try to write the rest to a full disk again when it is collected.

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._pending = bytearray()
        with _os_errors(path):
            self._file: FileIO | None = FileIO(path, "xb")

    @property
    def sha256(self) -> str:
        """Hex digest of everything written so far."""
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        """Append any buffer; return its size in bytes."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        if len(self._pending) + len(view) > _BUFFER_BYTES:
            self._write_through(self._pending)
            self._pending = bytearray()
        if len(view) > _BUFFER_BYTES:
            self._write_through(view)
        else:
            self._pending += view
        self.bytes += len(view)
        return len(view)

    def finish(self) -> None:
        """Flush to the device and close."""
        if self._file is not None:
            self._write_through(self._pending)
            with _os_errors(self.path):
                self._file.close()
                durable.sync(self.path)
            self._file = None

    def abort(self) -> None:
        """Close and delete, whatever state the file is in. Never raises."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _write_through(self, data: bytearray | memoryview) -> None:
        if self._file is None:
            raise SinkError(f"{self.path}: this file was already finished or dropped")
        rest = memoryview(data)
        with _os_errors(self.path):
            while rest:
                rest = rest[self._file.write(rest) :]

    # The rest is what pyarrow.PythonFile asks for.

    @property
    def closed(self) -> bool:
        """True after ``finish`` or ``abort``."""
        return self._file is None

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self.bytes

    def flush(self) -> None:
        """Do nothing: ``finish`` flushes."""

    def close(self) -> None:
        """Do nothing: see the class."""


@dataclass(frozen=True, slots=True)
class _Finished:
    path: Path
    partition: str
    rows: int
    bytes: int
    sha256: str


class FileSink(Sink):
    """Base of the sinks that write files. A subclass opens files by ``_new_path``, reports them by ``_finished`` and
    implements ``_start``, ``write``, ``_flush`` and ``_drop``.
    """

    suffix: ClassVar[str]
    """Of published files, with the dot."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.root = Path(options.path).expanduser()
        self.shard = 0
        self._folder: Path | None = None
        self._serial = 0
        self._done: list[_Finished] = []

    # -- for subclasses

    @abstractmethod
    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Check the schemas of the inputs. Raise ``ConfigError`` if the options do not fit them."""

    @abstractmethod
    def _flush(self) -> None:
        """Finish all open files: each is fsynced and reported by ``_finished``."""

    @abstractmethod
    def _drop(self) -> None:
        """Forget all rows and files that are not finished. Never raises."""

    def _new_path(self) -> Path:
        """Return the name of the next staged file."""
        if self._folder is None:
            raise SinkError(f"{self.root}: the sink is not open")
        self._serial += 1
        return self._folder / f"{self._serial:06d}{self.suffix}.staged"

    def _finished(self, file: StagedFile, *, partition: str, rows: int) -> None:
        """Report a file that is complete on disk. ``partition``: the folder below the root that it belongs to, or ``""``."""
        self._finished_file(file.path, partition=partition, rows=rows, size=file.bytes, sha256=file.sha256)

    def _finished_file(self, path: Path, *, partition: str, rows: int, size: int, sha256: str) -> None:
        """Report a file that a library wrote on its own; it must be flushed to the device."""
        self._done.append(_Finished(path, partition, rows, size, sha256))

    # -- contract

    def examine(self, schemas: Mapping[str, pa.Schema]) -> None:
        """Check the schemas of the inputs against the options."""
        self._start(schemas)

    def open(self, schemas: Mapping[str, pa.Schema], *, attempt: int, shard: int) -> None:
        """Make the staging folder of this attempt and shard. ``SinkError`` where a newer attempt already writes."""
        self._start(schemas)
        self.shard = shard
        staging = self.root / STAGING
        with _os_errors(self.root):
            durable.make_folders(staging / str(attempt))
            newest = max((int(p.name) for p in staging.iterdir() if p.name.isdecimal()), default=attempt)
            if newest > attempt:
                raise SinkError(
                    f"{self.root}: attempt {newest} of this pipeline writes here; attempt {attempt} is outdated, end it"
                )
            folder = staging / str(attempt) / str(shard)
            try:
                folder.mkdir()
            except FileExistsError:
                raise SinkError(
                    f"{self.root}: another sink writes into this folder (attempt {attempt}, shard {shard}); "
                    "give every sink of the pipeline file its own 'path'"
                ) from None
            durable.sync(folder.parent)
        self._folder = folder
        self._serial = 0

    def prepare(self, epoch: int) -> list[Staged]:
        """Finish all files and the folder that lists them; return their final names."""
        self._flush()
        folder = self._folder
        if folder is None:
            raise SinkError(f"{self.root}: the sink is not open")
        if not folder.is_dir():
            raise SinkError(f"{folder} has disappeared: another run has taken over {self.root}; end one of the two")
        staged = []
        for n, file in enumerate(self._done):
            name = f"part-{epoch:06d}-{self.shard:03d}-{n:04d}{self.suffix}"
            final = f"{file.partition}/{name}" if file.partition else name
            staged.append(Staged(file.path.relative_to(self.root).as_posix(), final, file.rows, file.bytes, file.sha256))
        if staged:
            with _os_errors(folder):
                durable.sync(folder)
        self._done = []
        return staged

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Rename each file into place, then fsync the folders. A file that is already there is left alone."""
        folders: dict[Path, None] = {}
        for file in staged:
            source, target = self._inside(file.staged), self._inside(file.final)
            # Also where the file is there already: the process may have died between the rename and the fsync.
            folders[target.parent] = None
            with _os_errors(target):
                if not source.exists():
                    if not target.exists():
                        raise SinkError(
                            f"{self.root}: {file.final} of epoch {epoch} is neither staged nor published. Was it deleted, or "
                            "has the sink's 'path' changed since the last run? Put it back, or start over with --fresh"
                        )
                    continue
                if target.exists() and sha256_of(target) != file.sha256:
                    raise SinkError(self._foreign(target, epoch))
                durable.make_folders(target.parent)
                source.replace(target)
                faults.reach("between_renames", epoch)
        for folder in folders:
            with _os_errors(folder):
                durable.sync(folder)

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """See the contract. ``SinkError`` where the folder holds files of a run that is not this one."""
        for (of_epoch, _, _), path in published(self.root):
            if of_epoch > epoch:
                raise SinkError(self._foreign(path, epoch))
        for file in staged:
            for path in (self._inside(file.staged), self._inside(file.final)):
                with _os_errors(path):
                    if path.exists() and sha256_of(path) != file.sha256:
                        if path == self._inside(file.staged):
                            raise SinkError(
                                f"{path} is not as this run wrote it for epoch {epoch}: its SHA-256 differs, so it was "
                                "changed or damaged. Put it back, or start over with another 'state' and 'path'"
                            )
                        raise SinkError(self._foreign(path, epoch))
        self.commit(epoch, staged)
        if self._remove_staged():
            logger.info("sink=%s recovered epoch=%d; staged leftovers removed", self.root, epoch)

    def written(self) -> list[Path]:
        """Return committed and staged files."""
        staged = [path for path in (self.root / STAGING).rglob("*") if path.is_file()]
        return [*sorted(path for _, path in published(self.root)), *sorted(staged)]

    def close(self) -> None:
        """Delete what was not prepared. What was prepared stays for ``commit`` or ``recover``."""
        self._drop()
        for file in self._done:
            with contextlib.suppress(OSError):
                file.path.unlink()
        self._done = []
        if self._folder is not None:
            # Not empty where something is prepared, or where other shards are at work.
            with contextlib.suppress(OSError):
                for folder in (self._folder, self._folder.parent, self._folder.parent.parent):
                    folder.rmdir()
            self._folder = None

    def _remove_staged(self) -> bool:
        """Delete all that is staged; return whether there was anything."""
        leftovers = self.root / STAGING
        with _os_errors(leftovers):
            if not leftovers.exists():
                return False
            shutil.rmtree(leftovers)
            durable.sync(self.root)
        return True

    def _inside(self, name: str) -> Path:
        """Return ``root/name``; refuse a manifest that points outside."""
        path = self.root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise SinkError(f"{self.root}: the manifest names a file outside of the sink's folder: {name!r}; it is damaged")
        return path

    def _foreign(self, path: Path, epoch: int) -> str:
        ours = f"this run's newest epoch is {epoch}" if epoch >= 0 else "this run starts over"
        return (
            f"{self.root} holds {path.relative_to(self.root)}, which this run did not write ({ours}). "
            "Set the sink's 'path' to another folder, start over with --fresh, or resume (--resume) the run that wrote it"
        )


def single_input(name: str, schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """Return the schema of the only input. Raise ``ConfigError`` where there are several."""
    if len(schemas) != 1:
        raise ConfigError(
            f"a {name} sink takes one input, not {sorted(schemas)}; write one sink, with its own 'path', per input"
        )
    return next(iter(schemas.values()))


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise sink_error(path, error) from error


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
