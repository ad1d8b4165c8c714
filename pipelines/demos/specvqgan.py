"""Sound for silent films of bouncing balls: a bounce is a note, its color the pitch. From the frames alone, and from none.

``configs/specvqgan_replay.yaml`` makes the sound; without memory of the frames the same network hears frames that show nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.demos.runner import Say, Shown, Worth, run
from pipelines.registry import CONFIGS

if TYPE_CHECKING:
    from models.specvqgan.bounces import Clip
    from models.specvqgan.listening import Match

__all__ = ["make_sound", "render", "show"]

_SEEDS = range(900_000, 900_003)  # clips that no training run draws
_SECONDS, _FPS = 6.0, 30.0


def show(out: Path, say: Say) -> Shown:
    """Run the demo in a folder."""
    from pipelines.viewing.view import view

    clips, found = make_sound(out, say)
    dark = _heard(clips, out, say, "dark")
    pictures = view(out / "seen", video=out / "seen" / "videos")
    right, blind = found.shares(), dark.shares()
    page = next(path for path in pictures if path.name == "_sounds.html")
    picture = next((path for path in sorted(out.rglob("*.png"))), page)
    return Shown(
        title=f"Bounces heard within 0.1 s, and at their pitch, of {found.bounces}",
        columns=("sound made from", "heard", "at their pitch"),
        rows=[
            ("frames that show nothing", f"{dark.found}", f"{dark.right}"),
            ("the frames of the film", f"{found.found}", f"{found.right}"),
            ("what seeing gained", f"{found.found - dark.found:+d}", f"{found.right - dark.right:+d}"),
        ],
        worth=Worth(
            "sound for a film: bounces heard at their pitch",
            f"{dark.right} of {dark.bounces} where it sees nothing",
            f"{found.right} of {found.bounces}",
        ),
        facts=[f"onsets that are bounces: {right['precision']:.0%} with the film, {blind['precision']:.0%} without"],
        look=[
            (f"{picture}", "frames, spectrograms of real and made sound"),
            (f"{page}", "the same of all films"),
            (f"{out / 'seen' / 'film'}", "the films with the sound that was made"),
        ],
        next=["describe specvqgan"],
    )


def make_sound(
    out: Path, say: Say, *, checkpoint: Path | None = None, seconds: float = _SECONDS
) -> tuple[Mapping[str, Clip], Match]:
    """Render films, let a network (by default the one of the package) make their sound; return them and how it fits."""
    from models.specvqgan.bounces import make_clip

    say(f"Rendering {len(_SEEDS)} films of {seconds:g} s, with their own sound to compare with: {out / 'seen' / 'videos'}")
    clips = {f"ball{seed}": make_clip(seed, seconds) for seed in _SEEDS}
    for name, clip in clips.items():
        render(clip, out / "seen" / "videos" / f"{name}.mp4")
        render(clip, out / "dark" / "videos" / f"{name}.mp4", dark=True)
    return clips, _heard(clips, out, say, "seen", checkpoint)


def _heard(clips: Mapping[str, Clip], out: Path, say: Say, which: str, checkpoint: Path | None = None) -> Match:
    """Make sound from the films of a folder and listen to it."""
    import torch

    from models.specvqgan.listening import Match, listen, match
    from pipelines import Pipeline

    say("Making sound from the frames alone" if which == "seen" else "Making sound from frames that show nothing")
    folder = out / which
    places = {
        "state": f"{folder / 'state'}",
        "sources.clips.path": f"{folder / 'videos' / '*.mp4'}",
        **{f"sinks.{sink}.path": f"{folder / to}" for sink, to in (("heard", "wav"), ("film", "film"), ("sound", "sound"))},
    }
    if checkpoint is not None:
        places["operators.foley.checkpoint"] = f"{checkpoint}"
    table = run(Pipeline.load(CONFIGS / "specvqgan_replay.yaml", overrides=places)).table("sound")
    found = Match(0, 0, 0, 0)
    for name, clip in clips.items():
        rows = [row for row in table.to_pylist() if row["stream_id"] == name]
        samples = [sample for row in sorted(rows, key=lambda row: row["sequence"]) for sample in row["samples"] or ()]
        found += match(clip, listen(torch.tensor(samples) / 32768))
    return found


def render(clip: Clip, path: Path, *, dark: bool = False) -> None:
    """Write a clip as MP4 with its sound; ``dark``: with pictures that show nothing, and none."""
    from connectors.sinks.mp4 import Mp4Writer
    from models.specvqgan.config import RATE

    path.parent.mkdir(parents=True, exist_ok=True)
    frames = clip.frames(_FPS)
    if dark:
        frames = np.full_like(frames, int(np.median(frames)))
    writer = Mp4Writer(path, size=(frames.shape[2], frames.shape[1]), sound_rate=RATE)
    step_us = round(1e6 / _FPS)
    try:
        for number, frame in enumerate(frames):
            writer.write(np.ascontiguousarray(frame[..., ::-1]), round(number * 1e6 / _FPS), step_us)
        if not dark:
            writer.write_sound(np.rint(np.clip(clip.samples(), -1, 1) * 32767).astype(np.int16))
    except BaseException:
        writer.abort()
        raise
    writer.finish()
