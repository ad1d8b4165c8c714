"""Training on a person's own annotated videos with the paper's sampling, losses, optimiser and schedule.

Every draw is a function of (seed, step), so a run that was stopped goes on from its last checkpoint as if nothing had
happened: on the CPU bit for bit. Knows files of the run's folder, nothing about streams.
"""

# B images, H rows, W columns

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from connectors.errors import ConfigError, DeviceError, StreambankError
from connectors.options import REQUIRED, option
from models.mamba import checkpoint
from models.mamba.annotations import AnnotatedVideos, read_annotations
from models.mamba.config import MambaConfig
from models.mamba.frames import FrameStore
from models.mamba.losses import Truth, training_step
from models.mamba.model import Mamba
from models.mamba.progress import Progress, report
from models.mamba.validation import validate

__all__ = ["FinetuneOptions", "FinetuneResult", "finetune"]

logger = logging.getLogger(__name__)

_EPOCHS = 6
_DECAY_AT = 4 / 6  # of all iterations: after 4 of 6 epochs
_WARMUP_ITERATIONS, _WARMUP_FACTOR = 500, 1 / 3
_MOMENTUM, _WEIGHT_DECAY, _GRADIENT_NORM = 0.9, 1e-4, 35.0
_REFERENCE_RANGE = 1000  # frames before and after the key
_FLIP = 0.5
_REPORT_EVERY = 50
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOptions:
    """What can be set. Defaults are the published instance-level schedule (batch 8, 6 epochs)."""

    annotations: str = option(
        REQUIRED, "CocoVID file: videos, images with video_id and frame_id, annotations, categories.", path=True
    )
    images: str | None = option(None, "Folder that file_name counts from; default: the folder of the annotations.", path=True)
    validation: str | None = option(None, "CocoVID file to measure mAP50 on; without it nothing is measured.", path=True)
    validation_images: str | None = option(
        None, "Folder of the validation pictures; default: the folder of that file.", path=True
    )
    init: str | None = option(
        None,
        "Checkpoint to start from (ours or official). Outputs of classes that it does not have start at random.",
        path=True,
    )
    backbone: str | None = option(None, "ImageNet weights of a ResNet in torchvision's layout; without `init` only.", path=True)
    network: dict[str, Any] = option({}, "Fields of MambaConfig that differ from the full-size model; without `init` only.")
    iterations: int | None = option(None, "Updates of the weights; default: 6 passes over the annotated frames.", ge=1)
    batch: int = option(8, "Key frames per update; they are processed one after the other.", ge=1)
    learning_rate: float = option(1e-3, "Of SGD, for a batch of 8; it falls to a tenth after two thirds.", gt=0)
    checkpoint_every: int = option(500, "Updates between checkpoints of the run.", unit="iterations", ge=1)
    validate_every: int = option(2000, "Updates between validations; there is always one at the end.", unit="iterations", ge=1)
    seed: int = option(0, "Of new weights and all draws.", ge=0)
    device: str = option("auto", "cpu, cuda, cuda:N, or auto: the GPU where there is one.")

    def __post_init__(self) -> None:
        if self.init is not None and (self.backbone is not None or self.network):
            raise ConfigError("init brings its own network and backbone; remove 'network' and 'backbone', or 'init'")
        for name in ("iterations", "batch", "checkpoint_every", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")
        if self.learning_rate <= 0 or self.seed < 0:
            raise ConfigError(f"learning_rate {self.learning_rate} must be above 0 and seed {self.seed} 0 or more")


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """Where the weights are and how good they were."""

    weights: Path
    """The last weights, or those of the best validation where there is one."""
    iterations: int
    loss: float
    """Mean total loss of the last iterations (up to 50)."""
    map50: float | None
    """Best validation mAP at IoU 0.5 (see :mod:`models.mamba.validation`)."""


def finetune(
    options: FinetuneOptions, out: str | os.PathLike[str], progress: Callable[[Progress], None] | None = None
) -> FinetuneResult:
    """Train and write ``model.safetensors``, and ``training.pt`` from which the same call goes on.

    Raises ``ConfigError`` for unusable options or annotations, ``CheckpointMismatch`` for unusable weights, ``DeviceError``.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    device = _device(options.device)
    videos = read_annotations(options.annotations, options.images)
    held_out = None
    if options.validation is not None:
        held_out = read_annotations(options.validation, options.validation_images).with_classes(videos.classes)
    model = _build(options, videos.classes).to(device)
    for part in (videos, held_out):
        if part is not None:
            _check_sizes(model, part)
    store = _open(videos, folder / "frames")
    validation = None if held_out is None else _open(held_out, folder / "validation_frames")

    sampler = _Sampler(store, options.seed)
    iterations = options.iterations or max(1, _EPOCHS * len(sampler) // options.batch)
    run = _Run(model, iterations, options, folder, videos)
    run.resume()
    _iterate(run, sampler, validation, progress)
    weights = folder / "model.safetensors"
    if not weights.is_file():  # the run had ended before, and its weights were taken away
        run.export()
    return FinetuneResult(weights, iterations, run.loss, run.best)


class _Drawn(NamedTuple):
    key: NDArray[np.uint8]
    references: list[NDArray[np.uint8]]
    boxes_G4: NDArray[np.float32]
    labels_G: NDArray[np.int64]


class _Sampler:
    """Key frames in shuffled passes, each with one earlier and one later frame of its video, all flipped together or not.

    Frames without objects are references only, as published.
    """

    def __init__(self, store: FrameStore, seed: int) -> None:
        self.store = store
        self.seed = seed
        self.keys = np.flatnonzero(np.diff(store.videos.first_I))
        self._order: tuple[int, NDArray[np.int64]] = (-1, self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def draw(self, number: int) -> _Drawn:
        """Return the ``number``-th sample of the run (0-based)."""
        rng = np.random.default_rng([self.seed, 1, number])
        i = self._key(number)
        references = self._references(i, rng)
        flip = rng.random() < _FLIP
        boxes_G4, labels_G = self.store.videos.objects(i)
        images = [self.store.read(j) for j in (i, *references)]
        if flip:
            images = [np.ascontiguousarray(image[:, ::-1]) for image in images]
            boxes_G4 = boxes_G4.copy()
            boxes_G4[:, [0, 2]] = images[0].shape[1] - boxes_G4[:, [2, 0]]
        return _Drawn(images[0], images[1:], boxes_G4, labels_G)

    def _key(self, number: int) -> int:
        epoch, place = divmod(number, len(self.keys))
        order = self._order  # a local name: threads of neighbouring epochs replace the attribute under each other
        if order[0] != epoch:
            order = self._order = (epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(self.keys))
        return int(order[1][place])

    def _references(self, i: int, rng: np.random.Generator) -> list[int]:
        videos = self.store.videos
        own = np.array(videos.frames_of(int(videos.video_I[i])))
        distance = videos.frame_I[own] - videos.frame_I[i]
        # Frames of another size could not be stacked; a recording that changes its size is in effect two videos.
        usable = (np.abs(distance) <= _REFERENCE_RANGE) & (videos.size_I2[own] == videos.size_I2[i]).all(axis=1)
        sides = [own[usable & (distance < 0)], own[usable & (distance > 0)]]
        drawn = [int(rng.choice(side)) if len(side) else None for side in sides]
        # A side without frames repeats the other; a still image is its own reference.
        fallback = next((j for j in drawn if j is not None), i)
        return [fallback if j is None else j for j in drawn]


class _Run:
    """Model, optimiser and position of one run, and their checkpoint."""

    def __init__(self, model: Mamba, iterations: int, options: FinetuneOptions, folder: Path, videos: AnnotatedVideos) -> None:
        self.model = model
        self.iterations = iterations
        self.options = options
        self.folder = folder
        self.done = 0
        self.loss = float("nan")
        self.best: float | None = None
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=options.learning_rate,
            momentum=_MOMENTUM,
            weight_decay=_WEIGHT_DECAY,
        )
        self._identity = {
            "iterations": iterations,
            "batch": options.batch,
            "learning_rate": options.learning_rate,
            "seed": options.seed,
            "annotations": _fingerprint(videos),
            "network": json.dumps(model.config.to_json(), sort_keys=True),
        }

    def set_rate(self) -> None:
        """Set the learning rate of the next update."""
        warmup = min(_WARMUP_ITERATIONS, self.iterations // 10)
        factor = 0.1 if self.done >= _DECAY_AT * self.iterations else 1.0
        if self.done < warmup:
            factor *= _WARMUP_FACTOR + (1.0 - _WARMUP_FACTOR) * self.done / warmup
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * factor

    def save(self) -> None:
        """Write the checkpoint of the run in one step."""
        content = {
            "format": _FORMAT,
            "identity": self._identity,
            "done": self.done,
            "loss": self.loss,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.folder / "training.pt.partial"
        torch.save(content, partial)
        partial.replace(self.folder / "training.pt")

    def resume(self) -> None:
        """Go on from the folder's checkpoint if there is one. Raises ``ConfigError`` if it is of another run."""
        file = self.folder / "training.pt"
        if not file.is_file():
            return
        try:
            content: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise ConfigError(f"{file} is damaged ({error}); remove it to start this run from its beginning") from error
        theirs = content.get("identity", {})
        differing = [
            f"{name} was {theirs.get(name)}, is {value}" for name, value in self._identity.items() if theirs.get(name) != value
        ]
        if content.get("format") != _FORMAT or differing:
            raise ConfigError(
                f"{file} is of another run ({'; '.join(differing) or 'another format'}); "
                "repeat the options of that run, or choose an empty folder for 'out'"
            )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.done, self.loss, self.best = content["done"], content["loss"], content["best"]
        logger.info("checkpoint=%s resumed_at=%d/%d", file, self.done, self.iterations)

    def export(self) -> None:
        """Write the weights for use."""
        checkpoint.save(self.model, self.folder / "model.safetensors")


def _iterate(run: _Run, sampler: _Sampler, validation: FrameStore | None, progress: Callable[[Progress], None] | None) -> None:
    options, model = run.options, run.model
    device = next(model.parameters()).device
    total, since = 0.0, 0
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="frames") as pool:
        waiting: list[Future[_Drawn]] = []

        def ask(step: int) -> None:
            if step < run.iterations:
                waiting.extend(pool.submit(sampler.draw, step * options.batch + k) for k in range(options.batch))

        ask(run.done)
        model.train()
        while run.done < run.iterations:
            samples = [future.result() for future in waiting]
            waiting.clear()
            ask(run.done + 1)  # read the next pictures while this update runs
            run.set_rate()
            run.optimizer.zero_grad()
            generator = torch.Generator().manual_seed(_mix(options.seed, run.done))
            for sample in samples:
                loss = _loss(model, sample, device, generator) / options.batch
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
            run.optimizer.step()
            run.done, since = run.done + 1, since + 1
            last = run.done == run.iterations
            map50 = None
            if validation is not None and (last or run.done % options.validate_every == 0):
                map50 = validate(model, validation).mean
                model.train()
                if run.best is None or map50 >= run.best:
                    run.best = map50
                    run.export()
            if last or map50 is not None or run.done % _REPORT_EVERY == 0:
                run.loss, total, since = total / since, 0.0, 0
                report(Progress("finetune", run.done, run.iterations, run.loss, map50), progress)
            if last and validation is None:
                run.export()
            if last or run.done % options.checkpoint_every == 0:
                run.save()


