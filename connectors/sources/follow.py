"""Folders that are being written to: files that appear later are read, too, and the source does not end.

A file counts once it has not changed for ``settle_s``. Files are taken in natural order of their paths; one whose path sorts
before a file that was taken already is never read where files follow one another in one split, so writers name them by time.
"""

from __future__ import annotations

import glob
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.errors import ConfigError
from connectors.options import option
from connectors.sources.files import expand, natural_key
from connectors.sources.paced import ReplayOptions

__all__ = ["Folder", "FollowOptions", "add_files"]

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
    """The files that match a pattern, as they appear over time."""

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
        self._roots = [_root(item) for item in ([path] if isinstance(path, str) else path)]

    def settled(self) -> list[Path]:
        """Return all files that nobody is writing anymore, in natural order."""
        now = time.time()
        return [
            path for path in expand(self._path, self._wanted, "", may_be_empty=True) if now - _changed(path) >= self._settle_s
        ]

    def after(self, name: str | None) -> list[Path]:
        """Return the settled files whose ``name`` sorts behind (None: all); nothing where the last look is too recent."""
        if self._clock() - self._looked_s < _LOOK_S:
            return []
        self._looked_s = self._clock()
        return self.behind(self.settled(), name)

    def behind(self, files: Sequence[Path], name: str | None) -> list[Path]:
        """Return those of the files whose ``name`` sorts behind (None: all), in the order of their names."""
        ordered = sorted(files, key=lambda path: natural_key(self.name(path)))
        return ordered if name is None else [path for path in ordered if natural_key(self.name(path)) > natural_key(name)]

    def name(self, path: Path) -> str:
        """Return the path below the folder or the fixed part of the pattern: what a position remembers."""
        absolute = path.absolute()
        for root in self._roots:
            if absolute.is_relative_to(root):
                return absolute.relative_to(root).as_posix()
        return absolute.name


def add_files(known: dict[str, Path], files: Sequence[Path]) -> list[str]:
    """Add the files whose names are new to ``known``, each as a stream; return these names."""
    paths = set(known.values())
    new = []
    for path in (file.absolute() for file in files):
        if path in paths:
            continue
        if path.stem in known:
            logger.warning("stream=%s %s is not read: %s has the same stream id", path.stem, path, known[path.stem])
            paths.add(path)
            continue
        known[path.stem] = path
        new.append(path.stem)
    return new


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
