"""From options to the settings of the network, without its weights. Needs no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from connectors.errors import ConfigError, nearest
from models.mamba.config import MambaConfig
from operators.mamba.config import MambaOptions

__all__ = ["adapt_config", "config_hash", "network", "reported_labels"]


def network(options: MambaOptions, name: str) -> MambaConfig:
    """Return the shapes that the option ``network`` gives."""
    values: dict[str, Any] = {}
    known = {f.name: f.default for f in dataclasses.fields(MambaConfig)}
    for key, given in options.network.items():
        if key not in known:
            allowed = ", ".join(sorted(known))
            raise ConfigError(f"{name}: network has no field {key!r}{nearest(key, known)}; allowed: {allowed}")
        value = tuple(given) if isinstance(given, list) else float(given) if isinstance(known[key], float) else given
        if type(value) is not type(known[key]):
            raise ConfigError(f"{name}: network.{key}={given!r} must be a {type(known[key]).__name__}")
        values[key] = value
    return MambaConfig(**values)


def adapt_config(config: MambaConfig, options: MambaOptions, name: str) -> MambaConfig:
    """Return the model's settings with what the options change. Raise ``ConfigError`` where the two do not fit."""
    if options.levels == "pixel" and not config.pixel_level:
        raise ConfigError(
            f"{name}: levels='pixel', but these weights have no pixel level; use levels='instance' or other weights"
        )
    given = {key: getattr(options, key) for key in ("max_long_side", "max_short_side", "score_threshold")}
    return dataclasses.replace(config, **{key: value for key, value in given.items() if value is not None})


def reported_labels(config: MambaConfig, options: MambaOptions, name: str) -> list[int] | None:
    """Return the labels of the classes to report, None for all. Raise ``ConfigError`` for a class that the weights lack."""
    for wanted in options.classes or ():
        if wanted not in config.classes:
            known = ", ".join(config.classes)
            raise ConfigError(
                f"{name}: classes: these weights know no {wanted!r}{nearest(wanted, config.classes)}; allowed: {known}"
            )
    return None if options.classes is None else [config.classes.index(wanted) for wanted in options.classes]


def config_hash(config: MambaConfig, options: MambaOptions) -> str:
    """Return a fingerprint of everything that decides the output, besides the weights."""
    text = json.dumps([dataclasses.asdict(config), dataclasses.asdict(options)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
