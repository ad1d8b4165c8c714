"""Which features a network takes, in which order, with which vocabularies. Read from FuxiCTR's ``feature_map.json`` or fitted
on Arrow columns by our training.

The order fixes the columns of every dense weight. Rows of an embedding table: ``padding_idx`` (0) is padding and always
zero, ``oov_idx`` (the last one in most maps) stands for every value that was not seen in training. Knows no tensors.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from connectors.errors import CheckpointMismatch, ConfigError, SchemaError

__all__ = ["Feature", "FeatureMap", "fit_feature", "read_fuxictr"]

KINDS = ("categorical", "numeric", "sequence")
_DEFAULT_MAX_LEN = 100


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature. Categorical and sequence features index a table of ``vocab_size`` rows; numeric ones are scaled."""

    name: str
    kind: str = "categorical"
    vocab_size: int = 0
    padding_idx: int = 0
    oov_idx: int | None = None
    """Row for values that are not known; default: the last one."""
    share_embedding: str | None = None
    """Use the table of this categorical feature."""
    max_len: int = 0
    """Sequences: how many of the latest entries are kept."""
    vocabulary: tuple[int, ...] | tuple[str, ...] | None = None
    """Raw values; value i has row i + 1. None: the column holds row numbers already."""
    mean: float = 0.0
    std: float = 1.0
    """Numeric: the network sees (value - mean) / std."""

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        if not self.name or self.kind not in KINDS:
            raise ConfigError(f"feature {self.name!r} has kind {self.kind!r}; it needs a name, and a kind of {list(KINDS)}")
        if self.kind == "numeric":
            if not self.std > 0:
                raise ConfigError(f"feature {self.name!r}: std is {self.std}; it must be above 0")
            return
        if self.oov_idx is None:
            object.__setattr__(self, "oov_idx", self.vocab_size - 1)
        if not 0 <= self.padding_idx < self.vocab_size or not 0 <= self.unknown < self.vocab_size:
            raise ConfigError(
                f"feature {self.name!r}: padding_idx {self.padding_idx} and oov_idx {self.oov_idx} must be rows of a table of "
                f"{self.vocab_size}"
            )
        if self.vocabulary is not None and {type(value) for value in self.vocabulary} not in ({int}, {str}):
            raise ConfigError(f"feature {self.name!r}: a vocabulary must be whole numbers or words, not both, and not empty")
        if self.vocabulary is not None and len(self.vocabulary) + 2 > self.vocab_size:
            raise ConfigError(
                f"feature {self.name!r}: {len(self.vocabulary)} values, padding and unknown need {len(self.vocabulary) + 2} "
                f"rows, vocab_size is {self.vocab_size}"
            )
        if self.kind == "sequence" and self.max_len < 1:
            raise ConfigError(f"feature {self.name!r}: max_len is {self.max_len}; a sequence needs 1 or more")

    @property
    def unknown(self) -> int:
        """Row of unknown values."""
        return self.vocab_size - 1 if self.oov_idx is None else self.oov_idx

    @property
    def table(self) -> str:
        """Name of the feature whose embedding table this one uses."""
        return self.share_embedding or self.name

    @property
    def is_text(self) -> bool:
        """The raw values are words."""
        return self.vocabulary is not None and isinstance(self.vocabulary[0], str)

    @cached_property
    def row_of_text(self) -> Mapping[str, int]:
        """Table row of every word of the vocabulary."""
        return {str(value): row for row, value in enumerate(self.vocabulary or (), start=1)}

    @cached_property
    def rows_of_numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of the vocabulary in ascending order, and the table row of each."""
        values = np.array(self.vocabulary or (), dtype=np.int64)
        order = np.argsort(values)
        return values[order], order.astype(np.int64) + 1

    @property
    def arrow_type(self) -> pa.DataType:
        """Type in which a column of this feature is best given; other integer widths are read as well."""
        if self.kind == "numeric":
            return pa.float32()
        scalar = pa.int32() if self.vocabulary is None else pa.string() if self.is_text else pa.int64()
        return pa.list_(scalar) if self.kind == "sequence" else scalar


@dataclass(frozen=True)
class FeatureMap:
    """All features of a network, in order."""

    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        by_name = {feature.name: feature for feature in self.features}
        if not self.features or len(by_name) != len(self.features):
            raise ConfigError(f"a feature map needs different names, at least one; got {[f.name for f in self.features]}")
        for feature in self.features:
            if feature.share_embedding is None:
                continue
            owner = by_name.get(feature.share_embedding)
            if owner is None or owner.kind == "numeric" or owner.share_embedding is not None:
                raise ConfigError(
                    f"feature {feature.name!r} shares the table of {feature.share_embedding!r}, which is no feature with its "
                    f"own table; features: {list(by_name)}"
                )
            if owner.vocab_size != feature.vocab_size or owner.padding_idx != feature.padding_idx:
                raise ConfigError(
                    f"features {feature.name!r} and {owner.name!r} share a table, but have vocab_size {feature.vocab_size} and "
                    f"{owner.vocab_size}, padding_idx {feature.padding_idx} and {owner.padding_idx}"
                )

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(feature.name == name for feature in self.features)

    @property
    def names(self) -> list[str]:
        """Names in order."""
        return [feature.name for feature in self.features]

    def arrow_fields(self) -> list[pa.Field]:
        """Return the columns that a batch should have."""
        return [pa.field(feature.name, feature.arrow_type) for feature in self.features]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the features as JSON values; settings at their default are left out."""
        return [
            {
                field.name: getattr(feature, field.name)
                for field in dataclasses.fields(feature)
                if getattr(feature, field.name) != field.default
            }
            for feature in self.features
        ]

    @staticmethod
    def from_json(values: Sequence[Mapping[str, Any]]) -> FeatureMap:
        """Invert ``to_json``. Raises ``ConfigError``."""
        features = []
        for value in values:
            plain: dict[str, Any] = {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in value.items()}
            try:
                features.append(Feature(**plain))
            except TypeError as error:
                raise ConfigError(f"feature {value.get('name')!r} has a setting that is not known: {error}") from error
        return FeatureMap(tuple(features))


