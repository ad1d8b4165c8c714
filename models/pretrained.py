"""Folders of the form that the Hugging Face hub has: config.json and tensors, read from disk only, no pickle code executed.

What is common to all methods that run published models. Knows no method; whatever is wrong raises ``CheckpointMismatch`` that
names the folder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from connectors.errors import CheckpointMismatch
from connectors.extras import optional

transformers = optional("transformers")

__all__ = ["quiet", "read_config", "some_of"]

_SHOWN = 5


def read_config(folder: Path, supported: Collection[str] | None = None) -> dict[str, Any]:
    """Return the config.json of a folder. Raise ``CheckpointMismatch`` where there is none, or its type is not supported."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CheckpointMismatch(f"{file}: cannot be read: {error.strerror}; give the folder of a checkpoint") from error
    except ValueError as error:
        raise CheckpointMismatch(f"{file}: is not JSON: {error}; copy it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type is None or (supported is not None and model_type not in supported):
        allowed = "" if supported is None else f"; supported are {sorted(supported)}"
        raise CheckpointMismatch(f"{file}: model_type {model_type!r} is not supported{allowed}")
    return dict(config)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no table of keys from the library: what is wrong comes back as an error."""
    logging: Any = transformers.utils.logging
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def some_of(names: Iterable[Any]) -> str:
    """Return the first names, sorted, and how many more there are."""
    listed = sorted(str(name) for name in names)
    rest = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
