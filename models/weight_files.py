"""Weights on disk, whatever the network: safetensors in and out, and PyTorch files read without executing pickle code.

Headers alone are read by :mod:`models.file_headers`. Everything that can be wrong with a file raises ``CheckpointMismatch``
that names it. Knows no network and no parameter name.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from connectors import durable
from connectors.errors import CheckpointMismatch
from models.file_headers import complete, read_header, sealed

__all__ = ["read_safetensors", "read_state_dict", "weights_name", "write_safetensors"]


def read_safetensors(file: Path, *, header_only: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name and the header's metadata. ``header_only``: names and shapes only (meta tensors)."""
    if header_only:
        stored, metadata = read_header(file)
        return {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}, metadata
    with complete(file), safetensors.safe_open(file, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}  # noqa: SIM118


def write_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], target: Path) -> None:
    """Write ``tensors`` (copied to the CPU) and ``metadata``, sealed where it is ours, to ``target`` in one step."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = sealed(metadata, {name: tuple(tensor.shape) for name, tensor in plain.items()})
    with durable.replacing(target) as temporary:
        safetensors.torch.save_file(plain, temporary, header)


def weights_name(prefix: str, config: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return a name of settings (JSON values) and weights: equal wherever they are equal."""
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=6)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{prefix}-{digest.hexdigest()}"


class _Inert:
    """Stands for an object of a class that is not to be had: takes what its file gives it, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_state_dict(file: Path, *, foreign: Literal["refuse", "inert"] = "refuse") -> dict[str, Tensor]:
    """Return the state dict of a PyTorch file, bare or under ``state_dict``. No pickle code of the file is executed.

    ``foreign``: what becomes of anything but tensors and plain values, such as the callbacks that trainers save: the file is
    refused, or such objects are replaced by inert ones.
    """
    try:
        with warnings.catch_warnings():
            # Notes on unusual pickle protocols; what cannot be read is refused below anyway.
            warnings.simplefilter("ignore")
            # The older format, without a zip archive, knows no such list: there, foreign objects are refused.
            listed = foreign == "inert" and zipfile.is_zipfile(file)
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file) if listed else []
            with torch.serialization.safe_globals([(_Inert, name) for name in names]):
                content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointMismatch(
            f"{file}: refused, it is damaged or holds more than tensors and plain values, and nothing of it was executed; "
            "if you trust its origin, load it yourself and save only its state dict "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        # What the restricted unpickler raises for a cut or garbled file depends on where it breaks.
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointMismatch(f"{file}: not a complete PyTorch checkpoint: {detail}; copy it again") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise CheckpointMismatch(f"{file}: holds a {type(state).__name__}, not a state dict; save model.state_dict()")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointMismatch(f"{file}: holds no tensors; expected a state dict, bare or under 'state_dict'")
    return tensors