def read_fuxictr(path: str | os.PathLike[str]) -> FeatureMap:
    """Read FuxiCTR's ``feature_map.json``. Its columns hold row numbers; ``meta`` features are no input and left out.

    Raises ``CheckpointMismatch`` if the file is not such a map.
    """
    file = Path(path)
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CheckpointMismatch(f"{file}: cannot be read: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise CheckpointMismatch(
            f"{file}: not JSON: {error}; it should be the feature_map.json beside the checkpoint"
        ) from error
    entries = content.get("features") if isinstance(content, dict) else None
    if isinstance(entries, list):  # FuxiCTR writes a list of one-key objects, in order
        entries = {name: spec for entry in entries if isinstance(entry, dict) for name, spec in entry.items()}
    if not isinstance(entries, dict) or not all(isinstance(spec, dict) for spec in entries.values()):
        raise CheckpointMismatch(f"{file}: has no 'features'; it should be a feature_map.json of FuxiCTR 2")
    try:
        return FeatureMap(
            tuple(_from_spec(name, spec) for name, spec in entries.items() if spec.get("type", "categorical") != "meta")
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointMismatch(f"{file}: {error}") from error


def _from_spec(name: str, spec: Mapping[str, Any]) -> Feature:
    kind = spec.get("type", "categorical")
    if kind == "numeric":
        return Feature(name=name, kind=kind)
    return Feature(
        name=name,
        kind=kind,
        vocab_size=int(spec.get("vocab_size", 0)),
        padding_idx=int(spec.get("padding_idx") or 0),
        oov_idx=None if spec.get("oov_idx") is None else int(spec["oov_idx"]),
        share_embedding=spec.get("share_embedding"),
        max_len=int(spec.get("max_len", _DEFAULT_MAX_LEN)) if kind == "sequence" else 0,
    )


def fit_feature(
    name: str,
    kind: str,
    column: pa.Array | pa.ChunkedArray,
    *,
    max_len: int = _DEFAULT_MAX_LEN,
    min_count: int = 1,
    shared_with: Feature | None = None,
) -> Feature:
    """Make a feature from the values of a training column: its vocabulary, or its mean and standard deviation.

    Values seen less often than ``min_count`` are left out of the vocabulary. ``shared_with`` gives a sequence the vocabulary
    and table of a categorical feature. Raises ``SchemaError`` for a column of the wrong type and ``ConfigError`` for one
    without values.
    """
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if kind == "numeric":
        return _fit_numeric(name, values)
    if kind == "sequence":
        if not (
            pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
        ):
            raise SchemaError(f"column {name!r} is {values.type}; a sequence must be a list column")
        values = values.flatten()
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    is_integer = pa.types.is_integer(values.type)
    if not (is_integer or pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise SchemaError(f"column {name!r} is {values.type}; a {kind} feature must be of integers or strings")
    length = max_len if kind == "sequence" else 0
    if shared_with is not None:
        return dataclasses.replace(shared_with, name=name, kind=kind, share_embedding=shared_with.name, max_len=length)
    seen = values.cast(pa.int64() if is_integer else pa.string()).drop_null().value_counts()
    vocabulary = tuple(sorted(seen.field("values").filter(pc.greater_equal(seen.field("counts"), min_count)).to_pylist()))
    if not vocabulary:
        raise ConfigError(f"column {name!r} has no value that occurs {min_count} times or more; lower min_count")
    return Feature(name=name, kind=kind, vocab_size=len(vocabulary) + 2, vocabulary=vocabulary, max_len=length)


def _fit_numeric(name: str, values: pa.Array) -> Feature:
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise SchemaError(f"column {name!r} is {values.type}; a numeric feature must be of numbers")
    numbers = values.cast(pa.float64())
    numbers = numbers.filter(pc.fill_null(pc.is_finite(numbers), False))
    if not len(numbers):
        raise ConfigError(f"column {name!r} has no finite value to learn from")
    return Feature(name=name, kind="numeric", mean=pc.mean(numbers).as_py(), std=pc.stddev(numbers).as_py() or 1.0)
