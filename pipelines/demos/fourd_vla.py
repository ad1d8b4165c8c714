"""A robot that points where the color of a cube told, which was there some frames ago and is gone now.

``configs/fourd_vla_act.yaml`` acts with the small policy of the package: on frames that its memory chose among the past twenty,
and on the newest frames alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from connectors.charts import sheet, write_picture
from connectors.extras import optional
from pipelines.demos.runner import Say, Shown, Worth, run
from pipelines.registry import CONFIGS

cv2 = optional("cv2")

__all__ = ["show"]

_RECORDINGS = 24
_SHOWN = 3


def show(out: Path, say: Say) -> Shown:
    """Run the demo in a folder."""
    from models.fourd_vla.recordings import ANSWERS, write_recordings

    say(f"Rendering {_RECORDINGS} recordings of a depth camera: {out / 'scans'}")
    (out / "scans").mkdir()
    write_recordings(out / "scans", count=_RECORDINGS, seed=77)
    answers = json.loads((out / "scans" / ANSWERS).read_text())
    last: dict[str, dict[str, Any]] = {}
    for name, window in (("without", 4), ("with", 20)):
        say(f"Acting on 4 frames: {'the newest' if name == 'without' else f'chosen among the last {window}'}")
        last[name] = _last_rows(out / name, out / "scans", window)
    right = {name: _right(rows, answers) for name, rows in last.items()}
    shown = []
    for stream in sorted(last["with"])[:_SHOWN]:
        for name in last:
            shown.append(_seen(out / "scans" / stream, last[name][stream], f"{name} memory"))
    write_picture(out / "picture.png", sheet(shown, height=110))
    return Shown(
        title=f"Recordings of {_RECORDINGS} in which the robot points the right way (chance is about a quarter)",
        columns=("acts on", "right"),
        rows=[
            ("the 4 newest frames", f"{right['without']}"),
            ("4 frames chosen among the last 20", f"{right['with']}"),
            ("what remembering gained", f"{right['with'] - right['without']:+d}"),
        ],
        worth=Worth(
            "pointing where a cube told that is gone",
            f"{right['without']} of {_RECORDINGS}",
            f"{right['with']} of {_RECORDINGS}",
        ),
        look=[(f"{out / 'picture.png'}", "the frames that it acted on, and how many frames ago they were")],
        next=[f"run fourd_vla_act --set scans.path={out / 'scans'}", "describe fourd_vla"],
    )


def _last_rows(folder: Path, scans: Path, window: int) -> dict[str, dict[str, Any]]:
    """Return what was done at the last frame of each recording."""
    from pipelines import Pipeline

    places = {
        "state": f"{folder / 'state'}",
        "sources.scans.path": f"{scans}",
        "operators.act.window": window,
        "sinks.rows.path": f"{folder / 'rows'}",
    }
    rows = run(Pipeline.load(CONFIGS / "fourd_vla_act.yaml", overrides=places)).table("rows")
    newest: dict[str, dict[str, Any]] = {}
    for row in rows.sort_by("sequence").to_pylist():
        newest[row["stream_id"]] = row
    return newest


def _right(rows: dict[str, dict[str, Any]], answers: dict[str, dict[str, Any]]) -> int:
    """Return how many moves are nearer to the right one than to any other that a recording asks for."""
    moves = np.unique(np.round([answer["move"] for answer in answers.values()], 4), axis=0)
    count = 0
    for stream, row in rows.items():
        nearest = moves[np.linalg.norm(moves - np.array(row["action"][:3]), axis=1).argmin()]
        count += bool(np.linalg.norm(nearest - np.array(answers[stream]["move"])) < 1e-3)
    return count


def _seen(folder: Path, row: dict[str, Any], words: str) -> tuple[str, list[tuple[Any, str]]]:
    pictures = [cv2.imread(str(folder / f"frame-{sequence:06}.color.png"))[..., ::-1] for sequence in row["selected_sequences"]]
    ago = [f"{-offset}" if offset < 0 else f"{offset}" for offset in row["offsets"]]
    return words, [
        (picture, "now" if when == "0" else f"{when} frames ago") for picture, when in zip(pictures, ago, strict=True)
    ]
