"""Reads a pipeline file (docs/pipeline_file.md) into a :class:`~pipelines.spec.PipelineSpec`, or says everything wrong with it.

Checks what the file itself can tell: keys, types, bounds, names, wiring. Files, devices and checkpoints that it refers to
are the business of ``pipelines.check``. Every message carries file, line and column, key path, value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from connectors.errors import ConfigError, nearest
from pipelines import registry
from pipelines.devices import device_problem
from pipelines.document import Document, KeyPath, Problem, parse_scalar_or_flow, raise_problems
from pipelines.engine_keys import ENGINE_KEYS, RootKeys
from pipelines.graph import topological_order
from pipelines.kept_frames import kept_frame_problems
from pipelines.options import former_names, option_infos, parse_options, parse_values, show_value, unknown_keys
from pipelines.outputs import NAME, address_of, address_problem, node_of, output_names
from pipelines.spec import NodeSpec, OperatorSpec, PipelineSpec, Secret, SinkSpec, SourceSpec, span_us

__all__ = ["load_spec", "spec_from_dict"]

_RAY_PACKAGES = "/runtime_resources/working_dir_files/"
"""Part of the path of what ``ray job submit --working-dir`` uploads, where the job then runs."""

_MOST_SECRET_BYTES = 64 << 10

_SECTIONS: Mapping[str, registry.Kind] = {"sources": "source", "operators": "operator", "sinks": "sink"}
_SPECS: Mapping[registry.Kind, type[NodeSpec]] = {"source": SourceSpec, "operator": OperatorSpec, "sink": SinkSpec}
_EXAMPLES = {
    "sources": "clips: {type: video, path: 'clips/*.mp4'}",
    "operators": "detect: {type: mamba, input: clips}",
    "sinks": "rows: {type: parquet, input: detect, path: out}",
}


def load_spec(
    path: Path | str,
    *,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    runner: str | None = None,
) -> PipelineSpec:
    """Read and check a pipeline file.

    ``path`` may also be the name of a ready pipeline, whose relative paths start from the current folder. ``sets`` are
    ``key.path=value`` texts as for ``--set``, ``overrides`` the same with Python values; relative paths in both start from the
    current folder, all others from the file's. A key may begin with a node's name in the place of ``section.name``. ``runner``
    wins over the file. Raise ``ConfigError`` that lists every problem.
    """
    found = _find(path)
    document = Document.read(found)
    if found.resolve().parent == registry.CONFIGS:  # also where it is given as a file
        _use_working_folder(document, found)
    for text in sets:
        key, value = _parse_set(text)
        where = f"--set {text}"
        document.set(_full_key(document, key, where), value, where, Path.cwd())
    _override(document, overrides)
    if runner is not None:
        document.set("runner", runner, f"--runner {runner}", Path.cwd())
    return _Checker(document).spec()


def spec_from_dict(
    values: Mapping[str, Any], *, base: Path | str | None = None, overrides: Mapping[str, Any] | None = None
) -> PipelineSpec:
    """Check a pipeline given as a dict of the same form as a file. ``base``: folder for relative paths (default: current)."""
    document = Document.of(values, Path(base) if base is not None else Path.cwd(), "pipeline")
    _override(document, overrides)
    return _Checker(document).spec()


def _use_working_folder(document: Document, file: Path) -> None:
    """Let the paths of a ready pipeline start where the user is, not inside the installation.

    ``../../`` of such a file is the current folder then. Weights that come with the package stay where they are.
    """
    document.base = Path.cwd() / file.parent.parent.name / file.parent.name
    weights = registry.CONFIGS.parents[1] / "models"
    operators = document.values.get("operators")
    for name, node in operators.items() if isinstance(operators, dict) else ():
        checkpoint = node.get("checkpoint") if isinstance(node, dict) else None
        if isinstance(checkpoint, str) and (file.parent / checkpoint).resolve().is_relative_to(weights):
            document.bases["operators", name, "checkpoint"] = file.parent


def _override(document: Document, overrides: Mapping[str, Any] | None) -> None:
    for key, value in (overrides or {}).items():
        where = f"override {key}"
        document.set(_full_key(document, key, where), value, where, Path.cwd())


def _full_key(document: Document, key: str, where: str) -> str:
    """Put the section before a key that begins with a node's name: ``detect.seed`` is ``operators.detect.seed``.

    Raise ``ConfigError`` where a key goes into a node that is not there: that is a slip far more often than a new node.
    """
    parts = key.split(".")
    nodes: dict[str, str] = {}
    for section in _SECTIONS:
        values = document.values.get(section)
        nodes |= dict.fromkeys(values if isinstance(values, dict) else (), section)
    if parts[0] in _SECTIONS:
        wrong = parts[1] if len(parts) > 2 and nodes.get(parts[1]) != parts[0] else None
        nodes = {name: section for name, section in nodes.items() if section == parts[0]}
    else:
        wrong = parts[0] if len(parts) > 1 and parts[0] not in nodes and parts[0] not in document.values else None
    if wrong:
        raise ConfigError(f"{where}: there is no node {wrong!r}{nearest(wrong, nodes)}; allowed: {', '.join(nodes)}")
    return f"{nodes[parts[0]]}.{key}" if len(parts) > 1 and parts[0] in nodes else key


def _parse_set(text: str) -> tuple[str, Any]:
    """Split ``key.path=value`` and parse the value as YAML. Raise ``ConfigError`` that names ``--set``."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: write key.path=value, for example --set operators.detect.max_batch=8")
    return key.strip(), parse_scalar_or_flow(value, f"--set {text}")


