"""Types of a user's own for the tests of pipeline files: an operator with control rows, one with a secret, a small source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from connectors import records
from connectors.base import Position, Reader, Source
from connectors.errors import ConfigError, SourceError
from connectors.options import REQUIRED, option
from operators.base import Operator
from operators.state import State

NUMBERS = records.key_schema("numbers", 1, [records.field("v", pa.float64(), unit="m/s")])
LABELS = records.key_schema("labels", 1, [pa.field("label", pa.string())])


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Options of all types that the checks know."""

    password: str | None = option(None, "Password of the label store.", secret=True)
    seed: int = option(0, "Seed.")
    rate: float = option(1.0, "Learning rate.", gt=0, lt=10, was=("learning_rate", "lr"))
    low: int = option(0, "Lower edge.")
    high: int = option(10, "Upper edge.")
    tags: list[Literal["a", "b"]] = option([], "Tags.")
    sizes: tuple[int, ...] = option((1, 2), "Sizes.", ge=1)
    model: Path | None = option(None, "A file.")
    extra: dict[str, Any] = option({}, "Anything.")
    removed: ClassVar[Mapping[str, str]] = {"clock": "set 'align_s' on the node"}

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"low: {self.low} is above high={self.high}; lower it")


class LabelOperator(Operator):
    """Takes numbers, and labels as control."""

    Options = LabelOptions
    input_schema = NUMBERS
    control_schema = LABELS
    output_schema = records.output_schema("labeled", 1, [pa.field("label", pa.string())])
    statuses: ClassVar[Mapping[str, str]] = {"ok": "a label"}

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        return []

    def snapshot(self, *, incremental: bool = False) -> State:
        return State(incremental=incremental)

    def restore(self, state: State) -> None:
        pass

    def close_stream(self, stream_id: str) -> None:
        pass


class SplitOperator(LabelOperator):
    """Has two named outputs and none without a name."""

    output_schema = None  # type: ignore[assignment]
    outputs: Mapping[str, pa.Schema] = {
        "low": LabelOperator.output_schema,
        "high": records.key_schema("high", 1, [records.field("v", pa.float64(), unit="m/s")]),
    }


class TaggedOperator(SplitOperator):
    """Has one without a name, too; its options say what is in ``high``."""

    output_schema = records.output_schema("tagged", 1)

    @classmethod
    def examine(cls, options: Any, name: str) -> Mapping[str, pa.Schema]:
        return {"high": records.key_schema(f"high_{options.high}", 1)}


@dataclass(frozen=True, kw_only=True)
class NumberOptions:
    """A source that needs a file."""

    path: str = option(REQUIRED, "File to read.", path=True)


class NumberSource(Source):
    """Lists its file; reading is not needed here."""

    Options = NumberOptions

    @property
    def schema(self) -> pa.Schema:
        return NUMBERS

    def splits(self) -> list[str]:
        if not Path(self.options.path).exists():
            raise SourceError(f"no such file: {self.options.path!r}")
        return ["only"]

    def open(self, split: str, position: Position | None) -> Reader:
        raise NotImplementedError


class ClashingOperator(LabelOperator):
    """Declares an option that the engine reads."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """One option too many."""

        shards: int = option(1, "Shards.")


class NoOptions(LabelOperator):
    """Forgets its options."""

    Options = None  # type: ignore[assignment]
