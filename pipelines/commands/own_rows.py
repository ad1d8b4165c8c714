"""Rows of a source for a training: what ``streambank train METHOD`` reads where own data are no file of its own form.

A source is written as in a pipeline file: a mapping with ``type`` and its options. A LeRobot data set is known by its folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from connectors.base import Source
from connectors.errors import ConfigError
from pipelines import registry
from pipelines.options import option_infos, parse_options, unknown_keys

__all__ = ["as_source", "read_rows"]

_MAX_ROWS, _MAX_BYTES = 256, 64 << 20


def as_source(value: Any, option: str, read_by: str | None = None) -> Source | None:
    """Return the source that an option's value means, None where it is a path of another kind.

    ``read_by``: the source that reads plain paths, where there is one. Raise ``ConfigError`` for a mapping that is no source
    with an end.
    """
    if isinstance(value, str) and read_by is not None:
        value = {"type": read_by, "path": value}
    elif isinstance(value, str) and (Path(value).expanduser() / "meta" / "info.json").is_file():
        value = {"type": "lerobot", "path": value}
    if not isinstance(value, Mapping):
        return None
    kind = value.get("type")
    if not isinstance(kind, str):
        raise ConfigError(f"--{option}: {dict(value)} has no type; write a source as in a pipeline file, {{type: lerobot, …}}")
    if (lacking := registry.lacks("source", kind)) is not None:
        raise ConfigError(f"--{option}: {kind!r} cannot run here: {lacking}")
    cls = registry.load("source", kind)
    given = {name: each for name, each in value.items() if name != "type"}
    options, problems = parse_options(cls.Options, given)
    problems += unknown_keys(given, {info.name for info in option_infos(cls.Options)}, "option")
    if problems:
        raise ConfigError("\n".join(f"--{option}.{problem.path[0]}: {problem.message}" for problem in problems))
    source = cast("Source", cls(options))
    if not (source.bounded and source.splits_end):
        raise ConfigError(f"--{option}: the source {kind!r} has no end, and a training reads its data once; give recorded rows")
    return source


def read_rows(source: Source) -> Iterator[pa.RecordBatch]:
    """Read all splits, one after the other. Raises as the source does."""
    for split in source.splits():
        reader = source.open(split, None)
        try:
            while not reader.exhausted:
                batch = reader.read(_MAX_ROWS, _MAX_BYTES)
                if batch is not None:
                    yield batch
        finally:
            reader.close()