def _find(path: Path | str) -> Path:
    found = Path(path)
    if found.is_file():
        return found
    ready = registry.ready_pipelines()
    if str(path) in ready:
        return ready[str(path)]
    if found.is_dir():
        raise ConfigError(f"{path} is a folder; give a pipeline file, such as {path}/pipeline.yaml")
    folder = found.parent
    near = nearest(found.name, [entry.name for entry in folder.iterdir()]) if folder.is_dir() else f"; {folder} is no folder"
    raise ConfigError(f"no such pipeline file: {path}{near}; ready pipelines: {', '.join(ready)}")


class _Checker:
    """Goes through a document once, collecting problems."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._values = document.values
        self._sections: dict[str, str] = {}  # node name → section
        self._nodes: dict[str, NodeSpec] = {}  # those without problems of their own
        self._outputs: dict[str, tuple[str, ...]] = {}  # node → names of its outputs, where its type tells

    def spec(self) -> PipelineSpec:
        root = self._root()
        for section, kind in _SECTIONS.items():
            self._section(section, kind)
        self._wiring()
        self._alignment()
        for path, problem in kept_frame_problems(self._nodes.values(), self._values.get("runner") or "local"):
            self._document.report(path, problem)
        self._sink_folders()
        self._ray_folders(root)
        raise_problems(self._document)
        assert root is not None
        reads = {name: _reads(self._values["operators"][name]) for name in self._of_section("operators")}
        return PipelineSpec(
            **_given(root),
            sources=tuple(node for node in self._nodes.values() if isinstance(node, SourceSpec)),
            operators=tuple(cast("OperatorSpec", self._nodes[name]) for name in topological_order(reads)[0]),
            sinks=tuple(node for node in self._nodes.values() if isinstance(node, SinkSpec)),
        )

    # Keys, types and bounds

    def _root(self) -> RootKeys | None:
        known = {info.name for info in option_infos(RootKeys)}
        self._document.problems += unknown_keys(self._values, known | set(_SECTIONS), "key")
        root: RootKeys | None = self._parse(RootKeys, self._values, ())
        if isinstance(self._values.get("name"), str):
            self._check_name(self._values["name"], ("name",))
        return root

    def _section(self, section: str, kind: registry.Kind) -> None:
        nodes = self._values.get(section)
        if not nodes:
            if section != "operators":
                what = "nothing to read" if section == "sources" else "nowhere for the results to go"
                self._document.report((section,), f"is missing, so there is {what}; add for example {_EXAMPLES[section]}")
            return
        if not isinstance(nodes, dict):
            self._document.report(
                (section,), f"must be a mapping of node names, such as {_EXAMPLES[section]}; got {show_value(nodes)}"
            )
            return
        for name, values in nodes.items():
            path: KeyPath = (section, name)
            self._check_name(name, path)
            if name in self._sections:
                taken = self._sections[name]
                self._document.report(
                    path, f"the name {name!r} is taken in {taken!r}; node names are unique, rename one of them"
                )
                continue
            self._sections[name] = section
            if not isinstance(values, dict):
                self._document.report(path, f"must be a mapping, such as {_EXAMPLES[section]}; got {show_value(values)}")
                continue
            node = self._node(name, kind, values, path)
            if node is not None:
                self._nodes[name] = node

    def _check_name(self, name: str, path: KeyPath) -> None:
        if not NAME.fullmatch(name):
            allowed = "letters, digits, '_' and '-', at most 64, not beginning with a digit or '-'"
            self._document.report(path, f"{name!r} is not a usable name; allowed: {allowed}")

    def _node(self, name: str, kind: registry.Kind, values: dict[str, Any], path: KeyPath) -> NodeSpec | None:
        engine_names = {info.name for info in option_infos(ENGINE_KEYS[kind])}
        if (*path, "type") in self._document.nulls:
            values["type"] = "null"  # the operator of that name; YAML takes the word for no value
        keys = self._parse(ENGINE_KEYS[kind], values, path)
        if kind != "source":
            self._check_inputs(values, path)
        if not isinstance(values.get("type"), str):
            return None
        try:
            loaded = registry.load(kind, values["type"])
        except ConfigError as error:
            self._document.report((*path, "type"), str(error))
            return None
        if kind == "operator":
            self._check_operator(values, loaded, path)
        if kind != "sink":
            self._outputs[name] = output_names(loaded) if kind == "operator" else ("",)
        given = {key: value for key, value in values.items() if key not in engine_names}
        options, references = self._options(loaded, given, engine_names, path)
        if keys is None or options is None:
            return None
        return _node_spec(kind, name, keys, options, references)

    def _options(
        self, loaded: type[Any], given: dict[str, Any], engine_names: set[str], path: KeyPath
    ) -> tuple[Any, dict[str, Any]]:
        """Return the options of a node, None where they are wrong, and the references of its secrets."""
        infos = {info.name: info for info in option_infos(loaded.Options)}
        clash = sorted(engine_names & infos.keys())
        if clash:
            self._document.report(
                (*path, "type"), f"{loaded.__name__}.Options declares {', '.join(clash)}, a key of the engine; rename it there"
            )
        self._report(
            unknown_keys(given, engine_names | infos.keys(), "option", hint=infos, former=former_names(loaded.Options)), path
        )
        seed = self._values.get("seed")
        if "seed" in infos and seed is not None:
            given.setdefault("seed", seed)
        secrets = {key: given.pop(key) for key in list(given) if key in infos and infos[key].secret and given[key] is not None}
        resolved = {key: self._secret(value, (*path, key)) for key, value in secrets.items()}
        if None in resolved.values():
            # The options cannot be built, but what is wrong with the others is still to be said.
            _, problems = parse_values(loaded.Options, self._with_paths(loaded.Options, given, path))
            self._report(problems, path)
            return None, secrets
        options = self._parse(loaded.Options, given | resolved, path)
        if options is not None and resolved:
            options = dataclasses.replace(options, **{key: Secret(value) for key, value in resolved.items()})
        return options, secrets

    def _parse(self, cls: type, values: Mapping[str, Any], path: KeyPath) -> Any:
        """Return an instance of ``cls`` from the keys of ``values`` that it has, or None after noting the problems."""
        parsed, problems = parse_options(cls, self._with_paths(cls, values, path))
        self._report(problems, path)
        return parsed

    def _with_paths(self, cls: type, values: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        """Return the ``values`` that are options of ``cls``, their paths absolute."""
        given = {}
        for info in option_infos(cls):
            if info.name in values:
                value = values[info.name]
                base = self._document.base_of((*path, info.name))
                given[info.name] = _absolute(value, base) if info.path else value
        return given

    def _report(self, problems: Iterable[Problem], path: KeyPath) -> None:
        for problem in problems:
            self._document.report((*path, *problem.path), problem.message)

    def _secret(self, value: Any, path: KeyPath) -> str | None:
        """Return what a reference refers to, None after noting why that cannot be. Never shows a value."""
        if not (isinstance(value, dict) and len(value) == 1 and isinstance(value.get("env", value.get("file")), str)):
            self._document.report(path, "is a secret: write {env: NAME} or {file: PATH}, never the value itself")
            return None
        if "env" in value:
            secret = os.environ.get(value["env"])
            if not secret:
                self._document.report(path, f"the environment variable {value['env']!r} is not set; set it before the start")
            return secret or None
        file = Path(_absolute(value["file"], self._document.base_of(path)))
        try:
            with open(file, "rb", opener=_without_waiting) as handle:
                content = handle.read(_MOST_SECRET_BYTES + 1)
            if len(content) > _MOST_SECRET_BYTES:
                self._document.report(
                    path, f"the file {str(file)!r} cannot be read: a secret has {_MOST_SECRET_BYTES} bytes at most"
                )
                return None
            secret = content.decode().rstrip("\r\n")
            if not secret:
                self._document.report(path, f"the file {str(file)!r} is empty; it must hold the secret")
            return secret or None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self._document.report(path, f"the file {str(file)!r} cannot be read: {reason}")
            return None

    # Checks across keys and nodes

    def _check_inputs(self, values: dict[str, Any], path: KeyPath) -> None:
        one, many = values.get("input"), values.get("inputs")
        if one is not None and many is not None:
            self._document.report((*path, "inputs"), "give either 'input' (one node) or 'inputs' (a list), not both")
        elif one is None and not many:
            self._document.report(path, "has no input; add 'input: NODE' or 'inputs: [NODE, ...]'")

    def _check_operator(self, values: dict[str, Any], loaded: type[Any], path: KeyPath) -> None:
        device, num_gpus = values.get("device", "auto"), values.get("num_gpus")
        problem = device_problem(device, str(self._values.get("runner", "local"))) if isinstance(device, str) else None
        if problem is not None:
            self._document.report((*path, "device"), problem)
        if isinstance(num_gpus, int | float) and not isinstance(num_gpus, bool):
            if num_gpus > 0 and device == "cpu":
                self._document.report(
                    (*path, "num_gpus"), f"is {num_gpus:g}, but 'device' is cpu; remove num_gpus or set 'device: cuda'"
                )
            if num_gpus > 1 and num_gpus % 1:
                self._document.report((*path, "num_gpus"), f"must be a whole number where it is above 1, got {num_gpus:g}")
        if values.get("align_wait_s") is not None and values.get("align_s") is None:
            self._document.report((*path, "align_wait_s"), "does nothing without align_s; give align_s too, or remove it")
        if values.get("align_control") is False and (values.get("align_s") is None or values.get("control") is None):
            self._document.report((*path, "align_control"), "does nothing without align_s and control; give both, or remove it")
        if values.get("control") is not None and loaded.control_schema is None:
            self._document.report(
                (*path, "control"), f"operators of type {values['type']!r} take no control rows; remove this key"
            )

    def _wiring(self) -> None:
        senders = [name for name, section in self._sections.items() if section != "sinks"]
        read: set[str] = set()
        data: set[str] = set()
        control: set[str] = set()
        for name, section in self._sections.items():
            values = self._values[section][name]
            if section == "sources" or not isinstance(values, dict):
                continue
            for key in ("input", "inputs", "control"):
                names = _names(values.get(key))
                for number, wanted in enumerate(names):
                    path = (section, name, key) if isinstance(values[key], str) else (section, name, key, number)
                    self._check_reference(name, wanted, senders, path)
                    if wanted in names[:number]:
                        what = "output" if "." in wanted else "node"
                        self._document.report(path, f"the {what} {wanted!r} stands twice; remove one")
                    read.add(node_of(wanted))
                    if section == "operators":
                        (control if key == "control" else data).add(node_of(wanted))
        if len(senders) < len(self._sections):  # without a sink nothing can be read, and that is reported already
            for name in senders:
                if name not in read:
                    message = "nothing reads its rows; name it as the input of an operator or a sink, or remove it"
                    self._document.report((self._sections[name], name), message)
        for name, node in self._nodes.items():
            if isinstance(node, SourceSpec) and node.stay and (name in data or name not in control):
                self._document.report(
                    ("sources", name, "stay"), "does nothing for a source that operators do not read as control only; remove it"
                )
        operators = {name: _reads(self._values["operators"][name]) for name in self._of_section("operators")}
        _, cycle = topological_order({name: [up for up in ups if up != name] for name, ups in operators.items()})
        if cycle:
            self._document.report(("operators", cycle[0]), f"the nodes form a cycle: {' → '.join(cycle)}; cut it at one place")

    def _check_reference(self, name: str, wanted: str, senders: list[str], path: KeyPath) -> None:
        node = node_of(wanted)
        if node == name:
            self._document.report(path, f"the node {name!r} cannot read its own rows")
        elif self._sections.get(node) == "sinks":
            allowed = ", ".join(self._addresses(senders))
            self._document.report(path, f"{node!r} is a sink, and sinks have no rows to read; allowed: {allowed}")
        elif node not in senders:
            others = self._addresses(sender for sender in senders if sender != name)
            self._document.report(path, f"there is no node {node!r}{nearest(wanted, others)}; allowed: {', '.join(others)}")
        elif problem := address_problem(wanted, self._outputs.get(node)):
            self._document.report(path, problem)

    def _addresses(self, senders: Iterable[str]) -> list[str]:
        """Return all outputs of nodes."""
        return [address_of(sender, name) for sender in senders for name in self._outputs.get(sender, ("",))]

    def _alignment(self) -> None:
        """An operator cannot align more finely than its inputs come, nor what comes out of several inputs as they arrive."""
        reads = {name: _reads(self._values["operators"][name]) for name in self._of_section("operators")}
        operators = [node for node in self._nodes.values() if isinstance(node, OperatorSpec)]
        lengths = {node.name: node.align_s for node in operators if node.align_s is not None}
        for node in operators:
            asked = [up for up in map(node_of, node.control) if up in self._nodes and self._nodes[up].type == "requests"]
            if node.align_s is not None and node.align_control and asked:
                self._document.report(
                    ("operators", node.name, "control"),
                    f"{asked[0]!r} delivers what people ask now, and align_s would wait for it; add align_control: false",
                )
        for name, length in lengths.items():
            before: set[str] = set()
            todo = list(reads[name])
            while todo:
                up = todo.pop()
                if up not in before:
                    before.add(up)
                    todo += reads.get(up, ())
            for up in sorted(before & reads.keys() - {name}):
                if up not in lengths:
                    if len(reads[up]) > 1:
                        message = f"{name!r} aligns its rows, and it has several inputs; give it an align_s too"
                        self._document.report(("operators", up), message)
                elif span_us(length) % span_us(lengths[up]):
                    wanted = f"rows come from {up!r} in spans of {lengths[up]:g} s; give a whole multiple of that"
                    self._document.report(("operators", name, "align_s"), f"is {length:g}, but {wanted}")

    def _sink_folders(self) -> None:
        """Two sinks in one folder would delete each other's staged files."""
        taken: dict[str, str] = {}
        for node in self._nodes.values():
            folder = getattr(node.options, "path", None)
            if isinstance(node, SinkSpec) and isinstance(folder, str | Path):
                other = taken.setdefault(str(folder), node.name)
                if other != node.name:
                    self._document.report(
                        ("sinks", node.name, "path"),
                        f"sink {other!r} writes to the same folder {str(folder)!r}; choose another",
                    )

    def _ray_folders(self, root: RootKeys | None) -> None:
        """What a Ray job writes must not lie among the files of the job, which Ray deletes with it, on one machine only."""
        written: list[tuple[KeyPath, Any]] = [(("state",), root.state if root is not None else None)]
        for node in self._nodes.values():
            if isinstance(node, SinkSpec) or node.type == "requests":
                written.append(((self._sections[node.name], node.name, "path"), getattr(node.options, "path", None)))
        for path, folder in written:
            if isinstance(folder, Path) and _RAY_PACKAGES in folder.as_posix():
                self._document.report(
                    path,
                    f"is {str(folder)!r}, in the folder that Ray unpacks a job's files into and deletes; write an absolute "
                    f"path that all machines share, such as /mnt/streambank/{folder.name}",
                )

    def _of_section(self, section: str) -> list[str]:
        return [name for name, where in self._sections.items() if where == section]


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to counts as empty."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    return handle


