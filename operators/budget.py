"""What memory costs before it is allocated: the sizes of banks as plain numbers, and the check against an option's limit.

Needs no torch, so ``check`` can say what does not fit. Banks allocate what is said here; tests compare.
"""

from __future__ import annotations

from connectors.errors import ConfigError

__all__ = ["check_budget", "lsh_bytes", "ring_bytes", "ring_rows", "sketch_bytes", "slot_bytes"]

_SLOT_COUNTERS = 4
_RING_PADDING = 64  # keys are allocated in multiples of this, so that groups never run past the end


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def check_budget(name: str, *, bytes_per_stream: int, streams: int, budget: int, hint: str) -> None:
    """Raise ``ConfigError`` unless ``streams`` streams fit into ``budget`` bytes. ``hint`` says which options help."""
    need = bytes_per_stream * streams
    if need > budget:
        raise ConfigError(
            f"{name}: banks for {streams} streams need {_size(need)} ({_size(bytes_per_stream)} per stream), but the budget is "
            f"{_size(budget)}; {budget // bytes_per_stream} streams fit. {hint}"
        )


def slot_bytes(row: int, capacity: int) -> int:
    """Return what one stream of a ``SlotBank`` costs: rows of ``row`` bytes, a flag for each, counters."""
    return capacity * (row + 1) + 8 * _SLOT_COUNTERS


def ring_rows(capacity: int) -> int:
    """Return for how many rows a ``RowRing`` has keys."""
    return -(-capacity // _RING_PADDING) * _RING_PADDING


def ring_bytes(capacity: int, dim: int, columns: int, *, half: bool) -> int:
    """Return what a ``RowRing`` costs; ``half``: with a copy of the keys in half precision."""
    return ring_rows(capacity) * dim * (6 if half else 4) + capacity * (4 * columns + 1)


def lsh_bytes(arrays: int, bits: int, slots_per_bucket: int) -> int:
    """Return what an ``LshTable`` costs beside its ring."""
    return (arrays << bits) * 9 * (slots_per_bucket + 1)


def sketch_bytes(arrays: int, bits: int, columns: int, slices: int = 0) -> int:
    """Return what the tables of one slot of a ``SketchBank`` cost; ``slices``: of a sliding window."""
    return (1 + slices) * (arrays << bits) * (8 * (1 + columns) + 1)
