"""One loop for every training: updates, reports, checkpoints, a stop that can be resumed.

A training is a sequence of stages. Whoever trains sets each stage up and then calls :meth:`Training.run`; the setting up is
done again after a stop, the updates are not: stages that were complete only get their weights back, the one that was stopped
gets everything back. On the CPU the outcome is bit for bit that of a training that was never stopped, provided that
``Stage.losses`` depends on nothing but the number of the update and what the stage keeps. Knows no network and no data.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from connectors.errors import ConfigError, StreambankError
from connectors.signals import graceful
from models.training.folder import TrainingFolder, TrainResult
from models.training.previews import Picture, preview_steps, write_preview
from models.training.progress import Progress, ProgressCallback, notebook_progress, report

__all__ = ["After", "Stage", "Training", "TrainingStopped"]

logger = logging.getLogger(__name__)

Generator = np.random.Generator | torch.Generator

CHECKPOINT_EVERY = 500
"""Updates between checkpoints where nobody says otherwise."""


class TrainingStopped(KeyboardInterrupt):
    """A signal stopped the training between two updates, and its checkpoint is written."""


@dataclass(frozen=True, slots=True)
class After:
    """What followed an update, such as a validation."""

    note: str = ""
    last: bool = False
    """End the stage here."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stage:
    """One optimizer's way through a number of updates."""

    name: str
    steps: int
    trained: nn.Module
    """Its gradients are clipped. In training mode when the stage starts, and again after ``after``."""
    optimizer: torch.optim.Optimizer
    losses: Callable[[int], Iterable[Mapping[str, Tensor]]]
    """The number of the update (0-based) → parts of the loss, to be summed, once per accumulated batch."""
    rate: Callable[[int], float | Sequence[float]] | None = None
    """The number of the update → its learning rate, or one for each group of parameters. None: the optimizer's own stays."""
    gradient_norm: float
    report_every: int
    kept: nn.Module | None = None
    """All weights of the checkpoint, where that is more than ``trained``: those that earlier and later stages need."""
    generators: Sequence[Generator] = ()
    """Everything that ``losses`` and ``after`` draw from."""
    state: dict[str, Any] = field(default_factory=dict)
    """Further plain values and tensors that belong to the checkpoint; changed in place."""
    after: Callable[[int], After | None] | None = None
    """Called after each update with the number that are done; what it returns is reported at once."""
    preview: Callable[[], Picture] | None = None
    """Shows what has been learned so far; draws from no generator of the training, and leaves it in training mode."""
    hint: str = "lower learning_rate"
    """What to do when the loss is no longer finite."""


@dataclass(slots=True)
class _Position:
    """Where a stage stands."""

    done: int = 0
    total: float = 0.0
    """Of the loss over the ``since`` updates after the last report."""
    since: int = 0
    ended: bool = False