def _node_spec(kind: registry.Kind, name: str, keys: Any, options: Any, references: Mapping[str, Any]) -> NodeSpec:
    """Make a spec of the engine's keys and the options of a node; its inputs are addresses without exception."""
    given = _given(keys)
    if kind != "source":
        given["inputs"] = _names(given.pop("input")) or _names(given["inputs"])
    if kind == "operator":
        given["control"] = _names(given["control"])
    return _SPECS[kind](name=name, options=options, references=references, **given)


def _given(keys: Any) -> dict[str, Any]:
    return {f.name: getattr(keys, f.name) for f in dataclasses.fields(keys)}


def _names(value: Any) -> tuple[str, ...]:
    """Return the addresses in ``input``, ``inputs`` or ``control``, leaving out what is no text."""
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _reads(values: Any) -> tuple[str, ...]:
    """Return all nodes that a node reads."""
    if not isinstance(values, dict):
        return ()
    return tuple(node_of(name) for key in ("input", "inputs", "control") for name in _names(values.get(key)))


def _absolute(value: Any, base: Path) -> Any:
    """Make a path, or each path of a list, absolute; leave URLs and what is no text alone."""
    if isinstance(value, list):
        return [_absolute(item, base) for item in value]
    if not isinstance(value, str) or "://" in value:
        return value
    return os.path.normpath(base / Path(value).expanduser())
