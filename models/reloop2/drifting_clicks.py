"""A made-up click stream with known truth and known shifts: something to train on and to replay where no data is available.

Users belong to groups and items to categories; the log-odds of a click are bias + user + item + affinity(group, category). The
affinities of one third of the categories are redrawn at the first shift, the bias rises at the second, and both go back at
the third. Everything comes from a seed.
"""

# R rows

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

__all__ = ["DriftConfig", "make_stream"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftConfig:
    """Sizes of the made-up world."""

    users: int = 600
    groups: int = 16
    items: int = 300
    categories: int = 40
    training_rows: int = 200_000
    steady_rows: int = 10_000
    """After the training rows, unchanged."""
    shifted_rows: int = 40_000
    """One third of the categories redrawn."""
    raised_rows: int = 30_000
    """The bias raised as well."""
    back_rows: int = 30_000
    """As before the shifts."""
    raise_by: float = 0.8
    """Logit."""
    gap_ms: float = 20.0
    """Mean time between impressions."""
    label_delay_s: float = 20.0
    """Mean time from an impression to its label."""
    bias: float = -1.5

    @property
    def phase_rows(self) -> tuple[int, ...]:
        """Rows of the phases -1 (training), 0, 1, 2, 3."""
        return (self.training_rows, self.steady_rows, self.shifted_rows, self.raised_rows, self.back_rows)


def make_stream(config: DriftConfig, seed: int) -> pa.Table:
    """Return impressions in time order.

    Columns: impression_id, event_time (us, UTC), label_time, user_id, user_group, item_id, cate_id, phase (-1: training),
    p_true, click (0/1).
    """
    rng = np.random.default_rng(seed)
    group_of_user = rng.integers(0, config.groups, config.users)
    category_of_item = rng.integers(0, config.categories, config.items)
    user, item = rng.normal(0, 0.4, config.users), rng.normal(0, 0.4, config.items)
    before = rng.normal(0, 0.9, (config.groups, config.categories))
    after = before.copy()
    redrawn = rng.permutation(config.categories)[: config.categories // 3]
    after[:, redrawn] = rng.normal(0, 0.9, (config.groups, len(redrawn)))

    rows = sum(config.phase_rows)
    phase_R = np.repeat(np.arange(-1, 4), config.phase_rows)
    user_R, item_R = rng.integers(0, config.users, rows), rng.integers(0, config.items, rows)
    group_R, category_R = group_of_user[user_R], category_of_item[item_R]
    shifted_R = (phase_R == 1) | (phase_R == 2)
    affinity_R = np.where(shifted_R, after[group_R, category_R], before[group_R, category_R])
    logit_R = config.bias + config.raise_by * (phase_R == 2) + user[user_R] + item[item_R] + affinity_R
    p_R = 1 / (1 + np.exp(-logit_R))
    click_R = rng.random(rows) < p_R
    start_us = np.datetime64("2026-01-01", "us").astype(np.int64)
    time_R = start_us + np.cumsum(rng.exponential(config.gap_ms * 1e3, rows)).astype(np.int64)
    label_R = time_R + rng.exponential(config.label_delay_s * 1e6, rows).astype(np.int64)
    moment = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "impression_id": pa.array(np.arange(rows)),
            "event_time": pa.array(time_R).cast(moment),
            "label_time": pa.array(label_R).cast(moment),
            "user_id": pa.array(user_R.astype(np.int32)),
            "user_group": pa.array(group_R.astype(np.int32)),
            "item_id": pa.array(item_R.astype(np.int32)),
            "cate_id": pa.array(category_R.astype(np.int32)),
            "phase": pa.array(phase_R.astype(np.int8)),
            "p_true": pa.array(p_R.astype(np.float32)),
            "click": pa.array(click_R.astype(np.int8)),
        }
    )
