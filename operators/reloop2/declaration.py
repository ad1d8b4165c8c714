"""What can be known of ``reloop2`` and ``ctr_windows`` before they are built. Imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import pyarrow as pa

from connectors import records
from models.hub import weights_file
from models.reloop2.header import read_model
from operators.base import Operator
from operators.reloop2.budget import check_memory
from operators.reloop2.config import CtrWindowsOptions, ReLoop2Options, time_cautions
from operators.reloop2.schemas import (
    CONTROL,
    IMPRESSION,
    LOSSES,
    STATUSES,
    WINDOW,
    WINDOW_STATUSES,
    prediction_schema,
)

__all__ = ["CtrWindowsDeclaration", "ReLoop2Declaration", "fingerprint"]


class ReLoop2Declaration(Operator):
    """A frozen CTR model and an error memory that follows what the model has not seen (ReLoop2, KDD 2023)."""

    implementation = "operators.reloop2.operator:ReLoop2Operator"
    Options = ReLoop2Options
    input_schema = IMPRESSION
    control_schema = CONTROL
    output_schema = prediction_schema("int64", "")  # of an instance: with its id_type and its fingerprint
    statuses = STATUSES
    good_statuses = frozenset({"ok", "model_swapped"})
    losses = LOSSES

    @classmethod
    def examine(cls, options: ReLoop2Options, name: str) -> pa.Schema:
        """Check the checkpoint's header and the memory budget; return the output schema."""
        header = read_model(weights_file(options.checkpoint))
        check_memory(options, name, header.hidden_dim)
        return prediction_schema(options.id_type, fingerprint(options, header.model_id))

    @classmethod
    def keyed(cls, options: ReLoop2Options) -> bool:
        """Return whether every stream has a memory of its own."""
        return options.scope == "per_key"

    @classmethod
    def cautions(cls, options: ReLoop2Options, align_s: float | None) -> Sequence[tuple[str, str]]:
        """Say which lengths of event time do not go together."""
        return time_cautions(options, align_s)


class CtrWindowsDeclaration(Operator):
    """Metrics of all predictions of a shard; ``stream_id`` of its rows is the operator's name."""

    implementation = "operators.reloop2.windows:CtrWindows"
    Options = CtrWindowsOptions
    input_schema = records.key_schema(
        "ctr_prediction", 1, [pa.field("y_base", pa.float32()), pa.field("y_pred", pa.float32()), pa.field("flags", pa.int32())]
    )
    control_schema = CONTROL
    output_schema = WINDOW
    statuses = WINDOW_STATUSES
    losses = {name: LOSSES[name] for name in ("late", "early_refused", "early_expired")}  # noqa: RUF012 (as declared)

    @classmethod
    def keyed(cls, options: CtrWindowsOptions) -> bool:
        """Return False: windows are of all streams."""
        return False

    @classmethod
    def cautions(cls, options: CtrWindowsOptions, align_s: float | None) -> Sequence[tuple[str, str]]:
        """Say which lengths of event time do not go together."""
        return time_cautions(options, align_s)


def fingerprint(options: ReLoop2Options, model_id: str) -> str:
    """Return a name of everything that decides the output, besides models that come later."""
    values = dataclasses.asdict(options) | {"checkpoint": model_id, "lists_path": None}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