def _loss(model: Mamba, sample: _Drawn, device: torch.device, generator: torch.Generator) -> Tensor:
    keys = model.prepare([torch.from_numpy(sample.key)], device)
    references = model.prepare([torch.from_numpy(image) for image in sample.references], device)
    boxes_G4 = torch.from_numpy(sample.boxes_G4).to(device) * keys.scales_B2[0, [1, 0, 1, 0]]
    truth = [Truth(boxes_G4, torch.from_numpy(sample.labels_G).to(device))]
    losses = training_step(model, keys, references, truth, generator)
    loss = torch.stack(list(losses.values())).sum()
    if not bool(loss.isfinite()):
        parts = {name: float(value.detach()) for name, value in losses.items()}
        raise StreambankError(f"the loss is no longer finite ({parts}); lower learning_rate and start in an empty folder")
    return loss


def _build(options: FinetuneOptions, classes: tuple[str, ...]) -> Mamba:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if options.init is None:
            model = Mamba(MambaConfig.from_json({**options.network, "classes": classes}))
            if options.backbone is not None:
                checkpoint.load_backbone(model, options.backbone)
            return model
        start = checkpoint.load(options.init)
        if start.config.classes == classes:
            return start
        model = Mamba(dataclasses.replace(start.config, classes=classes))
    state, own = start.state_dict(), model.state_dict()
    known = {name: label for label, name in enumerate(start.config.classes)}
    pairs = [(label, known[name]) for label, name in enumerate(classes) if name in known]
    logger.info("init=%s classes=%d of which known=%d", options.init, len(classes), len(pairs))
    for name in state:
        if not name.startswith(("head.logits.", "head.deltas.")):
            own[name] = state[name]
            continue
        rows = 4 if name.startswith("head.deltas.") else 1
        for new, old in pairs:
            own[name][new * rows : (new + 1) * rows] = state[name][old * rows : (old + 1) * rows]
        if rows == 1:
            own[name][-1] = state[name][-1]  # background
    model.load_state_dict(own)
    return model


def _open(videos: AnnotatedVideos, cache: Path) -> FrameStore:
    store = FrameStore(videos, cache)
    store.extract()
    return store


def _check_sizes(model: Mamba, videos: AnnotatedVideos) -> None:
    for height, width in np.unique(videos.size_I2, axis=0).tolist():
        if model.is_too_small(height, width):
            raise ConfigError(f"images of {width}x{height} px are too small or too narrow after resizing; remove their entries")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs found); use device=cpu or auto")
    return device


def _fingerprint(videos: AnnotatedVideos) -> str:
    checksum = 0
    for column in (videos.video_I, videos.frame_I, videos.first_I, videos.boxes_N4, videos.labels_N):
        checksum = zlib.crc32(np.ascontiguousarray(column).tobytes(), checksum)
    return f"{len(videos)} frames, {len(videos.labels_N)} objects, checksum {checksum:08x}"


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, 2, step]).generate_state(1)[0])
