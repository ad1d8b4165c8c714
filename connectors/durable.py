"""Files that are there as a whole or not at all, also after a power cut: the one place that flushes and renames.

A file is written under a temporary name in its own folder, flushed to the device, renamed, and the folder flushed. ``OSError``
passes through: the caller knows what the file is and what to tell its user. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_leftover", "make_folders", "replacing", "sync", "write"]


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path for the block to write; after the block it is ``target``, durably.

    If the block raises, ``target`` is as it was and the temporary file is gone. Processes do not share temporary names.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(target: Path, content: bytes) -> None:
    """Make ``content`` all that ``target`` holds, durably."""
    with replacing(target) as temporary:
        temporary.write_bytes(content)


def is_leftover(path: Path) -> bool:
    """Return whether a name is a temporary one: of a file that is being written, or that a crash left incomplete."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def make_folders(folder: Path) -> None:
    """Make a folder and its parents, each durable."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Flush to the device what was written to a file, or which names a folder holds."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
