"""What the memory and the tables of waiting rows cost, told by options and the width of hidden vectors. Needs no torch."""

from __future__ import annotations

from operators.budget import check_budget, lsh_bytes, ring_bytes, sketch_bytes
from operators.reloop2.config import ReLoop2Options

__all__ = [
    "COLUMNS",
    "JOIN_BLOCK",
    "SCAN_PADDING",
    "SLICES",
    "TAIL_ROWS",
    "check_memory",
    "disk_bytes",
    "early_bytes",
    "join_bytes",
    "join_rows",
    "key_bytes",
    "memory_bytes",
    "slice_rows",
]

COLUMNS = ("label", "base")
"""What is remembered of a row beside its key."""
SLICES = 8
"""Of a sliding window, and of rows on disk."""
TAIL_ROWS = 2048
"""Rows that wait in memory before they go to disk together."""
SCAN_PADDING = 64
"""Rows by which a scan may be larger than asked for."""
JOIN_BLOCK = 128
"""Rows of a table of waiting impressions are allocated in multiples of this."""
_INDEX = 2 * 16  # of the index of ids when it is full, per row


def check_memory(options: ReLoop2Options, name: str, hidden_dim: int) -> None:
    """Raise ``ConfigError`` unless the memory and the tables of waiting rows fit into ``bank_gib``."""
    per_slot = memory_bytes(options, hidden_dim)
    per_slot += join_bytes(options.pending_capacity, options.micro_batch, key_bytes(options, hidden_dim))
    if options.sigma > 0:  # the host keeps base predictions, too
        per_slot += 4 * join_rows(options.pending_capacity, options.micro_batch)
    per_slot += early_bytes(options.early_capacity)
    check_budget(
        name,
        bytes_per_stream=per_slot,
        streams=options.max_streams,
        budget=int(options.bank_gib * 2**30),
        hint="Lower bits, arrays, capacity, pending_capacity or max_streams, or raise bank_gib.",
    )


def memory_bytes(options: ReLoop2Options, hidden_dim: int) -> int:
    """Return what the memory of one slot costs."""
    if options.mode == "sketch":
        return sketch_bytes(options.arrays, options.bits, len(COLUMNS), SLICES if options.forgetting == "slices" else 0)
    if options.mode == "posting_lists":
        return disk_bytes(options, hidden_dim)
    need = ring_bytes(options.capacity, hidden_dim, len(COLUMNS), half=True)
    if options.mode == "lsh_table":
        need += lsh_bytes(options.arrays, options.bits, options.slots_per_bucket)
    return need


def slice_rows(options: ReLoop2Options) -> int:
    """Return the rows of one of the slices on disk."""
    return -(-options.capacity // (SLICES * TAIL_ROWS)) * TAIL_ROWS


def disk_bytes(options: ReLoop2Options, dim: int) -> int:
    """Return what centers and tail cost with a center for every fourth row; an eighth or less is usual."""
    centers = (SLICES + 1) * (slice_rows(options) // 4 + SCAN_PADDING)
    return centers * 4 * dim + (TAIL_ROWS + SCAN_PADDING) * (4 * dim + 8)


def key_bytes(options: ReLoop2Options, hidden_dim: int) -> int:
    """Return the size of one key."""
    hidden = 0 if options.mode == "sketch" else hidden_dim
    return 4 * (hidden + (options.arrays if options.mode in ("sketch", "lsh_table") else 0))


def join_rows(capacity: int, slack: int) -> int:
    """Return the rows of a table of waiting impressions."""
    return -(-(capacity + slack) // JOIN_BLOCK) * JOIN_BLOCK


def join_bytes(capacity: int, slack: int, key: int) -> int:
    """Return what the table of waiting impressions of a slot costs, with its index when it is full."""
    return join_rows(capacity, slack) * (1 + 5 * 8 + 2 * 4 + 4 + 2 + key + _INDEX)


def early_bytes(capacity: int) -> int:
    """Return what the labels of a slot that came early cost, with their index when it is full."""
    return capacity * (1 + 8 + 4 + 8 + _INDEX)
