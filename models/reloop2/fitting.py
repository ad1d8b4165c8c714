"""The training loop of the base networks: binary cross-entropy, Adam, early stop on the latest rows.

Draws come from a seed, so that a run can be repeated bit for bit on the same machine. Knows no files.
"""

# R rows, B rows of a batch, D hidden width

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from connectors.errors import ConfigError, StreambankError
from models.reloop2.base import CtrModel
from models.reloop2.embeddings import FeatureEmbedding
from models.reloop2.evaluate import Metrics, evaluate
from models.reloop2.examples import Examples

__all__ = ["Fit", "Progress", "Schedule", "fit", "measure_hidden_mean", "predict"]

logger = logging.getLogger(__name__)

_GRADIENT_NORM = 10.0  # BARS
_EVALUATION_BATCH = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long and how fast. Defaults suit some hundred thousand rows and small embeddings, not the published sets."""

    epochs: int = 8
    batch: int = 512
    learning_rate: float = 1e-2
    decay: float = 0.2
    """The rate is multiplied by this whenever the validation logloss has not fallen."""
    patience: int = 2
    """Stop after this many epochs in a row without a new best validation logloss."""
    weight_decay: float = 3e-5
    """L2 on all weights but the embeddings."""
    embedding_l2: float = 3e-5
    """L2 on the embeddings."""

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        for name in ("epochs", "batch", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.learning_rate > 0 or not 0 < self.decay <= 1:
            raise ConfigError(f"learning_rate {self.learning_rate} must be above 0, decay {self.decay} above 0 and at most 1")
        if self.weight_decay < 0 or self.embedding_l2 < 0:
            raise ConfigError(f"weight_decay {self.weight_decay} and embedding_l2 {self.embedding_l2} must be 0 or more")


@dataclass(frozen=True, slots=True)
class Progress:
    """State of the training, told some times per epoch."""

    stage: str
    step: int
    steps: int
    loss: float
    """Mean since the last report."""
    note: str = ""
    """The validation metrics where they were just made."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a training ended."""

    epochs: int
    best_epoch: int
    validation: Metrics
    """Of the weights that were kept."""


def fit(
    model: CtrModel,
    training: Examples,
    validation: Examples,
    schedule: Schedule,
    *,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Fit:
    """Train ``model`` in place and leave it with the weights of the best epoch, its hidden mean measured, in eval mode.

    ``validation`` must be later than ``training``: the stop is for the rows to come. Raises ``StreambankError`` when the loss
    is no longer finite.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(_groups(model, schedule), lr=schedule.learning_rate)
    steps_per_epoch = -(-len(training) // schedule.batch)
    report_every = max(1, steps_per_epoch // 4)
    best: tuple[float, int, Metrics, dict[str, Tensor]] | None = None
    epoch = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        for epoch in range(1, schedule.epochs + 1):
            model.train()
            total, since = 0.0, 0
            order_R = torch.randperm(len(training), generator=generator)
            for number, rows_B in enumerate(torch.split(order_R, schedule.batch), start=1):
                total, since = total + _step(model, optimizer, training.take(rows_B)), since + 1
                if number % report_every == 0 and number < steps_per_epoch:
                    done = (epoch - 1) * steps_per_epoch + number
                    _report(Progress("fit", done, schedule.epochs * steps_per_epoch, total / since), progress)
                    total, since = 0.0, 0
            metrics = evaluate(validation.label_R.numpy(), predict(model, validation).numpy())
            found = float("inf") if metrics.logloss is None else metrics.logloss
            note = f"epoch {epoch} validation logloss {found:.4f}"
            _report(
                Progress("fit", epoch * steps_per_epoch, schedule.epochs * steps_per_epoch, total / max(1, since), note),
                progress,
            )
            if best is None or found < best[0]:
                best = (found, epoch, metrics, copy.deepcopy(model.state_dict()))
                continue
            for group in optimizer.param_groups:
                group["lr"] *= schedule.decay
            if epoch - best[1] >= schedule.patience:
                break
    assert best is not None  # at least one epoch
    model.load_state_dict(best[3])
    measure_hidden_mean(model, training)
    return Fit(epoch, best[1], best[2])


def predict(model: CtrModel, examples: Examples) -> Tensor:
    """Return the click probabilities in float64 on the CPU, [R]. Puts the model into eval mode."""
    return _all_rows(model, examples)[1]


def measure_hidden_mean(model: CtrModel, examples: Examples) -> None:
    """Set ``model.hidden_mean`` from training rows (paper: none; ReLoop2's sign hash needs it where h is not centred)."""
    if not len(examples):
        raise ValueError("the mean of no rows is not defined")
    total_D, _ = _all_rows(model, examples)
    model.set_hidden_mean((total_D / len(examples)).float())


@torch.inference_mode()
def _all_rows(model: CtrModel, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return the sum of the hidden vectors, [D], and the probabilities, [R]; float64."""
    model.eval()
    device = model.hidden_mean.device
    total_D = torch.zeros(model.hidden_dim, dtype=torch.float64, device=device)
    parts = []
    for start in range(0, len(examples), _EVALUATION_BATCH):
        hidden_BD, logit_B = model(examples.take(slice(start, start + _EVALUATION_BATCH)).to(device).columns)
        total_D += hidden_BD.sum(0, dtype=torch.float64)
        parts.append(torch.sigmoid(logit_B.double()).cpu())
    return total_D.cpu(), torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _step(model: CtrModel, optimizer: torch.optim.Optimizer, batch: Examples) -> float:
    batch = batch.to(model.hidden_mean.device)
    loss = F.binary_cross_entropy_with_logits(model(batch.columns).logit_B, batch.label_R)
    if not bool(loss.isfinite()):
        raise StreambankError("the loss is no longer finite; lower learning_rate, and check the numeric columns for outliers")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
    optimizer.step()
    return float(loss.detach())


def _groups(model: CtrModel, schedule: Schedule) -> list[dict[str, object]]:
    embeddings = [
        parameter for module in model.modules() if isinstance(module, FeatureEmbedding) for parameter in module.parameters()
    ]
    known = {id(parameter) for parameter in embeddings}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [
        {"params": embeddings, "weight_decay": schedule.embedding_l2},
        {"params": dense, "weight_decay": schedule.weight_decay},
    ]


def _report(progress: Progress, callback: Callable[[Progress], None] | None) -> None:
    logger.info("stage=%s step=%d/%d loss=%.4f %s", progress.stage, progress.step, progress.steps, progress.loss, progress.note)
    if callback is not None:
        callback(progress)
