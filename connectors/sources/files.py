"""Which files a source reads: expanding paths, naming streams after files, and noticing that a file has changed.

Knows nothing of what is inside a file. Every listing has one stable order (natural: ``frame2`` before ``frame10``), because
split ids and recorded positions depend on it.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.errors import NothingToRead, SourceError

__all__ = ["FileStamp", "digest_of", "expand", "name_streams", "natural_key"]

logger = logging.getLogger(__name__)

_DIGITS = re.compile(r"(\d+)")


def natural_key(path: Path | str) -> list[tuple[bool, int, str]]:
    """Return a sort key that orders numbers inside a name by value."""
    parts = _DIGITS.split(str(path))
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def expand(
    path: str | Sequence[str],
    wanted: Callable[[Path], bool],
    what: str,
    *,
    may_be_empty: bool = False,
    unread: dict[str, str] | None = None,
) -> list[Path]:
    """List the files or folders that ``path`` names, each once, in natural order.

    ``path`` is a file, a folder (its direct entries that are ``wanted``), a glob (``**`` crosses folders), or a list of
    these. A file that is named outright is taken whatever its suffix. Raise ``SourceError`` for a path that does not exist
    (with the nearest names that do) and, unless it ``may_be_empty``, ``NothingToRead`` for a folder or glob that holds nothing
    wanted; ``what`` says what was looked for.

    What cannot be read raises too (a pipe, whose opening may never return; a name that is no text), or is left out and noted
    in ``unread`` (name → why), if given.
    """
    found: dict[Path, None] = {}
    for item in [path] if isinstance(path, str) else list(path):
        given = Path(item).expanduser()
        if given.is_dir():
            entries = [entry for entry in given.iterdir() if not entry.name.startswith(".") and wanted(entry)]
            if not entries and not may_be_empty:
                inside = list(given.iterdir())
                hint = (
                    f"; for files in its folders give {item.rstrip('/') + '/**/*'!r}" if any(map(Path.is_dir, inside)) else ""
                )
                raise NothingToRead(f"folder {item!r} holds no {what}; it holds {_sample(e.name for e in inside)}{hint}")
        elif given.exists():
            entries = [given]
        elif glob.has_magic(item):
            matches = (Path(match) for match in glob.glob(str(given), recursive=True))  # noqa: PTH207 (absolute patterns)
            entries = [entry for entry in matches if wanted(entry)]
            if not entries and not may_be_empty:
                raise NothingToRead(f"nothing matches {item!r} ({what}); {_nearby(given)}")
        else:
            raise SourceError(f"no such file or folder: {item!r}; {_nearby(given)}")
        entries = _readable(entries, unread)
        found.update(dict.fromkeys(sorted(entries, key=natural_key)))
    if not found and not may_be_empty:
        raise SourceError(f"the list of paths is empty; give at least one file, folder or glob ({what})")
    return list(found)


def name_streams(paths: Iterable[Path], by: str) -> dict[str, Path]:
    """Name each path: ``stem`` (the file name without suffix) or ``path`` (relative to the common folder, without suffix).

    Raise ``SourceError`` when two files get the same name, since state belongs to a name.
    """
    paths = [path.absolute() for path in paths]
    base = _common_folder(paths)
    streams: dict[str, Path] = {}
    for path in paths:
        bare = path if path.is_dir() else path.with_suffix("")
        name = bare.name if by == "stem" else bare.relative_to(base).as_posix()
        if name in streams:
            hint = "set stream_names: path, or rename one" if by == "stem" else "rename one of them"
            raise SourceError(f"two files would share the stream id {name!r}: {streams[name]} and {path}; {hint}")
        streams[name] = path
    return streams


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Size and modification time of a file: what a position remembers of it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Take the stamp of ``path``. Raise ``SourceError`` if it is gone or unreadable."""
        try:
            status = path.stat()
        except OSError as error:
            raise SourceError(f"cannot read {str(path)!r}: {error.strerror}; {_nearby(path)}") from error
        return cls(status.st_size, status.st_mtime_ns)

    def require(self, path: Path, recorded: dict[str, Any]) -> None:
        """Raise ``SourceError`` unless ``recorded`` (``size``, ``mtime_ns`` of a position) is this stamp."""
        then = FileStamp(int(recorded["size"]), int(recorded["mtime_ns"]))
        if then != self:
            raise SourceError(
                f"{str(path)!r} has changed since the position was recorded ({self._change(then)}); "
                "put the old file back, or start over with another state folder"
            )

    def require_read(self, path: Path, recorded: Sequence[int]) -> None:
        """Raise ``SourceError`` where a file that was read to its end is another one now than ``recorded`` (size, time)."""
        then = FileStamp(int(recorded[0]), int(recorded[1]))
        if then != self:
            raise SourceError(
                f"{str(path)!r} has changed since it was read to its end ({self._change(then)}), and a file is read once; put "
                "what is new into a file of its own and the old file back, or start over with another state folder"
            )

    def _change(self, then: FileStamp) -> str:
        if then.size != self.size:
            return f"its size went from {then.size} to {self.size} bytes"
        return f"its modification time went from {then.mtime_ns} to {self.mtime_ns} ns"


def digest_of(files: Sequence[Path]) -> str:
    """Return a digest of the names, sizes and modification times of files: what a position remembers of a list of them."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = path.stat()
            digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path.name}\0gone\n".encode())
    return digest.hexdigest()


def _readable(entries: Sequence[Path], unread: dict[str, str] | None) -> list[Path]:
    """Return the ``entries`` that can be read again and named in rows; note the others, or raise ``SourceError`` for them."""
    readable = []
    for entry in entries:
        why = _unreadable(entry)
        if why is None:
            readable.append(entry)
            continue
        shown = os.fsencode(entry).decode(errors="backslashreplace")
        if unread is None:
            raise SourceError(f"{shown!r} cannot be read: {why}")
        if shown not in unread:
            logger.warning("path=%s is not read: %s", shown, why)
        unread[shown] = why
    return readable


def _unreadable(path: Path) -> str | None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8 text; rename it"
    try:
        mode = path.stat().st_mode
    except OSError:
        return None  # gone, or a link to nothing: whoever opens it says so
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return "it is a named pipe, a socket or a device, and only files can be read again after a restart; give a file"
    return None


def _common_folder(paths: Sequence[Path]) -> Path:
    """Return the deepest folder above all of ``paths``."""
    common = paths[0].parent
    while not all(path.is_relative_to(common) for path in paths):
        common = common.parent
    return common


def _sample(names: Iterable[str], limit: int = 5) -> str:
    ordered = sorted(names, key=natural_key)
    shown = ", ".join(repr(name) for name in ordered[:limit])
    return (shown + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")) or "nothing"


def _nearby(path: Path) -> str:
    """Say which existing names are nearest to the part of ``path`` that does not exist."""
    path = path.absolute()
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    folder = missing.parent
    try:
        names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        return f"{str(folder)!r} cannot be listed: {error.strerror}"
    close = difflib.get_close_matches(missing.name, names, n=3, cutoff=0.5)
    if close:
        return f"nearest in {str(folder)!r}: {', '.join(repr(name) for name in close)}"
    return f"{str(folder)!r} holds {_sample(names)}"
