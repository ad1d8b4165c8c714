"""JSON Schema of pipeline files, for editors: made from the options that the types themselves declare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from connectors.extras import MissingExtra
from pipelines import registry
from pipelines.engine_keys import ENGINE_KEYS, RootKeys
from pipelines.options import OptionInfo, option_infos
from pipelines.outputs import NAME

__all__ = ["pipeline_schema"]

_SECTIONS: Mapping[str, registry.Kind] = {"sources": "source", "operators": "operator", "sinks": "sink"}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_SECRET = {
    "type": "object",
    "properties": {"env": {"type": "string"}, "file": {"type": "string"}},
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}

Schema = dict[str, Any]


def pipeline_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a pipeline file: keys, options of every registered type, docs, bounds.

    What a file says beyond the form (that nodes exist, that inputs fit) is for ``check``. Types whose extra is not installed
    are described by their engine keys only; ``module:Class`` is allowed with any options.
    """
    root = _mapping(option_infos(RootKeys))
    names = {"propertyNames": {"pattern": f"^(?:{NAME.pattern})$"}}
    nodes = {section: _node(kind) for section, kind in _SECTIONS.items()}
    sections = {section: {"type": "object", **names, "additionalProperties": node} for section, node in nodes.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Streambank pipeline",
        **root,
        "properties": {**root["properties"], **sections},
        "required": [*root["required"], "sources", "sinks"],
    }


def _node(kind: registry.Kind) -> Schema:
    """Return the schema of a node: by its ``type`` one of the registered, or a class of the user's own."""
    keys = option_infos(ENGINE_KEYS[kind])
    entries = registry.entries(kind)
    types: list[Any] = [entry.name for entry in entries]
    if "null" in types:
        types.append(None)  # YAML takes the word for no value
    own = {"type": "string", "pattern": "^[^:]+:[^:]+$", "description": "module:Class of your own."}
    properties = _mapping(keys)["properties"] | {"type": {"anyOf": [{"enum": types}, own]}}
    cases = []
    for entry in entries:
        const: list[Any] = ["null", None] if entry.name == "null" else [entry.name]
        given = {"properties": {"type": {"enum": const}}, "required": ["type"]}
        cases.append({"if": given, "then": _case(kind, entry.name, keys)})
    return {"type": "object", "properties": properties, "required": ["type"], "allOf": cases}


def _case(kind: registry.Kind, name: str, keys: tuple[OptionInfo, ...]) -> Schema:
    try:
        infos = option_infos(registry.load(kind, name).Options)
    except MissingExtra:
        return {}
    options = _mapping(infos)
    known = {key.name: True for key in keys}
    return {"properties": {**known, **options["properties"]}, "required": options["required"], "additionalProperties": False}


def _mapping(infos: tuple[OptionInfo, ...]) -> Schema:
    return {
        "type": "object",
        "properties": {info.name: _option(info) for info in infos},
        "required": [info.name for info in infos if info.required],
        "additionalProperties": False,
    }


def _option(info: OptionInfo) -> Schema:
    schema = _values(info)
    schema["description"] = info.doc + (f" ({info.unit})" if info.unit else "")
    if not info.required and not info.variants:
        schema["default"] = json.loads(json.dumps(info.default, default=str))
    return schema


def _values(info: OptionInfo) -> Schema:
    if info.secret:
        return {"anyOf": [dict(_SECRET), {"type": "null"}]}
    if info.variants:
        kinds = [_variant(kind, cls) for kind, cls in info.variants.items()]
        return {"anyOf": [*kinds, *([{"type": "null"}] if info.default is None else [])]}
    schema: Schema = TypeAdapter(info.annotation).json_schema()
    bounds = {_BOUNDS[kind]: bound for kind, bound in info.bounds.items()}
    for part in [schema, *schema.get("anyOf", [])]:
        part.pop("title", None)
        if part.get("type") in ("integer", "number"):
            part |= bounds
    return schema


def _variant(kind: str, cls: type) -> Schema:
    schema = _mapping(option_infos(cls))
    schema["properties"]["type"] = {"const": kind, "description": " ".join((cls.__doc__ or "").split())}
    schema["required"] = ["type", *schema["required"]]
    return schema
