"""Where prompts begin: half of the keys among the queries that the data ask, the others anywhere; values alike.

Keys drawn from -1 to 1, as published, lie all around, and few of them near any query. Here the first half are the centers of
the queries of an untrained network (k-means on the sphere), so that different histories read different prompts from the start.
The second half stays as drawn, for histories that are unlike those of the training. Values begin at zero: a history that
changes its prompts changes nothing until they have learned to differ.
"""

# J pools, M prompts, Q query width, n queries

from __future__ import annotations

import torch
from torch import Tensor

from models.prompttpp.events import EventSet
from models.prompttpp.process import PointProcess, running_mean
from models.prompttpp.prompts import Chosen, PromptReader, unit
from models.prompttpp.recurrent import RecurrentProcess

__all__ = ["count_reads", "seed_prompts"]

_SEQUENCES = 64
_QUERIES = 4_096  # of each pool at most
_ROUNDS = 12
_FIRST = 4  # events of a sequence whose means are of too few to be like later ones
_RIDGE = 0.01  # of the largest variance: directions in which tokens hardly vary are not blown up beyond it


class _Listener:
    """Prompts that note what they are asked."""

    def __init__(self, reader: PromptReader) -> None:
        self._reader = reader
        self._heard: dict[int, list[Tensor]] = {}

    def heard(self) -> dict[int, Tensor]:
        """Return pool → queries [B, L, Q], whether asked for whole sequences or event by event."""
        return {pool: asked[0] if asked[0].dim() == 3 else torch.stack(asked, dim=1) for pool, asked in self._heard.items()}

    def choose(self, pool: int, query: Tensor) -> Chosen:
        self._heard.setdefault(pool, []).append(query.detach())
        return self._reader.choose(pool, query)

    def values(self, pool: int) -> Tensor:
        return self._reader.values(pool)


@torch.no_grad()
def seed_prompts(model: PointProcess, events: EventSet, *, seed: int = 0) -> None:
    """Place the prompts of ``model`` for the training on ``events``; a network without prompts stays as it is."""
    if model.prompts is None:
        return
    generator = torch.Generator().manual_seed(seed)
    model.prompts.value.zero_()
    rows = torch.randperm(len(events), generator=generator)[:_SEQUENCES].numpy()
    batch, device = events.batch(rows, model.config.time_scale), model.embedding.weight.device
    time_BL, type_BL, place_L = batch.time_BL.to(device), batch.type_BL.to(device), torch.arange(batch.real_BL.shape[1])
    if isinstance(model, RecurrentProcess):
        _fit_query(model, time_BL, type_BL, batch.real_BL)
    listener = _Listener(model.prompts.reader())
    model.run(time_BL, type_BL, torch.zeros(*time_BL.shape, 1, dtype=torch.float64, device=device), prompts=listener)
    real_BL = batch.real_BL & (place_L >= min(_FIRST, len(place_L) - 1))
    known = max(1, model.prompts.key.shape[1] // 2)
    size = (model.prompts.key.shape[2] / 3) ** 0.5  # of a key drawn from -1 to 1
    for pool, query_BLQ in listener.heard().items():
        query_nQ = unit(query_BLQ.cpu()[real_BL])
        query_nQ = query_nQ[torch.randperm(len(query_nQ), generator=generator)[:_QUERIES]]
        model.prompts.key[pool, :known] = size * centers(query_nQ, known, generator).to(device)


@torch.no_grad()
def count_reads(model: PointProcess, events: EventSet, *, seed: int = 0) -> None:
    """Note how often each prompt is read in a sample of ``events``, where ``model`` keeps such counts."""
    if model.prompts is None or model.prompts.reads is None:
        return
    rows = torch.randperm(len(events), generator=torch.Generator().manual_seed(seed))[:_SEQUENCES].numpy()
    batch, device = events.batch(rows, model.config.time_scale), model.embedding.weight.device
    time_BL = batch.time_BL.to(device)
    run = model.run(time_BL, batch.type_BL.to(device), torch.zeros(*time_BL.shape, 1, dtype=torch.float64, device=device))
    for pool, index_BLN in run.chosen.items():
        read = index_BLN[batch.real_BL.to(device)].flatten()
        model.prompts.reads[pool] = torch.bincount(read, minlength=model.config.pool)


def _fit_query(model: RecurrentProcess, time_BL: Tensor, type_BL: Tensor, real_BL: Tensor) -> None:
    """Set the mean of queries, and the map that makes the noise of their tokens alike in all directions."""
    token_BLQ = model.query_tokens(time_BL, type_BL)
    mean_BLQ = running_mean(token_BLQ, model.config.query_events)
    settled_BL = real_BL & (torch.arange(real_BL.shape[1]) >= min(_FIRST, real_BL.shape[1] - 1))
    model.query_center.copy_(mean_BLQ[settled_BL.to(mean_BLQ.device)].mean(0))
    token_nQ = token_BLQ[:, 1:][real_BL[:, 1:].to(token_BLQ.device)].double()
    token_nQ = token_nQ - token_nQ.mean(0)
    value_Q, vector_QQ = torch.linalg.eigh(token_nQ.T @ token_nQ / max(1, len(token_nQ)))
    scale_Q = (value_Q.clamp_min(0) + _RIDGE * value_Q.max().clamp_min(1e-9)).rsqrt()
    model.query_map.copy_((vector_QQ * scale_Q) @ vector_QQ.T)


def centers(query_nQ: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return ``number`` unit vectors in the middle of groups of unit vectors: k-means++, then Lloyd's rounds."""
    first = int(torch.randint(len(query_nQ), (1,), generator=generator))
    found = [query_nQ[first]]
    far_n = 1 - query_nQ @ found[0]
    for _ in range(number - 1):
        weight_n = far_n.clamp_min(1e-9)
        found.append(query_nQ[int(torch.multinomial(weight_n, 1, generator=generator))])
        far_n = torch.minimum(far_n, 1 - query_nQ @ found[-1])
    center_MQ = torch.stack(found)
    for _ in range(_ROUNDS):
        own_n = (query_nQ @ center_MQ.T).argmax(1)
        total_MQ = torch.zeros_like(center_MQ).index_add_(0, own_n, query_nQ)
        some_M = torch.bincount(own_n, minlength=number) > 0
        center_MQ[some_M] = unit(total_MQ[some_M])
    return center_MQ
