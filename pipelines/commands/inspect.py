"""What a state folder says: epochs, positions of the sources, banks of the operators, staged files, attempt.

Reads manifests and the headers of snapshots only; needs neither torch nor the pipeline file. Safe while a run is going on.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from connectors.errors import RecoveryError
from pipelines.commands.summary import size, tally_lines
from pipelines.runtime.manifest import Manifest, read_manifests
from pipelines.runtime.messages import Alignment, SnapshotFile
from pipelines.runtime.tally import MAX_NAMES, Tally

__all__ = ["inspect_state", "state_text"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def inspect_state(root: Path) -> dict[str, Any]:
    """Return what the newest manifest of ``root`` says, as JSON values. Raise ``RecoveryError`` where there is none."""
    if not root.is_dir():
        raise RecoveryError(f"{root} is no folder; give the 'state' of a pipeline file")
    manifests = read_manifests(root)
    if not manifests:
        holds = "no epoch was committed there yet" if (root / "epochs").is_dir() else "it is not a state folder"
        raise RecoveryError(f"{root} holds no readable manifest; {holds}")
    newest = manifests[0]
    return {
        "state": str(root),
        "pipeline": newest.name,
        "epoch": newest.epoch,
        "epochs_kept": [manifest.epoch for manifest in manifests],
        "committed_at": newest.committed_at,
        "attempt": newest.attempt,
        "finished": newest.finished,
        "running": _is_locked(root / "lock"),
        "sources": _sources(root, newest),
        "tallies": {node: tally.to_json() for node, tally in newest.tallies.items()},
        "operators": {
            node: [_shard(root, shard.chain) | _alignment(shard.alignment) for shard in shards]
            for node, shards in newest.operators.items()
        },
        "sinks": {
            node: {
                "rows": newest.rows.get(node, 0),
                "epoch_files": [file.final for shard in shards for file in shard],
                "epoch_rows": sum(file.rows for shard in shards for file in shard),
                "epoch_bytes": sum(file.bytes for shard in shards for file in shard),
            }
            for node, shards in newest.sinks.items()
        },
    }


def state_text(state: dict[str, Any], *, most: int = 20) -> str:
    """Write the result of :func:`inspect_state` for people; ``most`` positions and streams per node."""
    ended = "finished" if state["finished"] else "to be resumed"
    lines = [
        f"pipeline    {state['pipeline']}, {'running' if state['running'] else ended}",
        f"epoch       {state['epoch']}, committed {state['committed_at'] or 'at an unknown time'}; "
        f"kept: {', '.join(map(str, state['epochs_kept']))}",
        f"attempt     {state['attempt']}",
    ]
    for node, source in state["sources"].items():
        splits = source["splits"]
        lines.append(f"source      {node}: {source['rows']:,} rows, {source['done']} of {len(splits)} splits at their end")
        for name, split in list(splits.items())[:most]:
            where = "done" if split["done"] else "not started" if split["position"] is None else json.dumps(split["position"])
            lines.append(f"              {name}: {where}")
        lines += _more(len(splits), most)
        lines += _tally(state, node)
    for node, shards in state["operators"].items():
        for number, shard in enumerate(shards):
            lines.append(
                f"operator    {node}[{number}]: {len(shard['streams'])} streams, {size(shard['bytes'])} in "
                f"{_count(len(shard['files']), 'snapshot file')}"
            )
            lines += [f"              {tensor}: {size(count)}" for tensor, count in shard["tensors"].items()]
            if "handed_over_up_to" in shard:
                up_to = shard["handed_over_up_to"] or "nothing yet"
                lines.append(f"              handed over up to {up_to}; rows that wait: {size(shard['waiting_bytes'])}")
            lines += [f"              stream {stream}" for stream in shard["streams"][:most]]
            lines += _more(len(shard["streams"]), most)
        lines += _tally(state, node)
    for node, sink in state["sinks"].items():
        lines.append(
            f"sink        {node}: {sink['rows']:,} rows; in this epoch {sink['epoch_rows']:,} rows, "
            f"{size(sink['epoch_bytes'])} in {_count(len(sink['epoch_files']), 'file')}"
        )
        lines += _tally(state, node)
    return "\n".join(lines)


def _tally(state: dict[str, Any], node: str) -> list[str]:
    """Return what has become of the rows of a node, where something has."""
    lines = []
    for output, tally in Tally.from_json(state["tallies"].get(node, {})).by_output():
        told = tally_lines(tally, MAX_NAMES)
        lines += [f"output {output}: {tally.rows:,} rows" + (f": {told.pop(0)}" if tally.statuses else "")] if output else []
        lines += told
    return [f"              {line}" for line in lines]


def _sources(root: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        node: {
            "rows": manifest.rows.get(node, 0),
            "done": sum(split.done for split in splits.values()),
            "splits": {name: {"position": split.position, "done": split.done} for name, split in splits.items()},
        }
        for node, splits in ((node, manifest.splits(root, node)) for node in manifest.sources)
    }


def _shard(root: Path, chain: Sequence[SnapshotFile]) -> dict[str, Any]:
    """Sum up a snapshot chain from the headers of its files: streams at its end, bytes by tensor of the full snapshot."""
    streams: dict[str, None] = {}
    tensors: Counter[str] = Counter()
    for file in chain:
        path = root / file.path
        try:
            with safe_open(path, framework="numpy") as stored:
                structure = json.loads(stored.metadata()["streambank.state"])
                if not file.incremental:
                    tensors = Counter({_tensor_name(name): 0 for name in stored.keys()})  # noqa: SIM118 (not a mapping)
                    for name in stored.keys():  # noqa: SIM118
                        tensors[_tensor_name(name)] += _tensor_bytes(stored.get_slice(name))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RecoveryError(f"snapshot {path} of the newest manifest cannot be read: {error}") from error
        for stream in structure["closed"]:
            streams.pop(stream, None)
        streams |= dict.fromkeys(structure["streams"])
    return {
        "streams": list(streams),
        "bytes": sum(file.bytes for file in chain),
        "tensors": dict(tensors),
        "files": [file.path for file in chain],
    }


def _alignment(alignment: Alignment | None) -> dict[str, Any]:
    """Sum up how far an operator is that takes its inputs in the order of event time."""
    if alignment is None:
        return {}
    released = alignment.released_us
    up_to = _EPOCH + timedelta(microseconds=released) if released is not None else None
    return {
        "handed_over_up_to": up_to.isoformat() if up_to is not None else None,
        "waiting_bytes": alignment.rows.bytes if alignment.rows is not None else 0,
    }


def _tensor_name(key: str) -> str:
    """Return the state's own name of a tensor: ``rows.values_R.bank`` and ``dense.bank`` belong to ``bank``."""
    kind, _, rest = key.partition(".")
    return rest.partition(".")[2] if kind == "rows" else rest


_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def _tensor_bytes(part: Any) -> int:
    count = _ITEM_BYTES.get(part.get_dtype(), 1)
    for length in part.get_shape():
        count *= length
    return count


def _is_locked(path: Path) -> bool:
    """Return whether a run holds the lock of the state folder."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _more(count: int, most: int) -> list[str]:
    return [f"              and {count - most} more"] if count > most else []