class Training:
    """One training: into a folder with checkpoints on the way, or without a folder into memory only."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        resume: bool = False,
        progress: ProgressCallback | None = None,
        checkpoint_every: int | None = None,
        preview_every: int | None = None,
    ) -> None:
        """``checkpoint_every``: updates; None: ``CHECKPOINT_EVERY``. ``preview_every``: updates; None: four times per stage.

        Raises ``ConfigError`` where the folder cannot be made.
        """
        self.checkpoint_every = checkpoint_every or CHECKPOINT_EVERY
        self.preview_every = preview_every
        self.first_loss = math.nan
        """As first reported for the current stage."""
        self.last_loss = math.nan
        """As last reported for the current stage."""
        self._progress = progress or notebook_progress()
        self._folder = None if folder is None else TrainingFolder(folder, resume=resume)
        self._resumed: dict[str, Any] | None = None
        self._number = -1  # of the current stage

    @property
    def path(self) -> Path:
        """The folder of the results."""
        assert self._folder is not None  # asked for by those that gave one
        return self._folder.path

    def open(self, settings: Mapping[str, Any]) -> TrainResult | None:
        """Settle what is trained, before the first stage. Return the result if it is complete and was to be resumed.

        ``settings``: everything, as JSON values, that the outcome depends on. Raises ``ConfigError`` if the folder holds a
        training that was stopped and is not to be resumed, or one of other settings that is.
        """
        assert self._folder is not None
        complete, self._resumed = self._folder.open(settings)
        return complete

    def finish(self, weights: Path, metrics: Mapping[str, float], *, control: Path | None = None) -> TrainResult:
        """Write ``training.json`` and remove the checkpoint. ``weights`` and ``control`` are already in the folder."""
        assert self._folder is not None
        return self._folder.finish(weights, metrics, control)

    def run(self, stage: Stage) -> None:
        """Make all updates of a stage that are not made yet.

        The first SIGINT or SIGTERM lets the current update end, writes a checkpoint and raises ``TrainingStopped``; the second
        one acts as usual. Raises ``StreambankError`` when the loss or its gradient is no longer finite.
        """
        self._number += 1
        position = self._enter(stage)
        if position is None:
            return
        started, first = time.monotonic(), position.done
        preview_every = preview_steps(self.preview_every, stage.steps) if stage.preview is not None and self._folder else 0
        stopping = threading.Event()
        with graceful(stopping.set, "stopping after this update"):
            while position.done < stage.steps and not position.ended:
                position.total += _update(stage, position.done)
                position.done, position.since = position.done + 1, position.since + 1
                after = None if stage.after is None else stage.after(position.done)
                position.ended = after is not None and after.last
                last = position.ended or position.done == stage.steps
                if preview_every and (last or position.done % preview_every == 0):
                    self._preview(stage, position.done)
                if last or after is not None or position.since >= stage.report_every:
                    pace_s = (time.monotonic() - started) / (position.done - first)
                    eta_s = 0.0 if last else pace_s * (stage.steps - position.done)
                    self._report(stage, position, "" if after is None else after.note, eta_s)
                if last or stopping.is_set() or position.done % self.checkpoint_every == 0:
                    self._save(stage, position)
                if stopping.is_set():
                    where = f"{stage.name} {position.done}/{stage.steps}"
                    raise TrainingStopped(f"stopped at {where}" + ("; go on with --resume" if self._folder else ""))

    def _enter(self, stage: Stage) -> _Position | None:
        """Return where to go on, with everything as it was there; None where the stage was complete before the stop."""
        saved = self._resumed
        if saved is None:
            self.first_loss = self.last_loss = math.nan
            return _Position()
        kept = stage.trained if stage.kept is None else stage.kept
        try:
            kept.load_state_dict(saved["weights"])
            if self._number < saved["number"]:
                return None
            stage.optimizer.load_state_dict(saved["optimizer"])
            for generator, state in zip(stage.generators, saved["generators"], strict=True):
                _set_state(generator, state)
            stage.state.clear()
            stage.state.update(saved["state"])
            self.first_loss, self.last_loss = saved["losses"]
            position = _Position(**saved["position"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            assert self._folder is not None
            raise ConfigError(
                f"{self._folder.checkpoint}: does not fit this version of the training ({error}); remove it to start again"
            ) from error
        self._resumed = None
        logger.info("checkpoint=%s stage=%s resumed_at=%d/%d", self.path, stage.name, position.done, stage.steps)
        return position

    def _report(self, stage: Stage, position: _Position, note: str, eta_s: float) -> None:
        self.last_loss = position.total / position.since
        if math.isnan(self.first_loss):
            self.first_loss = self.last_loss
        position.total, position.since = 0.0, 0
        report(Progress(stage.name, position.done, stage.steps, self.last_loss, note, eta_s), self._progress)

    def _preview(self, stage: Stage, done: int) -> None:
        assert stage.preview is not None and self._folder is not None
        try:
            path = write_preview(self._folder.path, stage.name, done, stage.preview())
        except OSError as error:
            raise StreambankError(f"{error.filename}: a preview cannot be written: {error.strerror}; make room") from error
        logger.info("preview=%s", path)

    def _save(self, stage: Stage, position: _Position) -> None:
        if self._folder is None:
            return
        kept = stage.trained if stage.kept is None else stage.kept
        self._folder.save(
            {
                "stage": stage.name,
                "number": self._number,
                "position": {name: getattr(position, name) for name in _Position.__slots__},
                "losses": (self.first_loss, self.last_loss),
                "weights": kept.state_dict(),
                "optimizer": stage.optimizer.state_dict(),
                "generators": [_get_state(generator) for generator in stage.generators],
                "state": stage.state,
            }
        )


def _update(stage: Stage, step: int) -> float:
    """Make one update and return its loss."""
    if stage.rate is not None:
        groups, rate = stage.optimizer.param_groups, stage.rate(step)
        for group, own in zip(groups, rate if isinstance(rate, Sequence) else [rate] * len(groups), strict=True):
            group["lr"] = own
    stage.optimizer.zero_grad(set_to_none=True)
    value = 0.0
    for parts in stage.losses(step):
        loss = torch.stack(list(parts.values())).sum() if len(parts) > 1 else next(iter(parts.values()))
        found = float(loss.detach())
        if not math.isfinite(found):
            named = ", ".join(f"{name} {float(part.detach()):g}" for name, part in parts.items())
            raise StreambankError(_diverged(stage, step, f"the loss is no longer finite ({named})"))
        loss.backward()  # type: ignore[no-untyped-call]
        value += found
    norm = float(nn.utils.clip_grad_norm_(stage.trained.parameters(), stage.gradient_norm))
    if not math.isfinite(norm):
        raise StreambankError(_diverged(stage, step, f"the gradient of a loss of {value:g} is no longer finite (norm {norm})"))
    stage.optimizer.step()
    return value


def _diverged(stage: Stage, step: int, what: str) -> str:
    return f"{stage.name}, update {step + 1} of {stage.steps}: {what}; {stage.hint}, and start in an empty folder"


def _get_state(generator: Generator) -> Any:
    return generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
