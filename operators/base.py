"""The contract of every operator. It knows nothing of Ray, Kafka, files, shards or epochs.

Promises that the conformance suite (``pipelines.testing.conformance``) checks for every operator:

* Each stream's output depends on its own rows only: not on other streams of a batch, nor on where batches are cut. (Where the
  method is one memory for all streams, its page says so: the output then depends on the one order of all rows, never on cuts.)
* Causal: a row's output depends on rows up to it, unless an option that says otherwise is chosen.
* A bad row gives an output row with ``status`` and ``error``, one over all outputs; it changes no state but the counters and
  never raises.
* Rows are admitted in one order: schema, error of the source, late or duplicate, no free slot, decoding, the method.
* Every status it emits is declared in ``statuses``.
* No number that it emits is NaN, nor infinite where its field does not say so (``records.field(..., infinite=True)``).
* ``advance`` may come in any steps: answers depend on the rows and the final event time only.
* ``restore(snapshot())`` is bit for bit; nothing grows with the length of a stream.
* After ``close`` no thread, process or file descriptor of the operator is left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import pyarrow as pa

from connectors.errors import SchemaError

if TYPE_CHECKING:
    import torch

    from operators.state import State

__all__ = ["Context", "Emitted", "Operator", "Output"]


@dataclass(frozen=True, slots=True)
class Output:
    """Rows of one of an operator's named outputs (``Operator.outputs``), as ``process`` and the other methods return them."""

    name: str
    batch: pa.RecordBatch


Emitted: TypeAlias = pa.RecordBatch | Output
"""What the methods of an operator return: rows of its output without a name, or of a named one."""


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Context:
    """Where an operator runs."""

    name: str = "operator"
    """The node's name in the pipeline file, for messages."""
    device: torch.device = field(default_factory=_cpu)
    """Where weights and banks live."""
    aligned: bool = False
    """Rows come in the order of event time and ``advance`` is called (``align_s`` in the pipeline file)."""


class Operator(ABC):
    """One shard of a stateful operator. Used by one thread at a time.

    What can be known of it before it is built (options, schemas, statuses, ``examine``) may stand in a class of its own that
    imports no torch, which ``implementation`` takes further: ``check`` and ``describe`` then need a second, not five.
    """

    implementation: ClassVar[str] = ""
    """``module:Class`` of the subclass that does the work, where a class only declares it. Not inherited."""

    Options: ClassVar[type]
    """Keyword-only frozen dataclass made of ``connectors.options.option`` fields."""

    input_schema: pa.Schema
    control_schema: pa.Schema | None = None
    output_schema: pa.Schema
    """Of the output without a name, which a pipeline file calls ``NODE``. Most operators have this one only."""
    outputs: Mapping[str, pa.Schema] = MappingProxyType({})
    """Named outputs, which a pipeline file calls ``NODE.NAME``, beside ``output_schema`` or in its place.

    The class says which there are, by name, and whether there is one without (it then has ``output_schema``, too); an instance
    may have other schemas for the same names. Rows of named outputs keep their order within each stream and output.
    """
    statuses: ClassVar[Mapping[str, str]]
    """Every value of the column ``status``, with its meaning; ``ok`` comes first. The same for all outputs that have it."""
    good_statuses: ClassVar[Collection[str]] = frozenset({"ok"})
    """Those by which nothing is wrong with a row. All others are told at the end of a run, and fail one with ``--strict``."""
    takes_kept_frames: ClassVar[bool] = False
    """Whether rows may name frames that their source keeps on a device: it takes them by ``operators.frames.admit_frames``."""
    losses: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Counters of ``metrics`` that tell of what was lost without a row whose status says so, with their meaning."""

    def __init__(self, options: Any, context: Context) -> None:
        self.options = options
        self.context = context

    @classmethod
    def examine(cls, options: Any, name: str) -> pa.Schema | Mapping[str, pa.Schema] | None:
        """Look at what ``options`` refer to, such as a checkpoint's header, without building anything; for ``check``.

        Return the output schema that an operator with these options would have, None where only building it tells; where it
        has named outputs, a mapping of those that are known (``""``: the one without a name). Raise a ``StreambankError`` for
        what would fail at the start; ``name`` is the node's name for messages.
        """
        schema = getattr(cls, "output_schema", None)
        return schema if not cls.outputs else cls.outputs if schema is None else {"": schema, **cls.outputs}

    @classmethod
    def takes(cls, options: Any) -> pa.Schema | None:
        """Return what rows of the input must have with these options, None where only building the operator tells."""
        return getattr(cls, "input_schema", None)

    @classmethod
    def keyed(cls, options: Any) -> bool:
        """Return whether state belongs to streams. False: one memory for all streams of a shard, which cannot be cut.

        A method because options may decide it; asked before anything is built, so that ``check`` can refuse a rescale.
        """
        return True

    @classmethod
    def cautions(cls, options: Any, align_s: float | None) -> Sequence[tuple[str, str]]:
        """Return options that are allowed but hardly meant, with the reason; ``check`` warns of them.

        ``align_s``: the engine's, None where inputs are not aligned.
        """
        return ()

    @abstractmethod
    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        """Take rows of many streams, in order within each stream; return a list of output rows, in order within each stream."""

    def control(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        """Take control rows (questions, prompts, labels); may answer at once. Only where ``control_schema`` is set."""
        raise SchemaError(f"{self.context.name}: this operator takes no control rows; remove 'control' from the pipeline file")

    def advance(self, watermark_us: int) -> Sequence[Emitted]:
        """Take note that all rows before this event time have been handed over; return rows that waited for it.

        Called in aligned runs only, with rising times in microseconds. Without alignment an operator knows event time from its
        rows: the latest one it has accepted.
        """
        return []

    def flush(self) -> Sequence[Emitted]:
        """Return rows that need no more input; called before ``snapshot``, after ``close_stream`` and at the end.

        For operators that answer later, or have something left to say of streams that end.
        """
        return []

    @abstractmethod
    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all state, or of what changed since the last call of ``snapshot``."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Replace all state by a full ``state``. Raise ``RecoveryError`` naming what differs if it does not fit."""

    @abstractmethod
    def close_stream(self, stream_id: str) -> None:
        """Forget a stream and free its slot. An unknown stream is no error; the same id may start over later.

        What is left to say of it may be returned up to the next ``flush``.
        """

    def metrics(self) -> dict[str, float]:
        """Return gauges for the progress line and Prometheus: ``bank_bytes``, ``streams``, counters of the whole run."""
        return {}

    def close(self) -> None:  # noqa: B027 - most operators have nothing to end
        """End processes and threads, unmap memory, close files. May be called twice; nothing else is called afterwards."""
