"""What a run starts from: the checks before a resume, and the share of the last epoch that each task goes on with.

Works on manifests and specs; starts nothing. Both runners use it, so a run may change its runner, shards and parallelism when
it is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connectors.base import Position, Staged
from connectors.errors import RecoveryError, SourceError
from pipelines import registry
from pipelines.runtime.keys import shard_of
from pipelines.runtime.manifest import Manifest, OperatorState, StateFolder
from pipelines.runtime.messages import SplitState
from pipelines.spec import OperatorSpec, PipelineSpec

if TYPE_CHECKING:
    from operators.base import Operator

__all__ = [
    "assign_splits",
    "merge_open_streams",
    "options_of",
    "reshard_problem",
    "restore_operator",
    "staged_of",
    "starting_point",
]

_FREE_SOURCE_OPTIONS = frozenset({"pace", "catch_up", "bootstrap_servers", "security_protocol", "client_id", "discover_s"})
_FREE_PREFIXES = ("ssl_", "sasl_")
"""Say when rows come and on which way, not which."""


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
        stands = f"of pipeline {manifest.name!r} that stands at epoch {manifest.epoch}. Go on with --resume, or start over"
        if manifest.finished:
            stands = f"of pipeline {manifest.name!r} that is finished. To run it again"
        raise RecoveryError(
            f"state folder {folder.root} holds a run {stands}: delete it together with what the sinks have written, or set "
            "'state' and the sinks' 'path' to new folders"
        )
    if manifest.name != spec.name:
        raise RecoveryError(
            f"state folder {folder.root} belongs to pipeline {manifest.name!r}, this is {spec.name!r}; set 'state' to "
            "another folder"
        )
    was, now = manifest.options, options_of(spec)
    changed = [
        f"{key}: {was.get(key, 'absent')!r} then, {now.get(key, 'absent')!r} now"
        for key in sorted({*was, *now})
        if was.get(key, _ABSENT) != now.get(key, _ABSENT)
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


def assign_splits(
    node: str,
    listed: Sequence[str],
    manifest: Manifest | None,
    parallelism: int,
    appeared_at: Position | None = None,
    *,
    replayable: bool = True,
) -> list[dict[str, SplitState]]:
    """Share the splits of a source out among its tasks, with the positions to go on from.

    Splits that the manifest does not know begin at ``appeared_at`` (``Source.appeared_at``).

    Raise ``SourceError`` for a split that was being read and is no longer there, unless the source is not ``replayable``: a
    camera that was taken away has left nothing to read.
    """
    recorded = manifest.sources.get(node, {}) if manifest is not None else {}
    present = set(listed)
    gone = [name for name, state in recorded.items() if not state.done and name not in present]
    if gone and replayable:
        raise SourceError(
            f"source {node!r}: {gone[0]!r} was being read when the last epoch was committed and is no longer there; put it "
            "back, or start over in another state folder"
        )
    names = [*listed, *(name for name in recorded if name not in present and name not in gone)]
    new = SplitState(appeared_at if manifest is not None else None)
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
