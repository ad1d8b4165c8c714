"""The state folder: manifests of committed epochs, the attempt counter, the lock, and which snapshot files are still needed.

Layout: ``epochs/<epoch>.json`` (two are kept), ``snapshots/<node>/*.safetensors``, ``splits/<node>/*.jsonl``, ``attempt``,
``lock``. Knows nothing of tasks. Invariant: an epoch is committed exactly when its manifest exists under its final name;
everything that a kept manifest names exists.

``splits/<node>/<epoch>.jsonl`` holds the splits that ended with an epoch, so that manifests do not grow with every file that
was read: ``[name, position, rows, time_us]`` a line. Files are only added; small ones are merged into the next, so that their
number grows with the logarithm of the number of splits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from connectors import durable
from connectors.base import Staged
from connectors.errors import RecoveryError
from pipelines.runtime.messages import Alignment, SnapshotFile, SplitState
from pipelines.runtime.tally import Tally

__all__ = ["Manifest", "OperatorState", "SplitFile", "StateFolder", "add_ended", "read_ended", "read_manifests"]

FORMAT = 3
"""Raised where what is in a state folder changes: names of options, the state of operators. Older ones cannot be resumed."""
_KEEP = 2
_NOT_BEGUN = SplitState()

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OperatorState:
    """What one operator shard left behind: its chain of snapshot files and, with several inputs, their open streams.

    ``alignment`` is there where it aligns them by event time.
    """

    chain: tuple[SnapshotFile, ...]
    open_streams: Mapping[str, list[str]] = field(default_factory=dict)
    alignment: Alignment | None = None

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> OperatorState:
        """Rebuild it from the JSON of a manifest."""
        alignment = value.get("alignment")
        if alignment is not None:
            rows = SnapshotFile(**alignment["rows"]) if alignment["rows"] is not None else None
            alignment = Alignment(**{**alignment, "rows": rows})
        return OperatorState(tuple(SnapshotFile(**file) for file in value["chain"]), value["open_streams"], alignment)

    def files(self) -> list[SnapshotFile]:
        """Return all files that it needs."""
        held = self.alignment.rows if self.alignment is not None else None
        return [*self.chain, held] if held is not None else [*self.chain]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is needed to go on after an epoch."""

    name: str
    """The pipeline's name."""
    options: Mapping[str, Any]
    """``node.option`` → value: what must not change on resume."""
    attempt: int
    epoch: int
    finished: bool
    """All sources have an end and were read to it: only what has come since is there to be read."""
    sources: Mapping[str, Mapping[str, SplitState]]
    """Node → split that has not ended → where to go on."""
    operators: Mapping[str, tuple[OperatorState, ...]]
    """Node → per shard its state."""
    sinks: Mapping[str, tuple[tuple[Staged, ...], ...]]
    """Node → per shard the files staged for this epoch."""
    rows: Mapping[str, int]
    """Rows that each source has delivered and each sink has been given, from the first epoch to this one."""
    ended: Mapping[str, tuple[SplitFile, ...]] = field(default_factory=dict)
    """Node → the files that hold the splits that have ended."""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """Source or operator → what has become of its rows, from the first epoch to this one."""
    committed_at: str = ""
    """ISO time, UTC, for people."""
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values. Splits that have not been begun are names only."""
        sources = {
            node: {
                "begun": {name: asdict(state) for name, state in splits.items() if state != _NOT_BEGUN},
                "waiting": [name for name, state in splits.items() if state == _NOT_BEGUN],
            }
            for node, splits in self.sources.items()
        }
        tallies = {node: part.to_json() for node, part in self.tallies.items()}
        return {**asdict(replace(self, sources={}, tallies={})), "sources": sources, "tallies": tallies}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Manifest:
        """Rebuild what ``to_json`` returned."""
        sources = {
            node: {
                **{split: SplitState(**state) for split, state in splits["begun"].items()},
                **dict.fromkeys(splits["waiting"], _NOT_BEGUN),
            }
            for node, splits in value["sources"].items()
        }
        ended = {node: tuple(SplitFile(**file) for file in files) for node, files in value["ended"].items()}
        operators = {node: tuple(map(OperatorState.from_json, shards)) for node, shards in value["operators"].items()}
        sinks = {
            node: tuple(tuple(Staged(**file) for file in shard) for shard in shards) for node, shards in value["sinks"].items()
        }
        tallies = {node: Tally.from_json(part) for node, part in value.get("tallies", {}).items()}
        return Manifest(
            **{**value, "sources": sources, "operators": operators, "sinks": sinks, "ended": ended, "tallies": tallies}
        )

    def paths(self) -> set[str]:
        """Return the files that this epoch needs, relative to the state folder."""
        snapshots = {file.path for shards in self.operators.values() for shard in shards for file in shard.files()}
        return snapshots | {file.path for files in self.ended.values() for file in files}

    def splits(self, root: Path, node: str) -> dict[str, SplitState]:
        """Return how far every split of a source has been read, the ended ones from the state folder ``root``.

        Raise ``RecoveryError`` where they cannot be read.
        """
        return {**read_ended(root, self.ended.get(node, ())), **self.sources.get(node, {})}


class StateFolder:
    """The only writer of a state folder; holds its lock from ``open`` to ``close``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None

    def open(self) -> None:
        """Make the folder and lock it. Raise ``RecoveryError`` while another run holds it."""
        try:
            (self.root / "epochs").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RecoveryError(
                f"state folder {self.root} cannot be written: {error.strerror}; set 'state' to a folder that this user may "
                "write"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 64, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = None
            raise RecoveryError(
                f"state folder {self.root} is in use by another run (process {holder}); wait for it, stop it, or set "
                "'state' to another folder"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        """Give the lock back. May be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def written(self) -> list[Path]:
        """Return the files that runs have left here, without the lock; needs none."""
        kinds = ("epochs", "snapshots", "splits")
        files = [path for kind in kinds for path in sorted((self.root / kind).rglob("*")) if path.is_file()]
        return [*files, *(path for path in [self.root / "attempt"] if path.is_file())]

    def newest(self) -> Manifest | None:
        """Return the newest readable manifest, None where there is none."""
        return next(iter(read_manifests(self.root)), None)

    def next_attempt(self, manifest: Manifest | None) -> int:
        """Return an attempt number that no earlier attempt had, and remember it. Durable when this returns."""
        path = self.root / "attempt"
        last = manifest.attempt if manifest is not None else 0
        try:
            last = max(last, int(path.read_text()))
        except FileNotFoundError:
            pass
        except ValueError:
            logger.warning("state=%s the attempt counter is unreadable; going on from the manifest", self.root)
        self._write(path, str(last + 1).encode())
        return last + 1

    def write(self, manifest: Manifest) -> None:
        """Commit an epoch: when this returns, its manifest is durable."""
        stamped = {**manifest.to_json(), "committed_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        document = {"sha256": _digest(stamped), "manifest": stamped}
        self._write(self.root / "epochs" / f"{manifest.epoch:06d}.json", json.dumps(document).encode())

    def add_ended(
        self, manifest: Manifest | None, epoch: int, ended: Mapping[str, Mapping[str, SplitState]]
    ) -> dict[str, tuple[SplitFile, ...]]:
        """Write the splits of each source that ended with an epoch; return the files that hold all that have ended.

        ``manifest`` is the one before. Durable when this returns.
        """
        files = dict(manifest.ended) if manifest is not None else {}
        for node, splits in ended.items():
            try:
                files[node] = add_ended(self.root, node, epoch, files.get(node, ()), splits)
            except OSError as error:
                raise self._unwritable(self.root / "splits" / node, error) from error
        return files

    def clean(self) -> None:
        """Delete manifests beyond the newest two, and files that those do not need: snapshots, splits, temporary ones."""
        kept = read_manifests(self.root)[:_KEEP]
        needed = set().union(*(manifest.paths() for manifest in kept))
        names = {f"{manifest.epoch:06d}.json" for manifest in kept}
        for path in (self.root / "epochs").iterdir():
            # An unreadable manifest newer than the newest good one stays for a person to look at.
            older = path.stem.isdecimal() and (not kept or int(path.stem) < kept[-1].epoch)
            if path.name not in names and (older or durable.is_leftover(path)):
                path.unlink(missing_ok=True)
        for path in [*(self.root / "snapshots").glob("*/*"), *(self.root / "splits").glob("*/*")]:
            if path.relative_to(self.root).as_posix() not in needed:
                path.unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        """Replace a file as a whole, durably."""
        try:
            durable.write(path, content)
        except OSError as error:
            raise self._unwritable(path, error) from error

    @staticmethod
    def _unwritable(path: Path, error: OSError) -> RecoveryError:
        return RecoveryError(
            f"{path} cannot be written: {error.strerror or error}. The epoch is not committed; free space or set "
            "'state' to another disk, then run again with --resume"
        )


def read_manifests(root: Path) -> list[Manifest]:
    """Return the readable manifests of a state folder, newest first; a torn or foreign one is skipped with a warning.

    Needs no lock: manifests are replaced as a whole. Raise ``RecoveryError`` for one of another format.
    """
    folder = root / "epochs"
    paths = sorted(folder.glob("[0-9]*.json"), key=lambda path: path.stem, reverse=True) if folder.is_dir() else []
    manifests = []
    for path in paths:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            value = document["manifest"]
            if value["format"] == FORMAT and _digest(value) != document["sha256"]:
                raise ValueError("its checksum differs")
        except FileNotFoundError:
            continue  # deleted by a run that goes on
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("manifest=%s skipped, unreadable: %s", path, error)
            continue
        if value["format"] != FORMAT:
            older = isinstance(value["format"], int) and value["format"] < FORMAT
            changed = "operators keep other state and options have other names since then; " if older else ""
            raise RecoveryError(
                f"{path} has format {value['format']!r}, this version reads {FORMAT}: {changed}resume with the version of "
                "streambank that wrote it, or start in a new state folder"
            )
        manifests.append(Manifest.from_json(value))
    return manifests


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


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
