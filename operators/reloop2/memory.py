"""What ReLoop2 reads from: a small protocol, and the choice between a sketch of all rows and the latest rows themselves.

A memory knows keys, labels and base predictions; no ids, no time. A row's *key* is made once from its hidden vector, serves the
read, and is kept until the label comes. Invariant: the answers depend on the order of the writes, not on their grouping.
"""

# B rows of a call, D hidden width, W width of a key, K read-outs, L slots of a call, S slots, N slots of a snapshot

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.reloop2.base import CtrModel
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.ids import Bools, Floats, Ints
from operators.reloop2.row_memory import RowMemory
from operators.reloop2.rules import Recollection
from operators.reloop2.sketch_memory import SketchMemory
from operators.state import State

__all__ = ["ErrorMemory", "make_memory"]


class ErrorMemory(Protocol):
    """Past impressions: hidden vector, label, base prediction. Slots are kept apart where there is more than one."""

    key_width: int
    key_dtype: torch.dtype
    needs_base: bool
    """The host has to know base predictions when it writes."""

    def keys(self, hidden_BD: Tensor) -> Tensor:
        """Return the keys of hidden vectors, [B, W]."""
        ...

    def read(self, keys_BW: Tensor, slots_B: Ints) -> Recollection:
        """Return what is known about rows like these."""
        ...

    def write(self, keys_BW: Tensor, label_B: Tensor, base_B: Tensor, slots_B: Ints, known_B: Floats | None = None) -> Ints:
        """Take rows, in order; return for each where it stands, for ``holds``. Only labels lie on the CPU.

        ``known_B``: base predictions as far as the host knows them, else NaN; only where ``needs_base``.
        """
        ...

    def holds(self, written_B: Ints, slots_B: Ints) -> Bools:
        """Return which rows still count as they were written, so that ``correct`` is exact."""
        ...

    def correct(self, keys_BW: Tensor, label_B: Tensor, slots_B: Ints) -> None:
        """Change rows that were written with label 0 to ``label_B``, which lie on the CPU."""
        ...

    def written(self) -> npt.NDArray[np.float64]:
        """Return how many rows each slot holds (under half-life their weight), [S]."""
        ...

    def folded(self) -> Bools:
        """Return which slots have lost precision since their counters had come near their limit, [S]."""
        ...

    def clear(self, slots_L: Ints) -> None:
        """Forget everything in these slots, permanently: what was written before can no longer be corrected."""
        ...

    def release(self, slots_N: Ints) -> None:
        """Make slots as new, for other streams."""
        ...

    def close(self) -> None:
        """Close files. Nothing else is called afterwards."""
        ...

    def adopt(self, model: CtrModel) -> None:
        """Make keys for another model of the same hidden width from now on."""
        ...

    def bytes(self) -> dict[str, int]:
        """Return the bytes of each tier."""
        ...

    def export(self, slots_N: Ints, state: State, *, incremental: bool) -> None:
        """Add these slots to ``state``; where incremental, what changed since ``mark_clean``."""
        ...

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        ...

    def load(self, slots_N: Ints, state: State) -> None:
        """Take these slots from a full ``state``."""
        ...


def make_memory(options: ReLoop2Options, model: CtrModel, slots: int, device: torch.device) -> ErrorMemory:
    """Allocate the memory that ``options`` name."""
    if options.mode == "sketch":
        return SketchMemory(options, model, slots, device)
    return RowMemory(options, model, device)
