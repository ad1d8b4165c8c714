"""How a bank's budgets become tiers: which one holds all blocks, how many, and how many copies the others keep.

Plain arithmetic, done once. Invariant: what the tiers allocate never exceeds the budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from connectors.errors import ConfigError
from operators.banks.blocks.segments import SegmentLayout
from operators.banks.blocks.spec import REPRESENTATIVES, BlockSpec, page_bytes
from operators.banks.slot_bank import RowSpec
from operators.budget import check_budget

__all__ = ["Budget", "TierPlan", "stored_fields"]

_SEGMENT_BYTES = 1 << 30
"""Largest file of blocks."""
_SEGMENTS_PER_STREAM = 4
"""Files that the disk budget must allow each stream, so that one can be dropped while others stay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a bank may take, in bytes, and where representatives lie."""

    device: int
    host: int = 0
    disk: int = 0
    representatives: str = "device"


@dataclass(frozen=True, slots=True)
class TierPlan:
    """How many blocks the home holds, how many pages per layer each cache; 0: no such tier."""

    home: str
    blocks: int
    device_pages: int
    host_pages: int
    segment_blocks: int

    @staticmethod
    def of(name: str, spec: BlockSpec, fields: Mapping[str, RowSpec], budget: Budget, slots: int) -> TierPlan:
        """Divide the budget. Raise ``ConfigError`` where it does not hold a block per stream and all representatives."""
        near = {"device": budget.device, "host": budget.host}
        if budget.representatives not in near:
            raise ConfigError(f"{name}: representatives={budget.representatives!r}; use 'device' or 'host'")
        for tier, given in (*near.items(), ("disk", budget.disk)):
            if given < 0:
                raise ConfigError(f"{name}: {tier}_bytes={given}; it must be 0 (no such tier) or more")
        mean = spec.layers * spec.representative.bytes
        block = spec.layers * page_bytes(fields)
        home = "disk" if budget.disk else "host" if budget.host else "device"
        segment_blocks = 0
        if home == "disk":
            stored = stored_fields(spec, fields)
            check_budget(
                f"{name}: disk_bytes",
                bytes_per_stream=_SEGMENTS_PER_STREAM * SegmentLayout(spec.layers, 1, stored).size,
                streams=slots,
                budget=budget.disk,
                hint="Raise disk_bytes, or lower the number of streams.",
            )
            most = min(budget.disk // (_SEGMENTS_PER_STREAM * slots), _SEGMENT_BYTES)
            segment_blocks = max(1, (most - SegmentLayout.overhead(len(stored))) // (block + mean))
            blocks = budget.disk // SegmentLayout(spec.layers, segment_blocks, stored).size * segment_blocks
        else:
            each = block + (mean if budget.representatives == home else 0)
            check_budget(
                f"{name}: {home}_bytes",
                bytes_per_stream=each,
                streams=slots,
                budget=near[home],
                hint=f"Raise {home}_bytes, or lower the number of streams.",
            )
            blocks = near[home] // each
            near[home] -= blocks * block
        left = near[budget.representatives] - blocks * mean
        if left < 0:
            raise ConfigError(
                f"{name}: {budget.representatives}_bytes={getattr(budget, budget.representatives)} does not hold the "
                f"representatives of the {blocks} blocks that {home}_bytes allows, {blocks * mean} bytes; raise it, lower "
                f"{home}_bytes, or set representatives to the other of 'device' and 'host'"
            )
        near[budget.representatives] = left
        device_pages = 0 if home == "device" else min(near["device"] // block, blocks)
        host_pages = min(near["host"] // block, blocks) if home == "disk" else 0
        return TierPlan(home, blocks, device_pages, host_pages, segment_blocks)


def stored_fields(spec: BlockSpec, fields: Mapping[str, RowSpec]) -> dict[str, RowSpec]:
    """Return what is stored of a page: its representative, first so that a restart reads them in few runs, and its fields."""
    return {REPRESENTATIVES: spec.representative, **fields}
