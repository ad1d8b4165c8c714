"""When files may be deleted that snapshots name. It deletes files and knows nothing else of them.

Invariant: a file that one of the last ``kept`` snapshots may name is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Retirement"]


class Retirement:
    """Deletes retired files: at once if no snapshot was taken since they were made, else after ``kept`` further snapshots."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._snapshots = 0
        self._born: dict[Path, int] = {}
        self._retired: dict[Path, tuple[int, int]] = {}  # path → (snapshots taken by then, size)

    def bytes(self) -> int:
        """Return the size of the files that wait to be deleted."""
        return sum(size for _, size in self._retired.values())

    def paths(self) -> list[Path]:
        """Return the files that wait to be deleted."""
        return list(self._retired)

    def knows(self, path: Path) -> bool:
        """Tell whether a file is in use or waits to be deleted."""
        return path in self._born or path in self._retired

    def note(self, paths: Iterable[Path]) -> None:
        """Take new files, which no snapshot names yet."""
        self._born |= dict.fromkeys(paths, self._snapshots)

    def adopt(self, paths: Iterable[Path]) -> None:
        """Take files that a snapshot names."""
        for path in paths:
            self._born[path] = -1
            self._retired.pop(path, None)

    def retire(self, paths: Iterable[Path], size: int) -> None:
        """Delete files, of ``size`` bytes each, as soon as no snapshot that counts can name them."""
        for path in paths:
            if self._born.pop(path, -1) == self._snapshots:
                _delete(path)
            else:
                self._retired[path] = (self._snapshots, size)

    def advance(self) -> None:
        """Note that a snapshot was taken."""
        self._snapshots += 1
        for path, (then, _) in list(self._retired.items()):
            if then <= self._snapshots - self._kept:
                _delete(path)
                del self._retired[path]


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other files may be left
        path.parent.rmdir()
