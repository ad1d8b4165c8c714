"""What a run starts from: the checks before a resume, and the share of the last epoch that each task goes on with.

Works on manifests and specs; starts nothing. Both runners use it, so a run may change its runner, shards and parallelism when
it is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connectors.base import Position, Source, Staged
from connectors.errors import NothingToRead, RecoveryError, SourceError
from pipelines import registry
from pipelines.runtime.contracts import require_splits
from pipelines.runtime.keys import shard_of
from pipelines.runtime.manifest import Manifest, OperatorState, StateFolder
from pipelines.runtime.messages import SplitState
from pipelines.spec import OperatorSpec, PipelineSpec

if TYPE_CHECKING:
    from operators.base import Operator

__all__ = [
    "Listing",
    "assign_splits",
    "list_splits",
    "merge_open_streams",
    "options_of",
    "reshard_problem",
    "restore_operator",
    "something_to_read",
    "staged_of",
    "starting_point",
]

_FREE_SOURCE_OPTIONS = frozenset(
    {"pace", "catch_up", "bootstrap_servers", "security_protocol", "client_id", "discover_s", "settle_s"}
)
_FREE_PREFIXES = ("ssl_", "sasl_")
"""Say when rows come and on which way, not which."""

_READ_ON = {"follow": (False, True), "until": ("latest", "never")}
"""Options of sources → the change that a resume allows: a source with an end may lose it, then the run goes on behind it."""


def options_of(spec: PipelineSpec) -> dict[str, Any]:
    """Return ``node.option`` → JSON value for everything that decides which rows come out. Secrets stand as references.

    Live objects (options made in Python) are represented by their type.
    """
    options: dict[str, Any] = {}
    for source in spec.sources:
        options[f"{source.name}.type"] = source.type
        options |= {f"{source.name}.{k}": v for k, v in source.options_dict().items() if not _is_free(k)}
    for operator in spec.operators:
        options |= {f"{operator.name}.type": operator.type, f"{operator.name}.inputs": list(operator.inputs)}
        options[f"{operator.name}.control"] = list(operator.control)
        options |= {f"{operator.name}.{key}": value for key, value in operator.options_dict().items()}
        if operator.align_s is not None:
            options[f"{operator.name}.align_s"] = operator.align_s
        if not operator.align_control:
            options[f"{operator.name}.align_control"] = False
    for sink in spec.sinks:
        options |= {f"{sink.name}.type": sink.type, f"{sink.name}.inputs": list(sink.inputs)}
    plain: dict[str, Any] = json.loads(json.dumps(options, default=lambda value: type(value).__name__))
    return plain


def _is_free(option: str) -> bool:
    return option in _FREE_SOURCE_OPTIONS or option.startswith(_FREE_PREFIXES)


def starting_point(folder: StateFolder, spec: PipelineSpec, *, resume: bool) -> Manifest | None:
    """Return the manifest to go on from, None for a fresh start.

    Raise ``RecoveryError`` where the state folder holds epochs and ``resume`` is false, where it belongs to another pipeline,
    where options have changed that decide which rows come out, or where an operator that is not keyed has another number of
    shards.
    """
    manifest = folder.newest()
    if manifest is None:
        if any((folder.root / "epochs").glob("[0-9]*.json")):
            raise RecoveryError(f"state folder {folder.root} has manifests, but none is readable; start over in another folder")
        return None
    if not resume:
        stands = (
            f"of pipeline {manifest.name!r} that stands at epoch {manifest.epoch}. Go on with --resume, or start over with "
            "--fresh"
        )
        if manifest.finished:
            stands = (
                f"of pipeline {manifest.name!r} that is finished. Read what has come since with --resume, or run it again "
                "from the start with --fresh"
            )
        raise RecoveryError(
            f"state folder {folder.root} holds a run {stands} (which deletes this folder's epochs and what the sinks have "
            "written), or set 'state' and the sinks' 'path' to new folders"
        )
    if manifest.name != spec.name:
        raise RecoveryError(
            f"state folder {folder.root} belongs to pipeline {manifest.name!r}, this is {spec.name!r}; set 'state' to "
            "another folder"
        )
    was, now = manifest.options, options_of(spec)
    read_on = {f"{source.name}.{key}": change for source in spec.sources for key, change in _READ_ON.items()}
    changed = [
        f"{key}: {was.get(key, 'absent')!r} then, {now.get(key, 'absent')!r} now"
        for key in sorted({*was, *now})
        if was.get(key, _ABSENT) != now.get(key, _ABSENT) and (was.get(key), now.get(key)) != read_on.get(key)
    ]
    if changed:
        raise RecoveryError(
            f"cannot resume from {folder.root}: options have changed since epoch {manifest.epoch}: {'; '.join(changed)}. Put "
            "them back, or start over in another state folder"
        )
    for node in spec.operators:
        problem = reshard_problem(node, manifest)
        if problem is not None:
            raise RecoveryError(f"operators.{node.name}.shards: {problem}")
    return manifest


def reshard_problem(node: OperatorSpec, manifest: Manifest) -> str | None:
    """Return why an operator cannot go on from ``manifest`` with its number of shards, None where it can."""
    shards = len(manifest.operators.get(node.name, ()))
    if shards in (0, node.shards):
        return None
    operator: type[Operator] = registry.load("operator", node.type)
    if operator.keyed(node.options):
        return None
    return (
        f"is {node.shards}, but epoch {manifest.epoch} was written with {shards}, and {node.type!r} with these options keeps "
        f"one memory for all streams of a shard, which cannot be cut or joined; resume with 'shards: {shards}', or start in a "
        "new state folder"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What there is to read of a source: all of its splits, and how far each that an earlier run knew has been read."""

    splits: Sequence[str]
    known: Mapping[str, SplitState]
    appeared_at: Position | None = None
    """Where the other splits begin."""
    replayable: bool = True

    @property
    def unread(self) -> bool:
        """Whether some of it has not been read to its end."""
        return any(name not in self.known or not self.known[name].done for name in self.splits)


