"""``python -m pipelines.sound_demo [FOLDER]``: sound for silent films, to be heard and seen in half a minute.

Renders films of bouncing balls (a bounce is a note, its color the pitch), lets ``configs/specvqgan_replay.yaml`` make their
sound from the frames alone, and writes films with that sound, WAV files, and pictures of real against made spectrograms.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from connectors.extras import missing

__all__ = ["main"]

_PIPELINE = Path(__file__).resolve().parent / "configs" / "specvqgan_replay.yaml"
_SEEDS = range(900_000, 900_003)  # clips that no training run draws
_SECONDS, _FPS = 10.0, 30.0
_WRITTEN = {"film", "sound", "state", "videos", "wav", "_sounds", "_sounds.html"}


def main(arguments: Sequence[str] = ()) -> int:
    """Run the demo in the folder that is the only argument and print what it gave; return the exit status."""
    out = Path(arguments[0] if arguments else "sound_demo")
    if problem := _problem(out, arguments):
        print(f"sound_demo: {problem}", file=sys.stderr)
        return 2
    shutil.rmtree(out, ignore_errors=True)
    make_sound(out)
    return 0


def _problem(out: Path, arguments: Sequence[str]) -> str | None:
    """Return why the demo cannot run here."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        return f"give one folder, or none for 'sound_demo'; got: {' '.join(arguments)}"
    if out.exists() and (not out.is_dir() or not {path.name for path in out.iterdir()} <= _WRITTEN):
        return f"{out} is there and holds other things than a demo; name another folder: python -m pipelines.sound_demo FOLDER"
    return missing(["av", "cv2", "torchvision"])


def make_sound(out: Path, *, checkpoint: Path | None = None, seconds: float = _SECONDS) -> None:
    """Render films into ``out``, let a network (by default the one of the package) make their sound, and print how it fits."""
    import torch

    from models.specvqgan.bounces import make_clip
    from models.specvqgan.listening import listen, match
    from pipelines import Pipeline
    from pipelines.view import view

    print(f"1. Rendering {len(_SEEDS)} films of {seconds:g} s, with their own sound to compare with: {out / 'videos'}")
    clips = {f"ball{seed}": make_clip(seed, seconds) for seed in _SEEDS}
    for name, clip in clips.items():
        render(clip, out / "videos" / f"{name}.mp4")
    print("2. Making sound from the frames alone")
    places = {
        "state": f"{out / 'state'}",
        "sources.clips.path": f"{out / 'videos' / '*.mp4'}",
        **{
            f"sinks.{sink}.path": f"{out / folder}" for sink, folder in (("heard", "wav"), ("film", "film"), ("sound", "sound"))
        },
    }
    if checkpoint is not None:
        places["operators.foley.checkpoint"] = f"{checkpoint}"
    result = Pipeline.load(_PIPELINE, overrides=places).run()
    print("3. Listening to it\n")
    table = result.table("sound")
    for name, clip in clips.items():
        rows = [row for row in table.to_pylist() if row["stream_id"] == name]
        samples = [sample for row in sorted(rows, key=lambda row: row["sequence"]) for sample in row["samples"] or ()]
        found = match(clip, listen(torch.tensor(samples) / 32768))
        heard = f"{found.found} of {found.bounces} bounces heard within 0.1 s, {found.right} at their pitch"
        print(f"  {name}: {heard}; {found.heard} notes in all")
    pictures = view(out, video=out / "videos")
    print("\nHear and look at it:")
    print(f"  {out / 'film'}      the films with the sound that was made")
    print(
        f"  {next(path for path in pictures if path.name == '_sounds.html')}      frames, spectrograms of real and made sound"
    )


def render(clip: object, path: Path) -> None:
    """Write a clip as MP4, with its sound."""
    import numpy as np

    from connectors.sinks.mp4 import Mp4Writer
    from models.specvqgan.bounces import Clip
    from models.specvqgan.config import RATE

    assert isinstance(clip, Clip)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = clip.frames(_FPS)
    writer = Mp4Writer(path, size=(frames.shape[2], frames.shape[1]), sound_rate=RATE)
    step_us = round(1e6 / _FPS)
    try:
        for number, frame in enumerate(frames):
            writer.write(np.ascontiguousarray(frame[..., ::-1]), round(number * 1e6 / _FPS), step_us)
        writer.write_sound(np.rint(np.clip(clip.samples(), -1, 1) * 32767).astype(np.int16))
    except BaseException:
        writer.abort()
        raise
    writer.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
