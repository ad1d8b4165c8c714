"""The header of a safetensors file: its names and shapes, and of one of ours which model it holds, with which settings.

Reads no tensors and needs no torch, so ``check`` is quick. A file of ours is *sealed*: its header has a digest of itself, which
tells that names, shapes and settings are still those of the network that was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from connectors.errors import CheckpointMismatch, ConfigError

__all__ = [
    "Stored",
    "complete",
    "damaged_named",
    "is_own",
    "is_safetensors",
    "is_sealed",
    "make_header",
    "read_header",
    "require_model",
    "sealed",
]

_MODEL, _FORMAT, _SEAL = "streambank.model", "streambank.format", "streambank.seal"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, as the header tells."""

    shape: tuple[int, ...]


def is_safetensors(file: Path) -> bool:
    """Tell by its first bytes whether a file is safetensors. Raises ``CheckpointMismatch`` if it cannot be read."""
    if file.exists() and not file.is_file():
        raise CheckpointMismatch(f"{file}: is no plain file; give a file of weights")
    try:
        with file.open("rb") as handle:
            return handle.read(9)[8:9] == b"{"
    except OSError as error:
        raise CheckpointMismatch(f"{file}: cannot be read: {error.strerror or error}; check the path") from error


def read_header(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors by name and the metadata of a safetensors file. Raises ``CheckpointMismatch`` for any other."""
    with complete(file), safetensors.safe_open(file, framework="numpy") as handle:
        shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        return {name: Stored(shape) for name, shape in shapes.items()}, handle.metadata() or {}


@contextlib.contextmanager
def complete(file: Path) -> Iterator[None]:
    """Raise ``CheckpointMismatch`` that names ``file`` where it is no complete safetensors file."""
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointMismatch(f"{file}: not a complete safetensors file: {error}; copy or export it again") from error


def make_header(model: str, version: str, **values: Any) -> dict[str, str]:
    """Return the metadata of a file; ``values`` are written as JSON, text as it is."""
    texts = {name: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for name, value in values.items()}
    return {_MODEL: model, _FORMAT: version, **texts}


def sealed(metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the metadata of a file of these tensors with its seal, where it is a file of ours."""
    return {**metadata, _SEAL: _digest(metadata, shapes)} if is_own(metadata) else dict(metadata)


def is_sealed(metadata: Mapping[str, str], tensors: Mapping[str, Stored]) -> bool:
    """Tell whether settings, names and shapes are those that were written. False for files of before there were seals."""
    return metadata.get(_SEAL) == _digest(metadata, {name: tensor.shape for name, tensor in tensors.items()})


def _digest(metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    said = {name: value for name, value in metadata.items() if name != _SEAL}
    text = json.dumps([said, {name: list(shape) for name, shape in shapes.items()}], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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
