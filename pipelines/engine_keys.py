"""The keys of a pipeline file that the engine itself reads, declared like options: type, default, unit, bounds and meaning.

Every other key of a node is an option of its type. Written once here; the specs of ``pipelines.spec``, the checks, ``describe``
and the docs follow. A spec inherits the *settings* of its node; *keys* are these and what a file has besides: type and inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from connectors.options import REQUIRED, option
from pipelines.registry import Kind

__all__ = [
    "ENGINE_KEYS",
    "OperatorKeys",
    "OperatorSettings",
    "RootKeys",
    "RunnerName",
    "SinkKeys",
    "SinkSettings",
    "SourceKeys",
    "SourceSettings",
]

RunnerName = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class RootKeys:
    """Top-level keys besides the three sections of nodes."""

    name: str = option(REQUIRED, "Name of the pipeline: in state, logs and metrics.")
    state: Path = option(REQUIRED, "Folder of epochs and snapshots; on a cluster one that all machines share.")
    runner: RunnerName = option("local", "local: one process; ray: actors on this machine or a cluster.")
    epoch_s: float = option(
        10.0, "Time between commits: rows become visible, and a crash repeats, at most this much.", unit="s", gt=0
    )
    max_attempts: int = option(3, "How often a run starts, the first time included, before a crash ends it.", ge=1)
    resources_wait_s: float = option(
        300.0, "Ray: how long a run waits for room on the cluster, also after a node was lost, before it fails.", unit="s", ge=0
    )
    placement: Literal["pack", "spread"] = option(
        "pack",
        "Ray: pack puts actors onto as few nodes as possible, so that rows need not cross the network; spread, onto all.",
    )
    seed: int | None = option(None, "Default of every option `seed`.", ge=0)


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Settings of a source."""

    num_cpus: float = option(0.0, "Ray: cores that are reserved for one task; 0 reserves none.", ge=0)
    parallelism: int = option(1, "Tasks that share the splits (files) among them.", ge=1, le=1024)
    stay: bool = option(
        False,
        "For a source without an end that is read as `control` only: the run goes on after all other sources have ended, until "
        "it is stopped, and the operators it controls do not forget streams that have ended.",
    )


@dataclass(frozen=True, kw_only=True)
class _ShardSettings:
    shards: int = option(1, "Copies that run in parallel; a stream belongs to one of them by its key.", ge=1, le=128)


@dataclass(frozen=True, kw_only=True)
class OperatorSettings(_ShardSettings):
    """Settings of an operator."""

    num_cpus: float = option(1.0, "Ray: cores that are reserved for one shard; 0 reserves none.", ge=0)
    device: str = option("auto", "cpu, cuda, cuda:N, or auto: CUDA where it is, else the CPU.")
    num_gpus: float | None = option(
        None, "Ray: share of a GPU for one shard. Default: 1 where `device` asks for CUDA, else 0.", ge=0
    )
    max_batch: int = option(32, "Rows of one step at most.", unit="rows", ge=1)
    max_wait_ms: float = option(20.0, "A batch that is not full is processed this long after its oldest row.", unit="ms", ge=0)
    align_s: float | None = option(
        None,
        "Hand rows over in the order of event time, in spans of this length: the data rows of a span, then its control rows; "
        "0: exactly by time. Then replays repeat exactly. Default: rows as they arrive.",
        unit="s",
        ge=0,
    )
    align_wait_s: float | None = option(
        None,
        "With align_s: an input without rows for this long no longer holds the others back, and replays may differ. Default: "
        "they wait for it.",
        unit="s",
        gt=0,
    )
    align_control: bool = option(
        True,
        "With align_s: false hands control rows over as they arrive, whatever their event time; for questions about what has "
        "been seen so far.",
    )


@dataclass(frozen=True, kw_only=True)
class SinkSettings(_ShardSettings):
    """Settings of a sink."""

    num_cpus: float = option(0.0, "Ray: cores that are reserved for one shard; 0 reserves none.", ge=0)


@dataclass(frozen=True, kw_only=True)
class _TypeKeys:
    type: str = option(REQUIRED, "Registered name (`streambank list`) or module:Class of your own.")


@dataclass(frozen=True, kw_only=True)
class _InputKeys(_TypeKeys):
    input: str | None = option(None, "Node whose rows it takes, or NODE.OUTPUT where it names its outputs.")
    inputs: list[str] | None = option(None, "Nodes (or NODE.OUTPUT) whose rows it takes, in the place of `input`.")


@dataclass(frozen=True, kw_only=True)
class _ControlKeys(_InputKeys):
    control: str | list[str] | None = option(None, "Nodes that deliver control rows: questions, prompts, labels.")


@dataclass(frozen=True, kw_only=True)
class SourceKeys(SourceSettings, _TypeKeys):
    """Keys of a source."""


@dataclass(frozen=True, kw_only=True)
class OperatorKeys(OperatorSettings, _ControlKeys):
    """Keys of an operator."""


@dataclass(frozen=True, kw_only=True)
class SinkKeys(SinkSettings, _InputKeys):
    """Keys of a sink."""


ENGINE_KEYS: Mapping[Kind, type] = {"source": SourceKeys, "operator": OperatorKeys, "sink": SinkKeys}
"""Keys of a node that the engine reads, whatever its type; all others are options of the type."""
