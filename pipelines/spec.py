"""A checked pipeline: what ``pipelines.file`` makes of a pipeline file and what the runners get.

Plain frozen dataclasses that can be pickled into another process. They know how to build their source, operator or sink,
but nothing of YAML; paths are absolute, options are instances of the type's own dataclass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from connectors.errors import ConfigError, nearest
from pipelines import registry
from pipelines.devices import device_problem, resolve_device

if TYPE_CHECKING:
    from connectors.base import Sink, Source
    from operators.base import Operator

__all__ = [
    "RUNNERS",
    "NodeSpec",
    "OperatorSpec",
    "PipelineSpec",
    "Placement",
    "RunnerName",
    "Secret",
    "SinkSpec",
    "SourceSpec",
    "span_us",
]

RunnerName = Literal["local", "ray"]
RUNNERS: tuple[RunnerName, ...] = ("local", "ray")
Placement = Literal["pack", "spread"]


def span_us(align_s: float) -> int:
    """Return the length of a span of ``align_s`` in microseconds, the unit of event time; 0 s is the shortest there is."""
    return max(1, round(align_s * 1e6))


class Secret(str):
    """A text that does not show in ``repr``, and so not in the ``repr`` of the options that hold it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """What every node has."""

    name: str
    type: str
    """A registered name or ``module:Class``."""
    options: Any
    """Instance of the ``Options`` of the type."""
    references: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Secret option → where its value came from, ``{env: NAME}`` or ``{file: PATH}``; shown in place of the value."""
    num_cpus: float = 1.0
    """Ray only: cores that one task asks for."""

    def options_dict(self) -> dict[str, Any]:
        """Return the options as plain values for printing and for fingerprints; secrets as their references."""
        values = {f.name: _plain(getattr(self.options, f.name)) for f in dataclasses.fields(self.options)}
        return {**values, **{name: dict(reference) for name, reference in self.references.items()}}


@dataclass(frozen=True, kw_only=True)
class SourceSpec(NodeSpec):
    """One entry of ``sources``."""

    parallelism: int = 1
    """Tasks among which the splits are shared out."""
    stay: bool = False
    """Whether the run goes on for its control rows when all other sources have ended, and their streams stay open for it."""

    def build(self) -> Source:
        """Make the source. Does no I/O."""
        return cast("Source", registry.load("source", self.type)(self.options))


@dataclass(frozen=True, kw_only=True)
class OperatorSpec(NodeSpec):
    """One entry of ``operators``."""

    inputs: tuple[str, ...]
    control: tuple[str, ...] = ()
    """Nodes whose rows go to ``Operator.control``."""
    shards: int = 1
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA where it is, else the CPU."""
    num_gpus: float = 0.0
    """Ray only: share of a GPU for one shard; more than 0 only where ``device`` is not ``cpu``."""
    max_batch: int = 32
    """Rows of one call of ``process`` at most."""
    max_wait_ms: float = 20.0
    """A batch that is not full is processed this long after its oldest row arrived."""
    align_s: float | None = None
    """Spans of event time in which data rows, then control rows are handed over; None: as they arrive."""
    align_wait_s: float | None = None
    """How long an input without rows holds the others back; None: for ever."""
    align_control: bool = True
    """Whether control rows are aligned, too; else they are handed over as they arrive."""

    def build(self, device: str | None = None) -> Operator:
        """Make one shard of the operator on ``device`` (default: the spec's own, ``auto`` resolved for this process).

        Loads weights and allocates banks. Raise ``DeviceError`` where the device is not there.
        """
        from operators.base import Context

        where = resolve_device(device or self.device, self.name)
        context = Context(name=self.name, device=where, aligned=self.align_s is not None)
        return cast("Operator", registry.load("operator", self.type)(self.options, context))


