"""Starting over: what earlier runs of a pipeline have left, and its removal. Only files that the engine wrote are touched."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.errors import RecoveryError
from pipelines.runtime.manifest import StateFolder
from pipelines.spec import PipelineSpec

__all__ = ["Leftover", "leftovers", "remove", "start_over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Files of one folder that a run that starts over deletes."""

    where: str
    """``state`` or ``sinks.NAME``."""
    folder: Path
    files: Sequence[Path]
    bytes: int


def leftovers(spec: PipelineSpec) -> list[Leftover]:
    """Return what earlier runs have left in the state folder and the sinks' folders; what is nothing is left out.

    Rows in a topic cannot be taken back and are not listed. Raise ``RecoveryError`` where a folder cannot be read, or the state
    is another pipeline's.
    """
    _require_own_state(spec)
    found = [("state", Path(spec.state), StateFolder(Path(spec.state)).written())]
    for sink in spec.sinks:
        try:
            found.append((f"sinks.{sink.name}", Path(getattr(sink.options, "path", ".")), sink.build().written()))
        except OSError as error:
            raise RecoveryError(f"sinks.{sink.name}: what earlier runs wrote cannot be listed: {error}") from error
    return [
        Leftover(where=where, folder=folder.expanduser(), files=files, bytes=sum(map(_size, files)))
        for where, folder, files in found
        if files
    ]


def remove(spec: PipelineSpec, found: Sequence[Leftover]) -> None:
    """Delete these files, and the folders below their own that are empty then.

    The state goes first: cut off in the middle, the rest is refused by the next run instead of being taken for its own. Raise
    ``RecoveryError`` where another run holds the state folder, or a file cannot be deleted.
    """
    state = StateFolder(Path(spec.state))
    state.open()
    try:
        for part in sorted(found, key=lambda part: part.where != "state"):
            folders = set()
            for file in part.files:
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    raise RecoveryError(f"{file} of an earlier run cannot be deleted: {error.strerror or error}") from error
                folders |= {folder for folder in file.parents if part.folder in folder.parents}
            for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
                with contextlib.suppress(OSError):  # not empty: something of the user's is in it
                    folder.rmdir()
    finally:
        state.close()


def start_over(spec: PipelineSpec) -> list[Leftover]:
    """Delete what earlier runs have left; return what that was."""
    found = leftovers(spec)
    if found:
        remove(spec, found)
    return found


def _require_own_state(spec: PipelineSpec) -> None:
    try:
        manifest = StateFolder(Path(spec.state)).newest()
    except RecoveryError:
        return  # of an earlier version, which cannot be resumed: starting over is what is left
    if manifest is not None and manifest.name != spec.name:
        raise RecoveryError(
            f"state folder {spec.state} belongs to pipeline {manifest.name!r}, this is {spec.name!r}; set 'state' to another "
            "folder, or delete it by hand"
        )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
