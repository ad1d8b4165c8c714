"""A checked pipeline: what ``pipelines.file`` makes of a pipeline file and what the runners get.

Plain frozen dataclasses that can be pickled into another process; what a user sets is declared in ``pipelines.engine_keys``.
They know how to build their source, operator or sink, but nothing of YAML; paths are absolute, options are instances of the
type's own dataclass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from connectors.errors import ConfigError, nearest
from pipelines import registry
from pipelines.devices import device_problem, resolve_device
from pipelines.engine_keys import OperatorSettings, RootKeys, RunnerName, SinkSettings, SourceSettings
from pipelines.outputs import node_of

if TYPE_CHECKING:
    from connectors.base import Sink, Source
    from operators.base import Operator

__all__ = [
    "RUNNERS",
    "NodeSpec",
    "OperatorSpec",
    "PipelineSpec",
    "Secret",
    "SinkSpec",
    "SourceSpec",
    "span_us",
]

RUNNERS: tuple[RunnerName, ...] = get_args(RunnerName)


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

    def options_dict(self) -> dict[str, Any]:
        """Return the options as plain values for printing and for fingerprints; secrets as their references."""
        values = {f.name: _plain(getattr(self.options, f.name)) for f in dataclasses.fields(self.options)}
        return {**values, **{name: dict(reference) for name, reference in self.references.items()}}


@dataclass(frozen=True, kw_only=True)
class SourceSpec(SourceSettings, NodeSpec):
    """One entry of ``sources``."""

    @property
    def kept_on(self) -> str | None:
        """The device on which its frames stay (``Source.keeps_frames``), None where rows carry all that they have."""
        return cast("str | None", registry.load("source", self.type).keeps_frames(self.options))

    def build(self) -> Source:
        """Make the source. Does no I/O."""
        return cast("Source", registry.load("source", self.type)(self.options))


@dataclass(frozen=True, kw_only=True)
class OperatorSpec(OperatorSettings, NodeSpec):
    """One entry of ``operators``."""

    inputs: tuple[str, ...]
    """Addresses (``pipelines.outputs``) of the rows that it takes: ``NODE`` or ``NODE.OUTPUT``."""
    control: tuple[str, ...] = ()
    """Addresses of the rows that go to ``Operator.control``."""

    def __post_init__(self) -> None:
        if self.num_gpus is None:
            object.__setattr__(self, "num_gpus", 1.0 if self.device.startswith("cuda") else 0.0)

    @property
    def gpus(self) -> float:
        """Share of a GPU that one shard asks for."""
        return self.num_gpus or 0.0

    def build(self, device: str | None = None) -> Operator:
        """Make one shard of the operator on ``device`` (default: the spec's own, ``auto`` resolved for this process).

        Loads weights and allocates banks. Raise ``DeviceError`` where the device is not there.
        """
        from operators.base import Context

        where = resolve_device(device or self.device, self.name)
        context = Context(name=self.name, device=where, aligned=self.align_s is not None)
        kind = registry.implementation(registry.load("operator", self.type), self.type)
        return cast("Operator", kind(self.options, context))


@dataclass(frozen=True, kw_only=True)
class SinkSpec(SinkSettings, NodeSpec):
    """One entry of ``sinks``."""

    inputs: tuple[str, ...]

    def build(self) -> Sink:
        """Make one shard of the sink. Does no I/O."""
        return cast("Sink", registry.load("sink", self.type)(self.options))


@dataclass(frozen=True, kw_only=True)
class PipelineSpec(RootKeys):
    """A whole pipeline. Node names are unique over sources, operators and sinks."""

    sources: tuple[SourceSpec, ...]
    operators: tuple[OperatorSpec, ...]
    """In topological order: every operator comes after its inputs."""
    sinks: tuple[SinkSpec, ...]

    def node(self, name: str) -> SourceSpec | OperatorSpec | SinkSpec:
        """Return the node of that name; ``KeyError`` where there is none."""
        return self.nodes[name]

    @cached_property
    def nodes(self) -> dict[str, SourceSpec | OperatorSpec | SinkSpec]:
        """All nodes by name: sources, operators in topological order, sinks."""
        return {node.name: node for group in (self.sources, self.operators, self.sinks) for node in group}

    @property
    def folders(self) -> dict[str, Path]:
        """The folders that sinks write to, by the sinks' names."""
        return {sink.name: Path(path) for sink in self.sinks if (path := getattr(sink.options, "path", None))}

    def awaits(self, source: SourceSpec) -> bool:
        """Return whether a run goes on for a source that has no end: unless it only controls operators, and does not stay.

        A sink that writes down its rows makes no difference.
        """
        controls = any(source.name in node.control for node in self.operators)
        return source.stay or not controls or any(source.name in node.inputs for node in self.operators)

    def keeps_streams(self, operator: OperatorSpec) -> bool:
        """Return whether an operator is to remember streams that have ended, since control rows may still ask for them."""
        return any(isinstance(node := self.nodes[node_of(name)], SourceSpec) and node.stay for name in operator.control)

    def takes_kept(self, operator: OperatorSpec) -> bool:
        """Return whether frames that an operator reads stay on a device until it has processed them."""
        nodes = (self.nodes[node_of(name)] for name in operator.inputs)
        return any(isinstance(node, SourceSpec) and node.kept_on is not None for node in nodes)

    def with_runner(self, runner: str) -> PipelineSpec:
        """Return the same pipeline for another runner. Raise ``ConfigError`` for a runner or a device that it has not."""
        if runner not in RUNNERS:
            raise ConfigError(f"runner: {runner!r} is not a runner{nearest(runner, RUNNERS)}; allowed: {', '.join(RUNNERS)}")
        for node in self.operators:
            problem = device_problem(node.device, runner)
            if problem is not None:
                raise ConfigError(f"operators.{node.name}.device: {problem}")
        for source in self.sources:
            problem = device_problem(source.kept_on or "cpu", runner)
            if problem is not None:
                raise ConfigError(f"sources.{source.name}.device: {problem}")
        return dataclasses.replace(self, runner=runner)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved pipeline in the form of a pipeline file: all defaults filled in, secrets as references."""
        root = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(RootKeys)}
        return {
            **{name: value for name, value in root.items() if value is not None},
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
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "type"):  # options of a variant
        return {"type": value.type} | {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
