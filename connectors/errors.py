"""The one tree of errors that a user of Streambank meets.

    StreambankError
    ├── ConfigError          pipeline file, options, command line (also a ValueError)
    ├── SchemaError          a batch or file whose columns are not the declared ones (also a ValueError)
    ├── SourceError          a source cannot be opened or continued
    │   └── NothingToRead    an empty folder, a glob without matches: no error where a run has read it before
    ├── SinkError            a sink cannot write or commit
    ├── CheckpointMismatch   weights that do not fit the model (also a ValueError)
    ├── RecoveryError        a state folder that cannot be resumed
    ├── ContractError        an operator, source or sink that does not do what its contract says
    └── DeviceError          a device that was asked for and is not there

A message says what was wrong, the value, what is allowed, and what to do next. Bad *data* is no error: it becomes a row
with a ``status`` (see :mod:`connectors.records`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointMismatch",
    "ConfigError",
    "ContractError",
    "DeviceError",
    "NothingToRead",
    "RecoveryError",
    "SchemaError",
    "SinkError",
    "SourceError",
    "StreambankError",
    "first_line",
    "nearest",
]


class StreambankError(Exception):
    """Root of all errors raised on purpose; the command line prints it without a stack trace."""


class ConfigError(StreambankError, ValueError):
    """A pipeline file, an option or a command-line argument is not usable."""


class SchemaError(StreambankError, ValueError):
    """Columns or types differ from the declared schema."""


class SourceError(StreambankError):
    """A source cannot be opened, listed or continued from its recorded position."""


class NothingToRead(SourceError):
    """A source lists nothing. A first run has nothing to do; a resumed one has read all there was."""


class SinkError(StreambankError):
    """A sink cannot stage or commit rows; the epoch is not committed."""


class CheckpointMismatch(StreambankError, ValueError):
    """A checkpoint is unreadable, unsafe, or does not fit the configured model."""


class RecoveryError(StreambankError):
    """A state folder cannot be resumed with this pipeline."""


class ContractError(StreambankError):
    """An operator, a source or a sink does what its contract does not allow: a bug in it, found while it runs."""


class DeviceError(StreambankError):
    """The requested device is not available in this process or cluster."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the allowed name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: Exception) -> str:
    """Return the first line of what an error of any library says, with its type where that alone would say too little."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0] if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {lines[0]}"
