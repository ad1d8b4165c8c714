"""Looks at what a pipeline refers to, without running it: files, schemas between nodes, checkpoints, devices, folders.

Reads no data beyond headers and starts neither Ray nor a model. Collects everything that it finds.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import pyarrow as pa

from connectors import extras, records
from connectors.errors import DeviceError, StreambankError
from pipelines import registry
from pipelines.devices import resolve_device, resolve_source_device
from pipelines.outputs import address_of, examined, node_of
from pipelines.runtime.keys import shard_of
from pipelines.runtime.manifest import Manifest, read_manifests
from pipelines.runtime.recovery import list_splits, reshard_problem
from pipelines.runtime.source_task import MAX_OPEN_SPLITS
from pipelines.spec import NodeSpec, OperatorSpec, PipelineSpec, SinkSpec, SourceSpec

if TYPE_CHECKING:
    from operators.base import Operator

__all__ = ["Finding", "check_spec"]

LISTING_S = 5.0
"""How long a source may wait for a service that does not answer."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check."""

    level: Literal["ok", "warning", "error"]
    where: str
    """Key path in the pipeline file."""
    message: str


def check_spec(spec: PipelineSpec, *, fresh: bool = False) -> list[Finding]:
    """Check everything that ``spec`` refers to; return findings in the order of the file's sections.

    ``fresh``: for a run that deletes what earlier runs have left.
    """
    checker = _Checker(spec, fresh)
    checker.check()
    return checker.findings


