"""Pools of learned prompts, and how they are chosen: the N keys most alike to a query, by cosine.

A network reads prompts through the protocol :class:`PromptReader`, so that they may be its own parameters (training) or stand
in memory banks that a stream goes on learning (serving).
"""

# J pools, M prompts of a pool, N prompts read, Z tokens per prompt, D hidden, Q query width

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["Chosen", "Common", "PromptPools", "PromptReader", "TensorPrompts", "unit"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Prompts chosen for queries [...]."""

    index: Tensor
    """[..., N] int64, the most alike first; ties go to the lower index."""
    cosine: Tensor
    """[..., N]: with gradient to key and query where there is one."""


@dataclass(frozen=True, slots=True)
class Common:
    """What all keys of a stream look like now: a part of every query."""

    query_JQ: Tensor
    share: float
    """Of it in a query."""

    def mixed(self, pool: int, query: Tensor) -> Tensor:
        """Return queries [..., Q] of single keys as they are compared."""
        return (1.0 - self.share) * query + self.share * self.query_JQ[pool]


class PromptReader(Protocol):
    """Where a network finds its prompts."""

    def choose(self, pool: int, query: Tensor) -> Chosen:
        """Return the prompts of a pool for queries [..., Q]."""

    def values(self, pool: int) -> Tensor:
        """Return all prompts of a pool, [M, Z, D]."""


def unit(x: Tensor) -> Tensor:
    """Return x / sqrt(max(|x|², 1e-12)), the official normalization."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp_min(1e-12))


class TensorPrompts:
    """Prompts in plain tensors: keys [J, M, Q] and values [J, M, Z, D].

    ``detached``: no gradient goes through queries, so that only keys move towards them. ``common`` is mixed into queries.
    """

    def __init__(
        self, key_JMQ: Tensor, value_JMZD: Tensor, top_k: int, *, detached: bool = False, common: Common | None = None
    ) -> None:
        self.key_JMQ, self.value_JMZD, self.top_k, self.common = key_JMQ, value_JMZD, top_k, common
        self._unit_JMQ, self._detached = unit(key_JMQ), detached

    def choose(self, pool: int, query: Tensor) -> Chosen:
        """Return the prompts of a pool for queries [..., Q]."""
        query = query if self.common is None else self.common.mixed(pool, query)
        cosine = unit(query.detach() if self._detached else query) @ self._unit_JMQ[pool].T
        best = cosine.sort(dim=-1, descending=True, stable=True)
        return Chosen(best.indices[..., : self.top_k], best.values[..., : self.top_k])

    def values(self, pool: int) -> Tensor:
        """Return all prompts of a pool."""
        return self.value_JMZD[pool]


class PromptPools(nn.Module):
    """The prompts as parameters of a network. New ones are drawn from -1 to 1, as published."""

    reads: Tensor | None
    """[J, M] int64: how often each was read in a sample of the training, where that is counted."""

    def __init__(
        self, pools: int, prompts: int, query_dim: int, length: int, hidden: int, top_k: int, *, counted: bool = False
    ) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(pools, prompts, query_dim).uniform_(-1, 1))
        self.value = nn.Parameter(torch.empty(pools, prompts, length, hidden).uniform_(-1, 1))
        self.top_k = top_k
        self.register_buffer("reads", torch.zeros(pools, prompts, dtype=torch.int64) if counted else None)

    def reader(self) -> TensorPrompts:
        """Return the prompts as they are now, with gradient."""
        return TensorPrompts(self.key, self.value, self.top_k)
