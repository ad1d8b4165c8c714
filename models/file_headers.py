"""The header of a safetensors file of ours: which model it holds, in which format, with which settings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from connectors.errors import CheckpointMismatch, ConfigError

__all__ = ["damaged_named", "is_own", "make_header", "require_model"]

_MODEL, _FORMAT = "streambank.model", "streambank.format"


def make_header(model: str, version: str, **values: Any) -> dict[str, str]:
    """Return the metadata of a file; ``values`` are written as JSON, text as it is."""
    texts = {name: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for name, value in values.items()}
    return {_MODEL: model, _FORMAT: version, **texts}


def is_own(metadata: Mapping[str, str]) -> bool:
    """Tell whether a file says that it holds a model of ours."""
    return _MODEL in metadata


def require_model(metadata: Mapping[str, str], model: str, version: str, file: Path, *, otherwise: str = "") -> None:
    """Raise ``CheckpointMismatch`` for another model or format; ``otherwise`` is what can be given that is no file of ours."""
    held = metadata.get(_MODEL)
    if held != model:
        what = "no model of Streambank" if held is None else f"a {held!r} model"
        raise CheckpointMismatch(f"{file}: holds {what}, not {model!r}" + (f"; {otherwise}" if otherwise else ""))
    if metadata.get(_FORMAT) != version:
        raise CheckpointMismatch(
            f"{file}: has format {metadata.get(_FORMAT)!r}; this version reads {version!r}; train or convert it again, or "
            "install the version of Streambank that wrote it"
        )


@contextlib.contextmanager
def damaged_named(file: Path) -> Iterator[None]:
    """Raise ``CheckpointMismatch`` that names ``file`` for what goes wrong while its settings are read."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointMismatch(f"{file}: its header cannot be used: {error}; copy, convert or train it again") from error
