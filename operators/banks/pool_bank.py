"""PoolBank: a small pool of learned rows, read by likeness: cosine top-k, or the nearest row (a codebook).

The keys and whatever stands beside them belong to the whole operator, not to a stream; they are written as a whole (weights
loaded, a training step) and read in batches. Ties go to the lowest index, on every device. Knows no method and no stream.
"""

# M rows of the pool, D key width, K rows read, leading dimensions of queries: ...

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from connectors.errors import ConfigError, RecoveryError
from operators.banks.slot_bank import RowSpec
from operators.state import State

__all__ = ["PoolBank", "PoolRead"]

_QUERIES = 65_536  # scored at a time, so that the scores of a large batch do not fill the memory
_SCORES = 1 << 24


@dataclass(frozen=True, slots=True)
class PoolRead:
    """Rows chosen for each query, best first."""

    score: Tensor
    """[..., K] float32: cosine, or minus the squared distance."""
    index: Tensor
    """[..., K] int64."""
    valid: Tensor
    """[..., K] bool: false where the mask left fewer than K rows; score is then -inf and index 0."""


class PoolBank:
    """``size`` rows: a key [D] each, and the named columns. All rows start at zero; fill them by ``write``."""

    def __init__(
        self,
        size: int,
        dim: int,
        columns: Mapping[str, RowSpec] | None = None,
        *,
        metric: str = "cosine",
        name: str = "pool",
        device: torch.device | str = "cpu",
        budget_bytes: int | None = None,
    ) -> None:
        """``metric``: cosine, or l2. Raises ``ConfigError`` for what cannot be, and where ``budget_bytes`` do not suffice."""
        if size < 1 or dim < 1:
            raise ConfigError(f"{name}: a pool of {size} rows with keys of {dim} is empty; both must be 1 or more")
        if metric not in ("cosine", "l2"):
            raise ConfigError(f"{name}: metric {metric!r} is not known; use 'cosine' or 'l2'")
        self.name = name
        self.size = size
        self.dim = dim
        self.metric = metric
        self.device = torch.device(device)
        self.specs = dict(columns or {})
        if "key" in self.specs:
            raise ConfigError(f"{name}: a column may not be called 'key'; rename it")
        need = self.bytes_needed(size, dim, self.specs)
        if budget_bytes is not None and need > budget_bytes:
            raise ConfigError(f"{name}: {size} rows need {need} bytes, but the budget is {budget_bytes}; make the pool smaller")
        self.key_MD = torch.zeros(size, dim, device=self.device)
        self.columns = {
            key: torch.zeros((size, *spec.shape), dtype=spec.dtype, device=self.device) for key, spec in self.specs.items()
        }
        """name → [M, *row]"""
        self._match_MD = torch.zeros_like(self.key_MD)  # the keys as they are compared: of unit length for the cosine
        self._square_M = torch.zeros(size, device=self.device)
        self._twin_M: Tensor | None = None  # the first row with an equal key, where any are equal
        self._prepare()

    @staticmethod
    def bytes_needed(size: int, dim: int, columns: Mapping[str, RowSpec]) -> int:
        """Return the bytes of such a pool."""
        return size * (4 * (2 * dim + 1) + sum(spec.bytes for spec in columns.values()))

    def bytes(self) -> dict[str, int]:
        """Return the bytes of all tensors."""
        tensors = [self.key_MD, self._match_MD, self._square_M, *self.columns.values()]
        return {"device": sum(t.numel() * t.element_size() for t in tensors)}

    # Writes

    def clear(self) -> None:
        """Set all rows to zero."""
        for held in (self.key_MD, *self.columns.values()):
            held.zero_()
        self._prepare()

    def write(self, key_MD: Tensor, columns: Mapping[str, Tensor] | None = None) -> None:
        """Replace all rows: keys [M, D] and every column [M, *row] (copied). Raises ``ValueError`` for other shapes."""
        given = dict(columns or {})
        if given.keys() != self.columns.keys():
            raise ValueError(f"{self.name}: columns {sorted(given)} were given, the pool has {sorted(self.columns)}")
        for name, new, held in [("key", key_MD, self.key_MD), *((n, given[n], self.columns[n]) for n in self.columns)]:
            if new.shape != held.shape:
                raise ValueError(f"{self.name}: {name} is {list(new.shape)}, the pool's is {list(held.shape)}")
        if not bool(torch.isfinite(key_MD).all()):
            raise ValueError(f"{self.name}: keys hold NaN or infinity; they could never be read")
        self.key_MD.copy_(key_MD.detach())
        for name, held in self.columns.items():
            held.copy_(given[name].detach())
        self._prepare()

    def _prepare(self) -> None:
        if self.metric == "cosine":
            self._match_MD.copy_(F.normalize(self.key_MD, dim=1))
        else:
            self._match_MD.copy_(self.key_MD)
            self._square_M.copy_(self.key_MD.square().sum(1))
        kinds_UD, kind_M = torch.unique(self._match_MD, dim=0, return_inverse=True)
        self._twin_M = None
        if len(kinds_UD) < self.size:
            first_U = torch.full((len(kinds_UD),), self.size, device=self.device)
            rows_M = torch.arange(self.size, device=self.device)
            self._twin_M = first_U.scatter_reduce(0, kind_M, rows_M, "amin")[kind_M]
        self._changed = True

    # Reads

    def search(self, query: Tensor, k: int, *, mask_M: Tensor | None = None) -> PoolRead:
        """Return the ``k`` rows most alike for queries [..., D]; equal scores in the order of their index.

        ``mask_M`` (bool) leaves rows out where false. A query or key of length zero has cosine 0 with everything; a query
        that is not finite finds nothing. Raises ``ValueError`` for ``k`` beyond the pool or queries of another width.
        """
        if not 1 <= k <= self.size:
            raise ValueError(f"{self.name}: {k} rows asked of a pool of {self.size}; ask for 1 to {self.size}")
        if query.shape[-1:] != (self.dim,):
            raise ValueError(f"{self.name}: queries are {list(query.shape)}, keys have width {self.dim}")
        flat_QD = query.reshape(-1, self.dim).to(self.device, torch.float32)
        chunk = max(1, min(_QUERIES, _SCORES // self.size))
        parts = [self._best(part_QD, k, mask_M) for part_QD in torch.split(flat_QD, chunk)]
        score, index = (torch.cat(column).view(*query.shape[:-1], k) for column in zip(*parts, strict=True))
        valid = score > -torch.inf
        return PoolRead(score, index.where(valid, 0), valid)

    def nearest(self, query: Tensor, *, mask_M: Tensor | None = None) -> Tensor:
        """Return the index of the row most alike, [...]; the lowest of several equal ones. -1 where the mask leaves none."""
        found = self.search(query, 1, mask_M=mask_M)
        return found.index[..., 0].where(found.valid[..., 0], -1)

    def gather(self, index: Tensor, name: str) -> Tensor:
        """Return rows [..., *row] of a column (or "key") at these indices."""
        source = self.key_MD if name == "key" else self.columns[name]
        return source.index_select(0, index.reshape(-1)).view(*index.shape, *source.shape[1:])

    def _best(self, query_QD: Tensor, k: int, mask_M: Tensor | None) -> tuple[Tensor, Tensor]:
        score_QM = self._scores(query_QD)
        if mask_M is not None:
            score_QM = score_QM.masked_fill(~mask_M, -torch.inf)
        if k == 1:  # argmax promises no order among equal values: the first place where the maximum stands
            best_Q1 = score_QM.amax(1, keepdim=True)
            return best_Q1, (score_QM == best_Q1).to(torch.uint8).cumsum(1, dtype=torch.int32).eq(0).sum(1, keepdim=True)
        score_QM, index_QM = score_QM.sort(dim=1, descending=True, stable=True)
        return score_QM[:, :k], index_QM[:, :k]

    def _scores(self, query_QD: Tensor) -> Tensor:
        # Reduced precision (TF32, bfloat16), where the process allows it, would change which row is best.
        wide = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
        if self.metric == "cosine":
            score_QM = (F.normalize(query_QD, dim=1).to(wide) @ self._match_MD.T.to(wide)).float()
        else:
            square_Q1 = query_QD.square().sum(1, keepdim=True)
            score_QM = 2 * (query_QD.to(wide) @ self._match_MD.T.to(wide)).float() - square_Q1 - self._square_M
        score_QM = score_QM.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        # Kernels may round two columns differently; equal keys must tie all the same.
        return score_QM if self._twin_M is None else score_QM.index_select(1, self._twin_M)

    # Snapshots

    def fingerprint(self) -> str:
        """Return 16 hex digits over keys and columns: which pool a token or a log belongs to."""
        digest = hashlib.sha256()
        for tensor in (self.key_MD, *(self.columns[name] for name in sorted(self.columns))):
            digest.update(
                str(list(tensor.shape)).encode() + bytes(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            )
        return digest.hexdigest()[:16]

    def export(self, state: State, *, incremental: bool = False) -> None:
        """Add a copy of the pool to what ``state`` shares; where incremental, only if it changed since ``mark_clean``."""
        if incremental and not self._changed:
            return
        state.shared[f"{self.name}.key"] = self.key_MD.to("cpu", copy=True)
        for name, column in self.columns.items():
            state.shared[f"{self.name}.{name}"] = column.to("cpu", copy=True)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._changed = False

    def load(self, state: State, /) -> None:
        """Take the pool from a full ``state``. Raise ``RecoveryError`` where it does not fit."""
        for name, held in {"key": self.key_MD, **self.columns}.items():
            stored = state.shared.get(f"{self.name}.{name}")
            if stored is None:
                raise RecoveryError(f"the snapshot has no {self.name}.{name}; it has {sorted(state.shared)}")
            if stored.shape != held.shape or stored.dtype != held.dtype:
                raise RecoveryError(
                    f"{self.name}.{name} of the snapshot is {list(stored.shape)} {stored.dtype}, the pool's is "
                    f"{list(held.shape)} {held.dtype}; resume with the options of the first run"
                )
            held.copy_(stored)
        self._prepare()
