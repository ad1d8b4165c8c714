"""Trains every recipe and every kind of own data for some twenty updates and prints what came out, as hashes, in JSON.

Runs in a process of its own with any checkout of the project on its path, so it takes from the project only what users call.
Every update of every optimizer is seen by a hook of PyTorch, whatever loop called it.

    PYTHONPATH=CHECKOUT python -P benchmarks/training_hashes_run.py FOLDER [CASE ...] [--resume] [--kill UPDATE]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

KILLED_EVERY = 5
"""Updates between checkpoints where the process is to be killed."""
_METRIC_DIGITS = 6  # means of losses may be summed in another order


class Trace:
    """A hash over every update: learning rates, gradients, weights and the optimizer's state, all bit for bit."""

    def __init__(self) -> None:
        self.updates = 0
        self._hash = hashlib.sha256()

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Add one update; the hook of PyTorch."""
        self.updates += 1
        for group in optimizer.param_groups:
            self._hash.update(float(group["lr"]).hex().encode())
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                for tensor in (parameter, parameter.grad, *(state[name] for name in sorted(state))):
                    self._hash.update(b"-" if tensor is None else _bytes(torch.as_tensor(tensor)))

    def hexdigest(self) -> str:
        """Return the hash of all updates so far."""
        return self._hash.hexdigest()


def weights_hash(folder: Path) -> str:
    """Return one hash over the tensors of all weight files below ``folder``, by file and name."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(path)
        for name in sorted(tensors):  # the order in the file and its header are not weights
            found.update(f"{path.relative_to(folder)} {name} {tuple(tensors[name].shape)}".encode())
            found.update(_bytes(tensors[name]))
    return found.hexdigest()


def mamba_recipe(out: Path, recipe: str, **given: Any) -> Any:
    """Every stage of the recipe: the plain detector (heads, easy, hard), then with memory, then the control."""
    module = importlib.import_module("models.mamba.train")
    schedule = module.ShapesSchedule(heads_steps=20, easy_steps=20, hard_steps=20, memory_steps=20, batch=2, clips=1)
    return module.train(out, recipe=recipe, seed=3, schedule=schedule, **given)


def mamba_videos(out: Path, **options: Any) -> Any:
    """Fine-tuning on two short videos, with a validation on the way."""
    shapes = importlib.import_module("models.mamba.shapes")
    config = shapes.ShapesConfig(frames=5, degraded=0.0)
    clips = shapes.render_clips(out.parent / f"{out.name} data", config=config, seeds=[1, 2], scale=1)
    values = {"annotations": str(clips), "validation": str(clips), "batch": 2, "validate_every": 10, "iterations": 20}
    return importlib.import_module("models.mamba.train").train(out, seed=3, device="cpu", **(values | options))


def rekv_recipe(out: Path, **given: Any) -> Any:
    """Both stages: the vision tower, then projector and decoder on films."""
    module = importlib.import_module("models.rekv.train")
    steps = {"vision_steps": 20, "vision_batch": 32, "answer_steps": 20, "answer_batch": 8}
    schedule = module.FilmsSchedule(variants=1, most_frames=12, unseen_films=1, **steps)
    return module.train(out, recipe="shapes", seed=3, schedule=schedule, **given)


def rekv_videos(out: Path, **given: Any) -> Any:
    """Fine-tuning of the small model in the package on two short films."""
    options = {"annotations": str(_film_videos(out)), "iterations": 20, "frames": 4, "validation": 0.3}
    return importlib.import_module("models.rekv.train").train(out, seed=3, **(options | given))


def videostreaming_recipe(out: Path, **given: Any) -> Any:
    """All stages on few clips."""
    module = importlib.import_module("models.videostreaming.train")
    steps = {"clip_steps": 12, "clip_batch": 4, "warm_steps": 6, "stream_steps": 6, "stream_batch": 2}
    schedule = module.FilmsSchedule(variants=1, clips=4, earlier=2, asked=2, unseen_films=1, **steps)
    return module.train(out, recipe="shapes", seed=3, schedule=schedule, **given)


def videostreaming_videos(out: Path, **given: Any) -> Any:
    """A stage on own videos, from the small model in the package."""
    options = {"annotations": str(_film_videos(out)), "iterations": 20, "batch": 2, "most_clips": 3, "supervised": 0.5}
    return importlib.import_module("models.videostreaming.train").train(out, seed=3, **(options | given))


