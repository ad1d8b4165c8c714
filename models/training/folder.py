"""The folder of a training: the checkpoint on the way (``training.pt``), the report at the end (``training.json``).

The checkpoint is replaced in one step and knows the settings of its training, so that it is never resumed with others. It is
removed when the report is written. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import pickle
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from connectors import durable
from connectors.errors import ConfigError, StreambankError
from models.training.previews import PREVIEWS

__all__ = ["TrainResult", "TrainingFolder"]

_FORMAT = 2
_PREVIEW = re.compile(r".+-[0-9]{8}")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one training made."""

    weights: Path
    """A file, or a folder of the form of the checkpoint that the training started from."""
    control: Path | None
    """Weights that got the same training without the memory; None where there are none."""
    metrics: dict[str, float]
    """As in ``training.json``."""
    seconds: float
    """Of all attempts up to their last checkpoint."""
    previews: tuple[Path, ...] = ()
    """Pictures of what was learned on the way, in its order."""


class TrainingFolder:
    """Checkpoint and report of one training."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Make the folder. Raises ``ConfigError`` where that cannot be."""
        self.path = path
        self.checkpoint = path / "training.pt"
        self._report = path / "training.json"
        self._resume = resume
        self._settings: dict[str, Any] = {}
        self._began = time.monotonic()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"out: {path} cannot be made: {reason}; choose another folder") from error

    def open(self, settings: Mapping[str, Any]) -> tuple[TrainResult | None, dict[str, Any] | None]:
        """Return the result of a complete training, or the checkpoint of one that was stopped, if there is one to resume."""
        self._settings = json.loads(json.dumps(settings))
        for path in self.path.glob(f".{self.checkpoint.name}.*"):
            if durable.is_leftover(path):
                path.unlink()
        if self.checkpoint.is_file():
            content = self._read_checkpoint()
            if not self._resume:
                position = content["position"]
                raise ConfigError(
                    f"{self.checkpoint}: a training was stopped here at {content['stage']}, update {position['done']}; go on "
                    "with it (--resume, resume=True), or choose another folder, or remove that file to start again"
                )
            self._compare(content["settings"], self.checkpoint)
            self._began -= content["seconds"]
            return None, content
        complete = self._read_result() if self._resume else None
        if complete is None:  # those of another training would be taken for this one's
            for path in self._previews():
                path.unlink()
        return complete, None

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the checkpoint, replacing the one before in one step."""
        own = {"format": _FORMAT, "settings": self._settings, "seconds": time.monotonic() - self._began}
        try:
            with durable.replacing(self.checkpoint) as temporary:
                torch.save(own | dict(content), temporary)
        except (OSError, RuntimeError) as error:  # PyTorch says RuntimeError where the disk is full
            raise StreambankError(
                f"{self.checkpoint}: cannot be written: {error}; the one before, if any, is whole: make room and resume from it"
            ) from error

    def finish(self, weights: Path, metrics: Mapping[str, float], control: Path | None) -> TrainResult:
        """Write the report and remove the checkpoint."""
        result = TrainResult(weights, control, dict(metrics), time.monotonic() - self._began, self._previews())
        report = {
            "recipe": self._settings.get("recipe"),
            "seed": self._settings.get("seed"),
            "metrics": result.metrics,
            "seconds": round(result.seconds, 1),
            "weights": weights.name,
            "control": None if control is None else control.name,
            "settings": self._settings,
        }
        durable.write(self._report, (json.dumps(report, indent=2) + "\n").encode())
        self.checkpoint.unlink(missing_ok=True)
        return result

    def _read_checkpoint(self) -> dict[str, Any]:
        file = self.checkpoint
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise ConfigError(f"{file} is damaged ({error}); remove it to start this training from its beginning") from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != _FORMAT:
            raise ConfigError(
                f"{file} has format {found}, this version writes and reads {_FORMAT} (all methods share one form now); finish "
                "that training with the version that started it, or remove the file to start again"
            )
        return dict(content)

    def _read_result(self) -> TrainResult | None:
        """Return what a complete training left; None where there is none or its weights were taken away."""
        try:
            report = json.loads(self._report.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(report, dict) or "settings" not in report:  # of an earlier version
            return None
        self._compare(report["settings"], self._report)
        weights = self.path / report["weights"]
        control = None if report["control"] is None else self.path / report["control"]
        if not weights.exists() or (control is not None and not control.exists()):
            return None
        return TrainResult(weights, control, report["metrics"], report["seconds"], self._previews())

    def _previews(self) -> tuple[Path, ...]:
        found = [path for path in (self.path / PREVIEWS).glob("*.png") if _PREVIEW.fullmatch(path.stem)]
        return tuple(sorted(found, key=lambda path: path.stat().st_mtime_ns))

    def _compare(self, theirs: Mapping[str, Any], file: Path) -> None:
        """Raise ``ConfigError`` that names every setting that differs."""
        was, now = _flat(theirs), _flat(self._settings)
        differing = [f"{name} was {was.get(name)}, is {now.get(name)}" for name in was | now if was.get(name) != now.get(name)]
        if differing:
            raise ConfigError(
                f"{file} is of another training: {'; '.join(differing)}; repeat the options of that training, or choose an "
                "empty folder"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found