def list_splits(source: Source, recorded: Mapping[str, SplitState] | None) -> Listing:
    """List the splits of a source. ``recorded`` is how far they were read in the last epoch, None for a first run.

    A split that has ended is opened again where something has come since (``Source.grown``). Raise ``SourceError`` where the
    source cannot be listed, and for a first run where there is nothing to read.
    """
    try:
        splits = require_splits(source, source.splits())
    except NothingToRead:
        if recorded is None:
            raise
        splits = []  # what has been read may be gone
    known = dict(recorded or {})
    for name in splits:
        state = known.get(name)
        if state is not None and state.done and state.position is not None:
            position = source.grown(name, state.position)
            if position is not None:
                known[name] = replace(state, position=position, done=False)
    appeared_at = source.appeared_at if recorded is not None else None
    return Listing(splits=splits, known=known, appeared_at=appeared_at, replayable=source.replayable)


def something_to_read(spec: PipelineSpec, manifest: Manifest) -> bool:
    """Return whether a finished run has something to go on with: more than it has read, or a source that now has no end."""
    for node in spec.sources:
        source = node.build()
        if not source.bounded or (source.replayable and list_splits(source, manifest.splits(spec.state, node.name)).unread):
            return True
    return False


def assign_splits(node: str, listing: Listing, parallelism: int) -> list[dict[str, SplitState]]:
    """Share the splits of a source out among its tasks, with the positions to go on from.

    Raise ``SourceError`` for a split that was being read and is no longer there, unless the source cannot be replayed: a
    camera that was taken away has left nothing to read.
    """
    listed, recorded = listing.splits, listing.known
    present = set(listed)
    gone = [name for name, state in recorded.items() if not state.done and name not in present]
    if gone and listing.replayable:
        raise SourceError(
            f"source {node!r}: {gone[0]!r} was being read when the last epoch was committed and is no longer there; put it "
            "back, or start over in another state folder"
        )
    names = [*listed, *(name for name in recorded if name not in present and name not in gone)]
    new = SplitState(listing.appeared_at)
    tasks: list[dict[str, SplitState]] = [{} for _ in range(parallelism)]
    for i, name in enumerate(names):
        tasks[i % parallelism][name] = recorded.get(name, new)
    return tasks


def restore_operator(operator: Operator, states: Sequence[OperatorState], root: Path, *, shard: int, shards: int) -> None:
    """Give an operator shard the streams that belong to it, from the snapshots of however many shards there were.

    What is additive goes to shard 0 as a whole, if their number has changed.
    """
    from operators.state import State
    from pipelines.runtime.snapshots import read_chain

    if not states:
        return
    if len(states) == shards:
        operator.restore(read_chain(root, states[shard].chain))
        return
    parts = [read_chain(root, state.chain, lambda stream: shard_of(stream, shards) == shard) for state in states]
    whole = State.merge(parts)
    operator.restore(whole if shard == 0 else whole.without_additive())


def merge_open_streams(states: Sequence[OperatorState], *, shard: int, shards: int) -> dict[str, list[str]]:
    """Return input node → open streams of one shard."""
    merged: dict[str, list[str]] = {}
    for state in states:
        for node, streams in state.open_streams.items():
            merged.setdefault(node, []).extend(stream for stream in streams if shard_of(stream, shards) == shard)
    return merged


def staged_of(manifest: Manifest | None, node: str) -> list[Staged]:
    """Return what all shards of a sink had staged for the last epoch."""
    shards: Sequence[Sequence[Staged]] = manifest.sinks.get(node, ()) if manifest is not None else ()
    return [file for shard in shards for file in shard]


_ABSENT = object()
