"""Rows that ``fourd_vla`` takes and gives, and its statuses. Knows no streams and no memory."""

# R rows of a batch, K frames kept at most

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors import records
from operators.streams import STREAM_STATUSES

__all__ = ["FEATURE", "STATUSES", "Selections", "output_schema"]

STATUSES: Mapping[str, str] = {
    "ok": "the frames to see now, the row's own included",
    "new_episode": "as ok, and the stream starts over here because its column `episode` changed or `reset` is true",
    **STREAM_STATUSES,
}

FEATURE = records.key_schema("feature", 1, [pa.field("feature", pa.list_(pa.float32())), pa.field("error", pa.string())])
"""A frame that somebody else has encoded."""

_SELECTED = (
    pa.field("selected_sequences", pa.list_(pa.int64())),
    pa.field("selected_times", pa.list_(records.TIME_TYPE)),
    records.field("offsets", pa.list_(pa.int32()), unit="frames"),
    pa.field("similarity", pa.list_(pa.float32())),
    pa.field("coverage", pa.float32()),
    pa.field("worst_coverage", pa.float32()),
    pa.field("valid_depth", pa.float32()),
    pa.field("reference", pa.string()),
)
"""Lists are oldest first. ``offsets``: how many frames ago; ``similarity``: cosines of neighbors; coverage: of the window by
the frames kept (mean and minimum of the best cosine); ``valid_depth``: share of pixels with depth, null without such a column;
``reference``: ``world`` or ``camera``, in whose frame coordinates are."""

_ACTION = (
    pa.field("action", pa.list_(pa.float32(), 7)),
    pa.field("gripper", pa.float32()),
    records.field("latency_ms", pa.float32(), unit="ms"),
    pa.field("model_id", pa.string()),
)
"""``action``: translation, rotation, gripper 0 or 1, in the data's units; ``gripper``: its probability."""


def output_schema(*, acts: bool) -> pa.Schema:
    """Return ``history.v1``, or ``action.v1`` with the columns of the action as well."""
    return records.output_schema("action" if acts else "history", 1, [*_SELECTED, *(_ACTION if acts else ())])


@dataclass(slots=True)
class Selections:
    """What is said of the rows of a batch, filled in by parts; rows without a selection are null."""

    rows: int
    keep: int
    count_R: npt.NDArray[np.int64] = field(init=False)
    """0: nothing was selected."""
    sequence_RK: npt.NDArray[np.int64] = field(init=False)
    time_us_RK: npt.NDArray[np.int64] = field(init=False)
    offset_RK: npt.NDArray[np.int64] = field(init=False)
    similarity_RK: npt.NDArray[np.float32] = field(init=False)
    coverage_R2: npt.NDArray[np.float32] = field(init=False)
    valid_depth_R: npt.NDArray[np.float32] = field(init=False)
    """NaN: no column of depth."""
    reference_R: npt.NDArray[np.int8] = field(init=False)
    """Index into ``REFERENCES``."""
    action_R7: npt.NDArray[np.float32] = field(init=False)
    gripper_R: npt.NDArray[np.float32] = field(init=False)
    latency_ms_R: npt.NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.rows, self.keep)
        self.count_R = np.zeros(self.rows, np.int64)
        self.sequence_RK, self.time_us_RK, self.offset_RK = (np.zeros(shape, np.int64) for _ in range(3))
        self.similarity_RK = np.zeros(shape, np.float32)
        self.coverage_R2 = np.zeros((self.rows, 2), np.float32)
        self.valid_depth_R = np.full(self.rows, np.nan, np.float32)
        self.reference_R = np.full(self.rows, -1, np.int8)
        self.action_R7 = np.zeros((self.rows, 7), np.float32)
        self.gripper_R, self.latency_ms_R = (np.zeros(self.rows, np.float32) for _ in range(2))

    def columns(self, *, model_id: str | None) -> dict[str, pa.Array]:
        """Return the columns of the output; ``model_id``: of the policy, where there is one."""
        none_R = self.count_R == 0
        made = {
            "selected_sequences": self._lists(pa.array(self._flat(self.sequence_RK, self.count_R)), self.count_R),
            "selected_times": self._lists(
                pa.array(self._flat(self.time_us_RK, self.count_R)).view(records.TIME_TYPE), self.count_R
            ),
            "offsets": self._lists(pa.array(self._flat(self.offset_RK, self.count_R), pa.int32()), self.count_R),
            "similarity": self._lists(
                pa.array(self._flat(self.similarity_RK, (self.count_R - 1).clip(0))), (self.count_R - 1).clip(0)
            ),
            "coverage": pa.array(self.coverage_R2[:, 0], mask=none_R),
            "worst_coverage": pa.array(self.coverage_R2[:, 1], mask=none_R),
            "valid_depth": pa.array(self.valid_depth_R, mask=none_R | np.isnan(self.valid_depth_R)),
            "reference": pa.DictionaryArray.from_arrays(
                pa.array(self.reference_R, mask=none_R | (self.reference_R < 0)), pa.array(["camera", "world"])
            ).cast(pa.string()),
        }
        if model_id is not None:
            made["action"] = pa.FixedSizeListArray.from_arrays(pa.array(self.action_R7.ravel()), 7, mask=pa.array(none_R))
            made["gripper"] = pa.array(self.gripper_R, mask=none_R)
            made["latency_ms"] = pa.array(self.latency_ms_R, mask=none_R)
            made["model_id"] = pa.array([model_id] * self.rows)
        return made

    def _flat(self, values_RK: npt.NDArray[np.generic], length_R: npt.NDArray[np.int64]) -> npt.NDArray[np.generic]:
        return values_RK[np.arange(self.keep) < length_R[:, None]]

    def _lists(self, values: pa.Array, length_R: npt.NDArray[np.int64]) -> pa.ListArray:
        offsets = np.concatenate([[0], np.cumsum(length_R)])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=pa.array(self.count_R == 0))