def _film_videos(out: Path) -> Path:
    """Write two short films with questions about them; return the annotations."""
    at = "models.films" if importlib.util.find_spec("models.films") else "models.rekv.films"  # where earlier versions have it
    films, folder = importlib.import_module(at), out.parent / f"{out.name} data"
    folder.mkdir(exist_ok=True)
    entries = []
    for seed in (1, 2):
        film = films.make_film(seed, length=20, events=1)
        films.write_mp4(film, folder / f"{seed}.mp4", scale=1)
        asked = films.questions(film, np.random.default_rng(seed))
        spans = [(one.text, one.answer, one.event.start, one.event.stop) for one in asked]
        names = ("question", "answer", "start_time", "end_time")
        entries.append({"video_path": f"{seed}.mp4", "conversations": [dict(zip(names, span, strict=True)) for span in spans]})
    (folder / "annotations.json").write_text(json.dumps(entries))
    return folder / "annotations.json"


def reloop2_recipe(out: Path, **given: Any) -> Any:
    """The recipe on a small world: eight passes of three updates."""
    module = importlib.import_module("models.reloop2.train")
    world = dataclasses.replace(module.RECIPES["drift"], users=40, groups=4, items=30, categories=6, training_rows=1600)
    world = dataclasses.replace(world, steady_rows=10, shifted_rows=10, raised_rows=0, back_rows=0)
    return module.train(out, recipe="drift", seed=3, world=world, **given)


