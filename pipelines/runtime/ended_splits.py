"""Splits that have been read to their end, kept beside the manifests so that these do not grow with every file that was read.

``splits/<node>/<epoch>.jsonl`` holds those that ended with an epoch: ``[name, position, rows, time_us]`` a line. Files are only
added; small ones are merged into the next, so that their number grows with the logarithm of the number of splits. A file that
no kept manifest names is deleted by the state folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors import durable
from connectors.errors import RecoveryError
from pipelines.runtime.messages import SplitState

__all__ = ["SplitFile", "add_ended", "read_ended"]


@dataclass(frozen=True, slots=True)
class SplitFile:
    """One file of ended splits; ``path`` is relative to the state folder."""

    path: str
    splits: int
    sha256: str


def add_ended(
    root: Path, node: str, epoch: int, files: Sequence[SplitFile], ended: Mapping[str, SplitState]
) -> tuple[SplitFile, ...]:
    """Write the splits that ``ended`` with an epoch; return the files that hold all that have, durable.

    Nothing that ``files`` name is changed: they belong to the manifests before. Raise ``OSError`` where it cannot be written.
    """
    if not ended:
        return tuple(files)
    kept, merged = list(files), dict(ended)
    while kept and kept[-1].splits <= 2 * len(merged):
        merged = {**read_ended(root, [kept.pop()]), **merged}
    lines = [json.dumps([name, state.position, state.rows, state.time_us]) for name, state in merged.items()]
    content = "".join(line + "\n" for line in lines).encode()
    path = f"splits/{node}/{epoch:06d}.jsonl"
    durable.make_folders((root / path).parent)
    durable.write(root / path, content)
    return (*kept, SplitFile(path, len(merged), hashlib.sha256(content).hexdigest()))


def read_ended(root: Path, files: Sequence[SplitFile]) -> dict[str, SplitState]:
    """Return the ended splits that ``files`` hold. Raise ``RecoveryError`` for one that is gone or damaged."""
    splits: dict[str, SplitState] = {}
    for file in files:
        try:
            content = (root / file.path).read_bytes()
        except OSError as error:
            raise RecoveryError(f"{root / file.path} cannot be read: {error.strerror}; {_REMEDY}") from error
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise RecoveryError(f"{root / file.path} is damaged: its checksum differs; {_REMEDY}")
        for name, position, rows, time_us in map(json.loads, content.splitlines()):
            splits[name] = SplitState(position, True, rows, time_us)
    return splits


_REMEDY = "put it back, or start over in another state folder: it says which files have been read"