@dataclass
class _Checker:
    spec: PipelineSpec
    fresh: bool = False
    findings: list[Finding] = field(default_factory=list)
    schemas: dict[str, pa.Schema | None] = field(default_factory=dict)
    """Address of an output → schema of its rows, None where it is not known before the start."""
    streams: dict[str, list[str]] = field(default_factory=dict)
    """Node → its streams, where they are known before the start."""
    at_once: dict[str, int] = field(default_factory=dict)
    """Node → how many of them may be open at the same time."""
    manifest: Manifest | None = None
    """Of the last committed epoch in the state folder."""

    def check(self) -> None:
        self._folder("state", self.spec.state)
        if not self.fresh:
            self._earlier_run()
        if self.spec.runner == "ray" and (absent := extras.missing(["ray"])):
            self._add("error", "runner", absent)
        for source in self.spec.sources:
            self._source(source)
        for operator in self.spec.operators:
            self._operator(operator)
        for sink in self.spec.sinks:
            self._sink(sink)

    def _earlier_run(self) -> None:
        if any((self.spec.state / "epochs").glob("[0-9]*.json")):
            self._add(
                "warning",
                "state",
                f"{self.spec.state} holds epochs of an earlier run: go on with --resume, start over with --fresh, or choose "
                "another",
            )
        manifests = self._try("state", lambda: read_manifests(self.spec.state))
        self.manifest = manifests[0] if manifests else None

    def _source(self, node: SourceSpec) -> None:
        where = f"sources.{node.name}"
        if not self._installed("source", node):
            self.schemas[node.name] = None
            return
        source = self._try(where, node.build)
        if source is None:
            self.schemas[node.name] = None
            return
        source.listing_s = LISTING_S
        if node.kept_on is not None:
            self._device(node.kept_on, node.name, f"{where}.device", resolve_source_device)
        recorded = self.manifest.splits(self.spec.state, node.name) if self.manifest is not None else None
        listing = self._try(where, lambda: list_splits(source, recorded))
        if listing is not None and not listing.splits and recorded:
            self._add("ok", where, f"{node.type}, nothing that has not been read")
            self.schemas[node.name] = None
            return
        splits = list(listing.splits) if listing is not None else None
        schema = self._try(where, lambda: source.schema) if splits is not None else None
        self.schemas[node.name] = schema
        if splits is None or schema is None:
            return
        streams = self._try(where, source.streams)
        if streams is not None:
            most = MAX_OPEN_SPLITS * node.parallelism if source.splits_end else len(streams)
            self.streams[node.name], self.at_once[node.name] = streams, min(most, len(streams))
        count = f"{len(splits)} split{'s' if len(splits) != 1 else ''}"
        self._add("ok", where, f"{node.type}, {count} ({_few(splits)}), rows of {_rows(schema)}")
        if node.stay and source.bounded:
            self._add(
                "error", f"{where}.stay", "does nothing for a source that ends; remove it, or choose a source that does not"
            )
        if node.parallelism > len(splits):
            self._add(
                "warning", f"{where}.parallelism", f"is {node.parallelism}, but there is only {count}; the other tasks idle"
            )

    def _operator(self, node: OperatorSpec) -> None:
        where = f"operators.{node.name}"
        installed = self._installed("operator", node)
        kind: type[Operator] = registry.load("operator", node.type)
        for up in node.inputs:
            self._fits(where, "input", up, kind.takes(node.options))
        for up in node.control:
            self._fits(where, "control", up, kind.control_schema)
        problem = reshard_problem(node, self.manifest) if self.manifest is not None else None
        if problem is not None:
            self._add("error", f"{where}.shards", problem)
        self._room(node, kind, where)
        before = sum(finding.level == "error" for finding in self.findings)
        given = getattr(kind, "output_schema", None)
        if installed:
            given = self._try(where, lambda: kind.examine(node.options, node.name))
        outputs = examined(kind, given)
        self.schemas |= {address_of(node.name, name): schema for name, schema in outputs.items()}
        for option, reason in kind.cautions(node.options, node.align_s):
            self._add("warning", f"{where}.{option}", reason)
        device = self._device(node.device, node.name, f"{where}.device")
        sound = sum(finding.level == "error" for finding in self.findings) == before
        if installed and sound and device is not None:
            shards = f", {node.shards} shards" if node.shards > 1 else ""
            self._add("ok", where, f"{node.type} on {device}{shards}{self._gives(node, outputs)}")

    def _gives(self, node: OperatorSpec, outputs: Mapping[str, pa.Schema | None]) -> str:
        """Name the schemas of an operator's outputs and, where it has several, those that nobody reads."""
        if set(outputs) == {""}:
            schema = outputs[""]
            return f", gives {_rows(schema)}" if schema is not None else ""
        readers: list[OperatorSpec | SinkSpec] = [*self.spec.operators, *self.spec.sinks]
        read = {up for reader in readers for up in (*reader.inputs, *getattr(reader, "control", ()))}
        named = [
            address_of(node.name, name) + (f" ({_rows(schema)})" if schema is not None else "")
            for name, schema in outputs.items()
        ]
        unread = [up for name in outputs if (up := address_of(node.name, name)) not in read]
        return f", gives {', '.join(named)}" + (f"; nobody reads {', '.join(unread)}" if unread else "")

    def _room(self, node: OperatorSpec, kind: type[Operator], where: str) -> None:
        """Compare the streams that come, where they are known, with the slots that there are for them."""
        nodes = list(dict.fromkeys(map(node_of, node.inputs)))
        if not all(up in self.streams for up in nodes):
            return
        streams = self.streams[node.name] = list(dict.fromkeys(name for up in nodes for name in self.streams[up]))
        at_once = sum(self.at_once[up] for up in nodes)
        at_once = self.at_once[node.name] = len(streams) if self.spec.keeps_streams(node) else min(len(streams), at_once)
        slots = getattr(node.options, "max_streams", None)
        if not kind.keyed(node.options):
            del self.streams[node.name]  # its rows need not be of the streams that it takes
            return
        if not isinstance(slots, int) or not streams:
            return
        fullest = max(Counter(shard_of(name, node.shards) for name in streams).values())
        needed = math.ceil(fullest * at_once / len(streams))
        if needed <= slots:
            return
        refuses = getattr(node.options, "on_streams_full", None) == "reject"
        what = "those beyond are refused (status rejected_full)" if refuses else "the others lose their memory (status reset)"
        of_shard = f" in the fullest of {node.shards} shards" if node.shards > 1 else ""
        self._add(
            "warning",
            f"{where}.max_streams",
            f"is {slots}, but {needed} streams come at the same time{of_shard}: {what}; set it to {needed} or more",
        )

    def _installed(self, kind: registry.Kind, node: NodeSpec) -> bool:
        """Note where a package of an extra is missing; return whether to look further."""
        absent, where = registry.lacks(kind, node.type), f"{kind}s.{node.name}.type"
        if absent is None and isinstance(node, SourceSpec):
            absent = extras.missing(registry.load("source", node.type).also_needs(node.options))
            where = f"sources.{node.name}"
        if absent is None:
            return True
        elsewhere = self.spec.runner == "ray" and bool(os.environ.get("RAY_ADDRESS"))
        if elsewhere:
            self._add("warning", where, f"on this machine {absent}; the cluster's nodes must have it")
        else:
            self._add("error", where, f"{node.type!r} cannot run here: {absent}")
        return elsewhere

    def _device(self, device: str, name: str, where: str, resolve: Callable[[str, str], object] = resolve_device) -> str | None:
        if device in ("auto", "cpu"):
            return device
        try:
            return str(resolve(device, name))
        except DeviceError as error:
            if self.spec.runner == "local":
                self._add("error", where, str(error).removeprefix(f"{name}: "))
                return None
            self._add(
                "warning", where, "this machine has no such GPU; the Ray cluster must have one, else the run ends at once"
            )
            return device

    def _sink(self, node: SinkSpec) -> None:
        where = f"sinks.{node.name}"
        if not self._installed("sink", node):
            return
        before = len(self.findings)
        folder = getattr(node.options, "path", None)
        if isinstance(folder, Path):
            self._folder(f"{where}.path", folder)
        sink = self._try(where, node.build)
        known = {up: schema for up in node.inputs if (schema := self.schemas.get(up)) is not None}
        if sink is not None and len(known) == len(node.inputs):
            self._try(where, lambda: sink.examine(known))
        if not any(finding.level == "error" for finding in self.findings[before:]):
            self._add("ok", where, f"{node.type}" + (f" into {folder}" if folder is not None else ""))

    def _fits(self, where: str, key: str, up: str, wanted: pa.Schema | None) -> None:
        """Check the rows of output ``up`` against what an operator takes, where both are known."""
        given = self.schemas.get(up)
        if given is None or wanted is None:
            return
        # pa.nulls, not pa.array, which would import pandas: half a second.
        empty = pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in given], schema=given)
        self._try(f"{where}.{key}", lambda: records.require(empty, wanted, f"rows of {up!r} do not fit"))

    def _folder(self, where: str, folder: Path) -> None:
        """Check that a folder can be written, or made."""
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            self._add("error", where, f"{there} is a file, so the folder {folder} cannot be made; choose another path")
        elif not os.access(there, os.W_OK | os.X_OK):
            self._add("error", where, f"no permission to write in {there}; choose a folder that this user may write")

    def _try(self, where: str, step: Callable[[], _T]) -> _T | None:
        """Return the result of ``step``, or None after noting why there is none."""
        try:
            return step()
        except StreambankError as error:
            self._add("error", where, str(error))
            return None

    def _add(self, level: Literal["ok", "warning", "error"], where: str, message: str) -> None:
        self.findings.append(Finding(level, where, message))


def _rows(schema: pa.Schema) -> str:
    """Name a schema; one without a name by its columns."""
    name = records.schema_name(schema)
    return f"[{_few(schema.names, 12)}]" if name == "unnamed" else name


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