def reloop2_rows(out: Path, **options: Any) -> Any:
    """Own impressions with a column of every kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, rows = np.random.default_rng(0), 740
    item = rng.integers(0, 12, rows)
    columns = {
        "item": pa.array([f"item {i}" for i in item]),
        "age": pa.array(rng.normal(40, 10, rows)),
        "seen": pa.array([[f"item {i}" for i in rng.integers(0, 12, n)] for n in rng.integers(0, 5, rows)]),
        "bought": pa.array((rng.random(rows) < 0.2 + 0.05 * item).astype(float)),
    }
    data = out.parent / f"{out.name}.parquet"
    pq.write_table(pa.table(columns), data)
    values: dict[str, Any] = {"data": str(data), "label": "bought", "categorical": ["item"], "numeric": ["age"]}
    values |= {"sequences": {"seen": "item"}, "max_len": 3, "epochs": 2, "batch": 64}
    return importlib.import_module("models.reloop2.train").train(out, seed=3, **(values | options))


def specvqgan_recipe(out: Path, **given: Any) -> Any:
    """Every stage on two short clips: spectrograms, codebook (its discriminator comes in), tokens, waveforms (likewise)."""
    module = importlib.import_module("models.specvqgan.train")
    stages = importlib.import_module("models.specvqgan.stages")
    schedule = module.BouncesSchedule(
        clips=2,
        seen_clips=2,
        measured=1,
        clip_s=2.0,
        autoencoder=stages.AutoencoderSchedule(plain_steps=6, steps=8, disc_start=4, columns=2),
        transformer=stages.TransformerSchedule(steps=6, batch=2),
        vocoder=stages.VocoderSchedule(steps=7, disc_start=3, batch=1, samples=2048, disc_channels=1),
    )
    return module.train(out, recipe="bounces", seed=3, schedule=schedule, **given)


def specvqgan_sound(out: Path, **options: Any) -> Any:
    """Codebook and vocoder on own sound: two notes that come and go."""
    import pyarrow as pa

    records = importlib.import_module("connectors.records")
    rows = []
    for name, hz in (("low", 300), ("high", 900)):
        time_N = np.arange(22050 * 2) / 22050
        sound_N = (9000 * np.sin(2 * np.pi * hz * time_N) * np.exp(-8 * (time_N % 0.6))).astype(np.int16)
        rows.append((name, 0, 0, 22050, 1, sound_N, None))
    columns = [pa.array(list(each), field.type) for each, field in zip(zip(*rows, strict=True), records.PCM, strict=True)]
    batch = pa.record_batch(columns, schema=records.PCM)
    values: dict[str, Any] = {"data": "notes", "multipliers": [1, 1, 1, 1, 1], "z_channels": 8, "code_width": 8, "codes": 16}
    values |= {"columns": 2, "batch": 1, "plain_steps": 6, "steps": 8, "disc_start": 4, "adaptive": True, "vocoder_steps": 7}
    values |= {"vocoder_disc_start": 3, "vocoder_channels": 2, "vocoder_batch": 1, "device": "cpu"}
    return importlib.import_module("models.specvqgan.train").train(out, seed=3, rows=[batch], **(values | options))


_SMALL_RESNET = {
    "blocks": [1, 1, 1, 1],
    "channels": [8, 32, 64, 128, 256],
    "neck_channels": 32,
    "fc_channels": 64,
    "heads": 4,
    "anchor_scales": [1.25, 2.0, 3.0],
    "anchor_ratios": [1.0],
    "proposals": 30,
    "train_proposals": 60,
    "max_long_side": 96,
    "max_short_side": 96,
    "pixel_level": True,
}
_SHIPPED = "models/mamba/weights/shapes.safetensors"

CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mamba recipe shapes": (mamba_recipe, {"recipe": "shapes"}),
    "mamba recipe shapes_binding": (mamba_recipe, {"recipe": "shapes_binding"}),
    "mamba videos from a checkpoint": (mamba_videos, {"init": "models/mamba/weights/shapes.safetensors"}),
    "mamba videos from nothing": (mamba_videos, {"network": _SMALL_RESNET, "batch": 1}),
    "rekv recipe shapes": (rekv_recipe, {}),
    "rekv videos": (rekv_videos, {}),
    "rekv videos, projector only": (rekv_videos, {"trained": "projector"}),
    "videostreaming recipe shapes": (videostreaming_recipe, {}),
    "videostreaming videos": (videostreaming_videos, {}),
    "videostreaming videos, instructions": (videostreaming_videos, {"stage": "instructions"}),
    "specvqgan recipe bounces": (specvqgan_recipe, {}),
    "specvqgan sound": (specvqgan_sound, {}),
    "reloop2 recipe drift": (reloop2_recipe, {}),
    "reloop2 rows, dcnv2 with dropout": (reloop2_rows, {"settings": {"dropout": 0.2, "batch_norm": True}}),
    "reloop2 rows, din": (
        reloop2_rows,
        {"network": "din", "settings": {"target_fields": [["item"]], "sequence_fields": [["seen"]]}},
    ),
}
"""Name → what trains, and with what."""


def run_case(name: str, out: Path, **given: Any) -> Any:
    """Train one case into a folder; ``given``: further arguments of ``train``."""
    function, own = CASES[name]
    if "init" in own:
        own = own | {"init": str(Path(str(importlib.import_module("models").__file__)).parents[1] / own["init"])}
    return function(out, **own, **given)


def checkpoints_every(updates: int, name: str) -> dict[str, Any]:
    """Set how often a case writes checkpoints: return its option, or patch the interval of recipes, which have none."""
    if " recipe " not in name:
        return {"checkpoint_every": updates}
    importlib.import_module("models.training.loop").CHECKPOINT_EVERY = updates
    return {}


def main() -> None:
    """Run the cases and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill", type=int, metavar="UPDATE", help="end this process by SIGKILL after so many updates")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in arguments.cases or CASES:
        trace, out = Trace(), arguments.folder / name
        given: dict[str, Any] = {"resume": True} if arguments.resume else {}
        if arguments.resume or arguments.kill:
            given |= checkpoints_every(KILLED_EVERY, name)

        def kill(*args: Any, trace: Trace = trace) -> None:
            if trace.updates == arguments.kill:
                os.kill(os.getpid(), signal.SIGKILL)

        handles = [register_optimizer_step_post_hook(trace), register_optimizer_step_post_hook(kill)]
        try:
            result = run_case(name, out, **given)
        finally:
            for handle in handles:
                handle.remove()
        found[name] = {
            "updates": trace.updates,
            "updates_sha256": trace.hexdigest(),
            "weights_sha256": weights_hash(out),
            "metrics": {key: float(f"{value:.{_METRIC_DIGITS}g}") for key, value in sorted(result.metrics.items())},
        }
    json.dump(found, sys.stdout)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    main()