@dataclass(frozen=True, kw_only=True)
class SinkSpec(NodeSpec):
    """One entry of ``sinks``."""

    inputs: tuple[str, ...]
    shards: int = 1

    def build(self) -> Sink:
        """Make one shard of the sink. Does no I/O."""
        return cast("Sink", registry.load("sink", self.type)(self.options))


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """A whole pipeline. Node names are unique over sources, operators and sinks."""

    name: str
    state: Path
    """Folder of epochs and snapshots."""
    sources: tuple[SourceSpec, ...]
    operators: tuple[OperatorSpec, ...]
    """In topological order: every operator comes after its inputs."""
    sinks: tuple[SinkSpec, ...]
    runner: RunnerName = "local"
    epoch_s: float = 10.0
    """Seconds between commits."""
    max_attempts: int = 3
    """How often a run is begun anew from its last epoch after an actor died, before it fails."""
    resources_wait_s: float = 300.0
    """Ray only: how long an attempt waits for room on the cluster."""
    placement: Placement = "pack"
    """Ray only: whether actors share as few nodes as possible or are spread over all."""
    seed: int | None = None
    """Default of every option called ``seed``."""

    def node(self, name: str) -> SourceSpec | OperatorSpec | SinkSpec:
        """Return the node of that name; ``KeyError`` where there is none."""
        return self.nodes[name]

    @cached_property
    def nodes(self) -> dict[str, SourceSpec | OperatorSpec | SinkSpec]:
        """All nodes by name: sources, operators in topological order, sinks."""
        return {node.name: node for group in (self.sources, self.operators, self.sinks) for node in group}

    def awaits(self, source: SourceSpec) -> bool:
        """Return whether a run goes on for a source that has no end: unless it only controls operators, and does not stay.

        A sink that writes down its rows makes no difference.
        """
        controls = any(source.name in node.control for node in self.operators)
        return source.stay or not controls or any(source.name in node.inputs for node in self.operators)

    def keeps_streams(self, operator: OperatorSpec) -> bool:
        """Return whether an operator is to remember streams that have ended, since control rows may still ask for them."""
        return any(isinstance(node := self.nodes[name], SourceSpec) and node.stay for name in operator.control)

    def with_runner(self, runner: str) -> PipelineSpec:
        """Return the same pipeline for another runner. Raise ``ConfigError`` for a runner or a device that it has not."""
        if runner not in RUNNERS:
            raise ConfigError(f"runner: {runner!r} is not a runner{nearest(runner, RUNNERS)}; allowed: {', '.join(RUNNERS)}")
        for node in self.operators:
            problem = device_problem(node.device, runner)
            if problem is not None:
                raise ConfigError(f"operators.{node.name}.device: {problem}")
        return dataclasses.replace(self, runner=runner)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved pipeline in the form of a pipeline file: all defaults filled in, secrets as references."""
        return {
            "name": self.name,
            "state": str(self.state),
            "runner": self.runner,
            "epoch_s": self.epoch_s,
            "max_attempts": self.max_attempts,
            "resources_wait_s": self.resources_wait_s,
            "placement": self.placement,
            **({} if self.seed is None else {"seed": self.seed}),
            "sources": {node.name: _node_dict(node) for node in self.sources},
            "operators": {node.name: _node_dict(node) for node in self.operators},
            "sinks": {node.name: _node_dict(node) for node in self.sinks},
        }


_NOT_ENGINE_KEYS = frozenset({"name", "type", "options", "references", "inputs", "control"})


def _node_dict(node: SourceSpec | OperatorSpec | SinkSpec) -> dict[str, Any]:
    values: dict[str, Any] = {"type": node.type}
    if not isinstance(node, SourceSpec):
        values |= {"input": node.inputs[0]} if len(node.inputs) == 1 else {"inputs": list(node.inputs)}
    if isinstance(node, OperatorSpec) and node.control:
        values["control"] = node.control[0] if len(node.control) == 1 else list(node.control)
    for f in dataclasses.fields(node):
        if f.name not in _NOT_ENGINE_KEYS:
            values[f.name] = _plain(getattr(node, f.name))
    return values | node.options_dict()


def _plain(value: Any) -> Any:
    """Turn an option's value into what YAML and JSON can write."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
