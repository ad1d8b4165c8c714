"""The prompt memory: one PoolBank per look-up of the network, with counts of what was read."""

# J pools, M prompts of a pool, N prompts read, Z tokens, D hidden, Q query width

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.prompttpp.process import PointProcess
from models.prompttpp.prompts import Chosen, Common
from operators.banks.pool_bank import PoolBank
from operators.banks.slot_bank import RowSpec
from operators.state import State

__all__ = ["PromptBank"]

_READS, _COMMON = "prompts.reads", "prompts.common"


class PromptBank:
    """Prompts as a network reads them (``models.prompttpp.prompts.PromptReader``), kept in banks."""

    def __init__(self, model: PointProcess, device: torch.device) -> None:
        """Take over the network's prompts. It must have some."""
        assert model.prompts is not None
        config = model.config
        self.top_k = config.top_k
        self.pools = [
            PoolBank(
                config.pool,
                config.query_dim,
                {"value": RowSpec((config.prompt_rows, config.hidden))},
                name=f"prompts.{number}",
                device=device,
            )
            for number in range(config.pools)
        ]
        self.reads_JM = torch.zeros(config.pools, config.pool, dtype=torch.int64)
        """How often each prompt was read for a prediction."""
        self.common: Common | None = None
        """What is mixed into all queries, once a step of learning has found it."""
        self.write(model.prompts.key, model.prompts.value)

    def write(self, key_JMQ: Tensor, value_JMZD: Tensor) -> None:
        """Replace all prompts."""
        for pool, key_MQ, value_MZD in zip(self.pools, key_JMQ, value_JMZD, strict=True):
            pool.write(key_MQ, {"value": value_MZD})

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return copies of keys [J, M, Q] and values [J, M, Z, D]."""
        return torch.stack([pool.key_MD for pool in self.pools]), torch.stack([pool.columns["value"] for pool in self.pools])

    def choose(self, pool: int, query: Tensor) -> Chosen:
        """Return the prompts of a pool for queries [..., Q]."""
        query = query if self.common is None else self.common.mixed(pool, query)
        found = self.pools[pool].search(query, self.top_k)
        return Chosen(found.index, found.score)

    def values(self, pool: int) -> Tensor:
        """Return all prompts of a pool, [M, Z, D]."""
        return self.pools[pool].columns["value"]

    def count(self, index_BJN: npt.NDArray[np.int64]) -> None:
        """Count prompts that were read, of each pool."""
        for pool, reads_M in enumerate(self.reads_JM):
            reads_M += torch.from_numpy(np.bincount(index_BJN[:, pool].ravel(), minlength=len(reads_M)))

    def dead(self, reads: int) -> int:
        """Return how many prompts were never read although their pool was read ``reads`` times."""
        enough_J1 = self.reads_JM.sum(1, keepdim=True) >= reads * self.top_k
        return int(((self.reads_JM == 0) & enough_J1).sum())

    def bytes(self) -> int:
        """Return the bytes of all pools."""
        return sum(sum(pool.bytes().values()) for pool in self.pools)

    def export(self, state: State, *, learned: bool, incremental: bool) -> None:
        """Add counts, and prompts that are ``learned``, to ``state``."""
        state.additive[_READS] = self.reads_JM.clone()
        if self.common is not None:
            state.shared[_COMMON] = self.common.query_JQ.cpu().clone()
        if learned:
            for pool in self.pools:
                pool.export(state, incremental=incremental)
                pool.mark_clean()

    def load(self, state: State, *, learned: bool, share: float = 0.0) -> None:
        """Take them from a full ``state``; ``share`` as in the options."""
        common = state.shared.get(_COMMON)
        self.common = None if common is None else Common(common.to(self.pools[0].device), share)
        stored = state.additive.get(_READS)
        self.reads_JM = torch.zeros_like(self.reads_JM) if stored is None else stored.clone()
        if learned:
            for pool in self.pools:
                pool.load(state)
                pool.mark_clean()
