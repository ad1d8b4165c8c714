"""Streambank's public names in one place.

    import streambank as sb

    result = sb.Pipeline.load("cameras.yaml").run()
    print(result.table("rows"))

Names are looked up when they are first used: importing this module loads neither torch nor ray nor any extra. The packages
behind it have common names (``connectors``, ``models``, ``operators``, ``pipelines``). Where another package of such a name
comes first on the module path, importing this module raises ``ShadowedPackage``, which says where that is and what to do.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from connectors.base import Position, Reader, Row, Shown, Sink, Source, Staged, Tail
    from connectors.errors import (
        CheckpointMismatch,
        ConfigError,
        DeviceError,
        RecoveryError,
        SchemaError,
        SinkError,
        SourceError,
        StreambankError,
    )
    from connectors.extras import MissingExtra
    from connectors.options import REQUIRED, option
    from connectors.records import FRAME, field, key_schema, output_schema, require
    from operators.base import Context, Operator, Output
    from operators.state import State
    from pipelines.api import Pipeline, Result
    from pipelines.asking.putting import Answer
    from pipelines.check import Finding

__version__ = "0.1.0"

__all__ = [
    "FRAME",
    "REQUIRED",
    "Answer",
    "CheckpointMismatch",
    "ConfigError",
    "Context",
    "DeviceError",
    "Finding",
    "MissingExtra",
    "Operator",
    "Output",
    "Pipeline",
    "Position",
    "Reader",
    "RecoveryError",
    "Result",
    "Row",
    "SchemaError",
    "ShadowedPackage",
    "Shown",
    "Sink",
    "SinkError",
    "Source",
    "SourceError",
    "Staged",
    "State",
    "StreambankError",
    "Tail",
    "field",
    "key_schema",
    "option",
    "output_schema",
    "require",
]

_HOMES = {
    "connectors.base": ("Position", "Reader", "Row", "Shown", "Sink", "Source", "Staged", "Tail"),
    "connectors.errors": (
        "CheckpointMismatch",
        "ConfigError",
        "DeviceError",
        "RecoveryError",
        "SchemaError",
        "SinkError",
        "SourceError",
        "StreambankError",
    ),
    "connectors.extras": ("MissingExtra",),
    "connectors.options": ("REQUIRED", "option"),
    "connectors.records": ("FRAME", "field", "key_schema", "output_schema", "require"),
    "operators.base": ("Context", "Operator", "Output"),
    "operators.state": ("State",),
    "pipelines.api": ("Pipeline", "Result"),
    "pipelines.asking.putting": ("Answer",),
    "pipelines.check": ("Finding",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_PACKAGES = ("connectors", "models", "operators", "pipelines")


class ShadowedPackage(ImportError):
    """Another package has the name of one of ours and comes first on the module path."""


def main() -> None:
    """Run the command line; the entry point of the distribution."""
    from pipelines.cli import main as run

    run()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _shadowed() -> str | None:
    """Return what is wrong where one of our packages would not be ours. Imports none of them."""
    home = Path(__file__).resolve().parent
    for package in _PACKAGES:
        found = _origin(package)
        if found is not None and found.resolve().parent != home / package:
            place = found.parent if found.name == "__init__.py" else found
            return (
                f"streambank: the module {package!r} is found at {place}, which hides Streambank's own in {home / package}. "
                f"Start Python from another folder, or with -P (python -P script.py), which leaves the script's folder out; "
                f"or rename {place.name!r}; or put {home} in front, as PYTHONPATH={home}"
            )
    return None


def _origin(package: str) -> Path | None:
    """Return the file that importing ``package`` runs, or has run; None where only our own installation can tell."""
    loaded = sys.modules.get(package)
    origin = getattr(loaded, "__file__", None) if loaded is not None else None
    if loaded is None:
        spec = PathFinder.find_spec(package)
        origin = spec.origin if spec is not None else None  # None also for a folder without __init__.py, which hides nothing
    return Path(origin) if origin is not None else None


if _wrong := _shadowed():
    if Path("".join(sys.argv[:1])).stem == "streambank":  # the command line: a message, no stack trace
        sys.stderr.write(f"error: {_wrong}\n")
        raise SystemExit(2)
    raise ShadowedPackage(_wrong)

if __name__ == "__main__":
    main()
