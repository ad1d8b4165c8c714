"""What has become of the rows of a node: statuses, errors, rows that came late or were dropped, files that were not read.

Counted by the task by whole columns, carried by its acknowledgement of an epoch, and added up in the manifest, so that the
figures are those of the whole run: over attempts, resumes and shards, each row once. Knows no operators and no runners.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["MAX_NAMES", "Tally"]

MAX_NAMES = 50
"""Files that are named; more are counted."""

_MAX_REASONS = 32
_REASON_LENGTH = 200

ERROR = "with an error"
"""Stands for the status of a row of a source that has an error."""


@dataclass(slots=True)
class Tally:
    """Of one task in one attempt, or of a node over the whole run."""

    rows: int = 0
    """Rows that a source has delivered or an operator has given."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Rows by status. Of a source only those ``with an error``; the others have none."""
    not_ok: int = 0
    """Those among them whose status says that something was wrong."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Status, or name of a count → what the first row of it says, else what is declared of it."""
    late_rows: int = 0
    """Operators with ``align_s``: see ``TaskStats``."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that a live source could not hand over, by reason."""
    losses: Counter[str] = field(default_factory=Counter)
    """Counts of the operator's own (``Operator.losses``): what was lost without a row that says so."""
    incomplete: Counter[str] = field(default_factory=Counter)
    """Rows that a sink could not hand over whole, by what became of them (``Sink.incomplete``)."""
    unread: dict[str, str] = field(default_factory=dict)
    """File that was not read, or not to its end → why; at most ``MAX_NAMES``."""
    unread_files: int = 0
    """All such files."""
    outputs: dict[str, Tally] = field(default_factory=dict)
    """Of an operator: rows and statuses of each of its named outputs. All else stands above, of the operator as a whole."""

    def count(self, batch: pa.RecordBatch, good: Collection[str]) -> list[str]:
        """Count rows with the column ``status``; those that are not ``good`` are not ok. Return the statuses that are new."""
        self.rows += batch.num_rows
        column = batch.column("status")
        new = []
        for name, number in _frequencies(column):
            if name not in self.statuses:
                new.append(name)
            self.statuses[name] += number
            if name not in good:
                self.not_ok += number
                if name not in self.reasons and len(self.reasons) < _MAX_REASONS:
                    text = _first_error(batch, pc.equal(column.cast(pa.string()), name))
                    if text is not None:
                        self.reasons[name] = text
        return new

    def count_errors(self, batch: pa.RecordBatch, column: int) -> None:
        """Count rows of a source; ``column`` is the number of the one that says what was wrong, -1 where there is none."""
        self.rows += batch.num_rows
        if column < 0:
            return
        errors = batch.column(column)
        wrong = batch.num_rows - errors.null_count
        if wrong:
            self.statuses[ERROR] += wrong
            self.not_ok += wrong
            if ERROR not in self.reasons:
                self.reasons[ERROR] = shown(errors.drop_null()[0].as_py())

    def note_unread(self, unread: Mapping[str, str]) -> None:
        """Take note of files that have not been noted before."""
        self.unread_files += len(unread)
        for name, reason in unread.items():
            if len(self.unread) < MAX_NAMES:
                self.unread[name] = shown(reason)

    def copy(self) -> Tally:
        """Return one that does not change anymore."""
        return Tally.sum([self])

    @staticmethod
    def sum(parts: Iterable[Tally]) -> Tally:
        """Add up tallies of different rows; what is named first stays."""
        total = Tally()
        for part in parts:
            total.rows += part.rows
            total.statuses.update(part.statuses)
            total.not_ok += part.not_ok
            total.reasons = {**part.reasons, **total.reasons}
            total.late_rows += part.late_rows
            total.dropped.update(part.dropped)
            total.losses.update(part.losses)
            total.incomplete.update(part.incomplete)
            known = len(total.unread.keys() & part.unread.keys())  # told again by a later attempt or another shard
            total.unread_files += part.unread_files - known
            for name, reason in part.unread.items():
                if len(total.unread) < MAX_NAMES:
                    total.unread.setdefault(name, reason)
            for output, tally in part.outputs.items():
                total.outputs[output] = Tally.sum([total.outputs.get(output, Tally()), tally])
        return total

    def after(self, earlier: Tally) -> Tally:
        """Return the tally of a whole run whose former attempts had ``earlier``; ``losses`` are of the whole run already."""
        total = Tally.sum([earlier, self])
        total.losses = Counter(self.losses)
        return total

    @property
    def all_ok(self) -> bool:
        """Whether nothing was wrong, lost, late or left out."""
        own = self.not_ok or self.late_rows or self.unread_files or +self.dropped or +self.losses or +self.incomplete
        return not own and all(tally.all_ok for tally in self.outputs.values())

    def by_output(self) -> Iterator[tuple[str, Tally]]:
        """Yield name and tally of each output that has a name, after that of the rest, unless there is nothing in it."""
        own = replace(self, outputs={})
        if not self.outputs or own.rows or not own.all_ok:
            yield "", own
        yield from self.outputs.items()

    def to_json(self) -> dict[str, Any]:
        """Return what is not empty as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["outputs"] = {output: tally.to_json() for output, tally in self.outputs.items()}
        return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items() if value}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Tally:
        """Rebuild what ``to_json`` returned."""
        counters = ("statuses", "dropped", "losses", "incomplete")
        parts: dict[str, Any] = {name: Counter(part) if name in counters else part for name, part in value.items()}
        parts["outputs"] = {output: Tally.from_json(part) for output, part in value.get("outputs", {}).items()}
        return Tally(**parts)


def shown(text: str) -> str:
    """Return a text of the data on one line, without what a terminal would act on, and not too long."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"


def _frequencies(column: pa.Array) -> Iterator[tuple[str, int]]:
    """Yield the texts of a column and how often each stands there; nulls as ``None``."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if encoded.null_count:
        yield str(None), encoded.null_count
        encoded = encoded.drop_null()
    if len(encoded) and len(encoded.dictionary) == 1:  # nearly all batches: every row is ok
        yield str(encoded.dictionary[0].as_py()), len(encoded)
        return
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    for name, number in zip(encoded.dictionary.to_pylist(), np.bincount(codes).tolist(), strict=False):
        if number:
            yield str(name), number


def _first_error(batch: pa.RecordBatch, rows: pa.BooleanArray) -> str | None:
    """Return the error of the first of these rows that has one."""
    index = batch.schema.get_field_index("error")
    if index < 0:
        return None
    errors = batch.column(index).filter(rows).drop_null()
    return shown(str(errors[0].as_py())) if len(errors) else None
