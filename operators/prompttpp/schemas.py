"""PromptTPP's rows: events in, scores and predictions out. Decides nothing."""

# B rows of a batch, K types, N prompts read

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors import records
from models.prompttpp.config import TppConfig
from operators.streams import STREAM_LOSSES, STREAM_STATUSES

__all__ = ["GOOD", "LOSSES", "QUANTILES", "STATUSES", "Scores", "event_schema", "score_schema"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[Any]

QUANTILES = (0.1, 0.5, 0.9)

STATUSES: Mapping[str, str] = {
    "ok": "scored, and the next event predicted",
    "warmup": "one of a key's first three events: its own mean gap is not known yet, the network's stands in",
    "long_gap": "scored after a pause of more than 30 mean gaps, which is integrated in pieces",
    "late_applied": "older than its key's latest event, put where it belongs; not scored, not learned from",
    "late_dropped": "older than its key's latest event by more than allowed_lateness_s, or than its window; not used",
    "unknown_type": "the network does not know the type; not used",
    "ahead": "further ahead of its key's latest event than max_skew_s; not used",
    **STREAM_STATUSES,
    "late": "sequence did not rise within the key",
}

GOOD = frozenset({"ok", "warmup", "long_gap", "late_applied"})

LOSSES: Mapping[str, str] = {
    **STREAM_LOSSES,
    "unlearned": "scored events were not learned from: their key was evicted, a late event came between, the window was full",
    "skipped_steps": "learning steps were left out since loss or gradient were not finite",
}


def event_schema(types: str) -> pa.Schema:
    """Return the schema of events; ``types`` as the option."""
    return records.key_schema("event", 1, [pa.field("type", pa.string() if types == "name" else pa.int32())])


def score_schema(config: TppConfig, model_id: str = "") -> pa.Schema:
    """Return the output schema ``event_score.v1`` of a network."""
    ids = pa.list_(pa.int16(), config.top_k) if config.pool else pa.int16()
    prompts = [pa.field("prompt_ids_v", ids)] if config.pools > 1 else []
    fields = [
        pa.field("type", pa.int32()),
        pa.field("loglik", pa.float32()),
        pa.field("pit", pa.float32()),
        pa.field("type_rank", pa.int16()),
        *(records.field(f"next_dt_{name}", pa.float64(), unit="s", infinite=True) for name in ("mean", "p10", "median", "p90")),
        pa.field("next_t", records.TIME_TYPE),
        pa.field("next_type", pa.int32()),
        pa.field("type_probs", pa.list_(pa.float32(), config.types)),
        pa.field("survival_horizon", pa.float32()),
        *([pa.field("prompt_ids_k", ids)] if config.pool else []),
        *prompts,
        pa.field("n_history", pa.int32()),
        pa.field("model_version", pa.int64()),
    ]
    return records.output_schema("event_score", 1, fields, {"streambank.model": model_id})


class Scores:
    """The columns of a batch of ``rows`` events, filled in any order; null where nothing is set."""

    NUMBERS: ClassVar[tuple[str, ...]] = ("loglik", "pit", "survival_horizon")

    def __init__(self, rows: int, config: TppConfig) -> None:
        self.scored_B, self.predicted_B, self.used_B, self.read_B = (np.zeros(rows, np.bool_) for _ in range(4))
        self.type_B = np.full(rows, -1, np.int32)
        self.loglik_B, self.pit_B, self.survival_B = (np.full(rows, np.nan, np.float32) for _ in range(3))
        self.rank_B = np.zeros(rows, np.int16)
        self.next_BX = np.full((rows, 1 + len(QUANTILES)), np.nan)
        """Mean and quantiles of the time from the key's latest event to the next, seconds."""
        self.latest_us_B = np.zeros(rows, np.int64)
        self.probability_BK = np.zeros((rows, config.types), np.float32)
        self.prompt_BXN = np.zeros((rows, min(config.pools, 2), config.top_k if config.pool else 0), np.int16)
        self.history_B, self.version_B = np.zeros(rows, np.int32), np.zeros(rows, np.int64)
        self._time_scale = config.time_scale
        self.chosen_nJN: list[Ints] = []
        """Prompts that were read, of all pools."""

    def note_score(self, rows: Ints, log_rate_n: Floats, integral_n: Floats, rank_n: Ints) -> None:
        """Set what is said of events that came."""
        self.loglik_B[rows] = log_rate_n - integral_n - np.log(self._time_scale)
        self.pit_B[rows] = -np.expm1(-integral_n)
        self.rank_B[rows] = rank_n

    def note_next(self, rows: Ints, next_nX: Floats, type_nK: Floats, survival_n: Floats) -> None:
        """Set what is said of the next ones; ``next_nX`` in model units."""
        self.next_BX[rows] = next_nX * self._time_scale
        self.probability_BK[rows] = type_nK
        self.survival_B[rows] = survival_n

    def note_prompts(self, rows: Ints, index_nJN: Ints) -> None:
        """Set which prompts were read: those of the last pools are told."""
        sides = self.prompt_BXN.shape[1]
        self.prompt_BXN[rows] = index_nJN[:, index_nJN.shape[1] - sides :]
        self.chosen_nJN.append(index_nJN)

    def columns(self) -> dict[str, pa.Array]:
        """Return the columns by name."""
        unscored, unpredicted, unused = ~self.scored_B, ~self.predicted_B, ~self.used_B
        finite_B = np.isfinite(self.next_BX[:, 0]) & (self.next_BX[:, 0] < 1e11)  # later times have no timestamp
        moved_us_B = np.where(finite_B & self.predicted_B, np.rint(self.next_BX[:, 0] * 1e6), 0).astype(np.int64)
        next_us = pa.array(self.latest_us_B + moved_us_B, mask=unpredicted | ~finite_B).cast(records.TIME_TYPE)
        columns: dict[str, pa.Array] = {
            "type": pa.array(self.type_B, mask=self.type_B < 0),
            "loglik": pa.array(self.loglik_B, mask=unscored),
            "pit": pa.array(self.pit_B, mask=unscored),
            "type_rank": pa.array(self.rank_B, mask=unscored),
            "next_t": next_us,
            "next_type": pa.array(self.probability_BK.argmax(1).astype(np.int32), mask=unpredicted),
            "type_probs": _lists(self.probability_BK, unpredicted),
            "survival_horizon": pa.array(self.survival_B, mask=unpredicted),
            "n_history": pa.array(self.history_B, mask=unused),
            "model_version": pa.array(self.version_B, mask=unused),
        }
        for number, name in enumerate(("mean", "p10", "median", "p90")):
            columns[f"next_dt_{name}"] = pa.array(np.ascontiguousarray(self.next_BX[:, number]), mask=unpredicted)
        for number, name in enumerate(("prompt_ids_k", "prompt_ids_v")[: self.prompt_BXN.shape[1]]):
            columns[name] = _lists(self.prompt_BXN[:, number], ~self.read_B)
        return columns


def _lists(values_BN: npt.NDArray[Any], null_B: npt.NDArray[np.bool_]) -> pa.Array:
    """Return fixed-size lists, null where ``null_B``."""
    flat = pa.array(np.ascontiguousarray(values_BN).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_BN.shape[1], mask=pa.array(null_B))
