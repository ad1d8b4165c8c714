"""Log-likelihood of event sequences, and the loss that trains networks and prompts."""

# B rows, L events, G moments, K types

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.prompttpp.events import Batch
from models.prompttpp.integral import Rule, integrate, shares
from models.prompttpp.process import PointProcess
from models.prompttpp.prompts import PromptReader

__all__ = ["Likelihood", "log_likelihood", "training_loss"]


class Likelihood(NamedTuple):
    """Of the events 2..L of each row; zeros in padding."""

    event_BL: Tensor
    """log λ of the event's type just before it."""
    integral_BL: Tensor
    """Of the total rate since the event before."""
    real_BL: Tensor
    cosine_BL: Tensor
    """Of the prompts chosen before the event, summed over all look-ups."""

    @property
    def per_event(self) -> Tensor:
        """The mean log-likelihood per event."""
        return (self.event_BL - self.integral_BL).sum() / self.real_BL.sum().clamp_min(1)


def log_likelihood(
    model: PointProcess,
    batch: Batch,
    *,
    points: int = 20,
    rule: Rule = "graded",
    prompts: PromptReader | None = None,
    generator: torch.Generator | None = None,
    window: int = 0,
) -> Likelihood:
    """Score each event under what was known before it; the first of a row only conditions, and no tail is counted."""
    gap_BL = batch.time_BL.diff(dim=1)
    share = shares(points, rule, tuple(gap_BL.shape), generator).to(gap_BL.device)
    run = model.run(batch.time_BL[:, :-1], batch.type_BL[:, :-1], gap_BL[:, :, None] * share, prompts=prompts, window=window)
    real_BL = batch.real_BL[:, 1:]
    target_BL = batch.type_BL[:, 1:].clamp_max(model.config.types - 1)
    own_BL = run.rate_BLGK[:, :, -1].gather(2, target_BL[:, :, None])[:, :, 0]
    floor = torch.finfo(own_BL.dtype).tiny
    event_BL = own_BL.clamp_min(floor).log().masked_fill(~real_BL, 0.0)
    integral_BL = integrate(run.rate_BLGK.sum(3), gap_BL.to(own_BL.dtype), rule).masked_fill(~real_BL, 0.0)
    return Likelihood(event_BL, integral_BL, real_BL, run.cosine_BL.masked_fill(~real_BL, 0.0))


def training_loss(found: Likelihood, alpha: float) -> dict[str, Tensor]:
    """Return the parts of the loss: minus the log-likelihood per event, minus ``alpha`` times the mean cosine of the look-ups.

    The official code sums the first over the batch and takes the second once, so that the weight of the second depends on the
    batch; here both are per event.
    """
    events = found.real_BL.sum().clamp_min(1)
    return {"likelihood": -found.per_event, "prompts": -alpha * found.cosine_BL.sum() / events}
