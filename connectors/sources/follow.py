"""Folders that are being written to: files that appear later are read, too, and the source does not end.

A file counts once it has not changed for ``settle_s``. Files are taken in natural order of their paths; one whose path sorts
before a file that was taken already is never read where files follow one another in one split, so writers name them by time.
"""

from __future__ import annotations

import glob
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.errors import ConfigError
from connectors.options import option
from connectors.sources.files import expand, natural_key
from connectors.sources.paced import ReplayOptions

__all__ = ["Folder", "FollowOptions", "changed_ns"]

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
"""How often the file system is asked, at most."""


@dataclass(frozen=True, kw_only=True)
class FollowOptions(ReplayOptions):
    """Options of sources that can read a folder while it is written to."""

    follow: bool = option(False, "Go on with files that appear later; the source then never ends.")
    settle_s: float = option(2.0, "With follow: a file is read once it has not changed for this long.", unit="s", ge=0)

    def __post_init__(self) -> None:
        ReplayOptions.__post_init__(self)
        if self.settle_s != 2.0 and not self.follow:
            raise ConfigError(f"settle_s: {self.settle_s} has no effect without follow: true")
        if self.follow and getattr(self, "stream_names", "stem") == "path":
            raise ConfigError("follow: true needs stream_names: stem; the common folder may change with new files")


class Folder:
    """The files that match a pattern, as they appear over time.

    One whose name sorts before what was taken already comes too late to be read in its place: it is named in ``unread``. That
    it has come since is told by earlier listings and, for the first one of a resumed run, by its time: after ``newest_ns``.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        wanted: Callable[[Path], bool],
        settle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._wanted = wanted
        self._settle_s = settle_s
        self._clock = clock
        self._looked_s = -_LOOK_S
        self._roots = list(dict.fromkeys(_root(item) for item in ([path] if isinstance(path, str) else path)))
        self._listed: frozenset[str] | None = None  # names at the last look
        self.unread: dict[str, str] = {}
        """Name → why it is not read."""
        self.newest_ns = 0
        """The latest modification time of a file that ``behind`` has returned, as far as is known."""

    def settled(self) -> list[Path]:
        """Return all files that nobody is writing anymore, in natural order."""
        now = time.time()
        return [
            path
            for path in expand(self._path, self._wanted, "", may_be_empty=True, unread=self.unread)
            if now - _changed(path) >= self._settle_s
        ]

    def after(self, name: str | None) -> list[Path]:
        """Return the settled files whose ``name`` sorts behind (None: all); nothing where the last look is too recent."""
        if self._clock() - self._looked_s < _LOOK_S:
            return []
        self._looked_s = self._clock()
        return self.behind(self.settled(), name)

    def behind(self, files: Sequence[Path], name: str | None, taken: Collection[str] = ()) -> list[Path]:
        """Return those of the files whose ``name`` sorts behind (None: all) and is not ``taken``, in order of their names."""
        names = {self.name(path): path for path in files}
        last = None if name is None else natural_key(name)
        new = []
        for own in sorted(names.keys() - set(taken), key=natural_key):
            if last is None or natural_key(own) > last:
                new.append(names[own])
                self.newest_ns = max(self.newest_ns, changed_ns(names[own]))
            elif own not in self._listed if self._listed is not None else changed_ns(names[own]) > self.newest_ns:
                self.unread[own] = f"it came after {name!r} had been read, and its name sorts before that; name files by time"
                logger.warning("path=%s is not read: %s", names[own], self.unread[own])
        self._listed = frozenset(names)
        return new

    def add_new(self, known: dict[str, Path]) -> list[str]:
        """Add the settled files whose names are new to ``known``, each as a stream; return these names."""
        paths = set(known.values())
        new = []
        for path in (file.absolute() for file in self.settled()):
            if path in paths or str(path) in self.unread:
                continue
            if path.stem in known:
                self.unread[str(path)] = f"{known[path.stem]} has the same stream id"
                logger.warning("stream=%s path=%s is not read: %s", path.stem, path, self.unread[str(path)])
                continue
            known[path.stem] = path
            new.append(path.stem)
        return new

    def name(self, path: Path) -> str:
        """Return the path below the folder or the fixed part of the pattern: what a position remembers.

        Where several folders are read, their number is added, so that each file has a name of its own.
        """
        absolute = path.absolute()
        for number, root in enumerate(self._roots):
            if absolute.is_relative_to(root):
                return absolute.relative_to(root).as_posix() + (f"@{number}" if len(self._roots) > 1 else "")
        return absolute.name


def _root(item: str) -> Path:
    path = Path(item).expanduser().absolute()
    while glob.has_magic(str(path)):
        path = path.parent
    return path if path.is_dir() else path.parent


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")  # gone between listing and looking


def changed_ns(path: Path) -> int:
    """Return when a file was last modified, in nanoseconds since 1970; 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
