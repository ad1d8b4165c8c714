"""States of a signal that nothing but a remark can name: without one, and with one about a single sample of each signal.

Slow and fast waves take turns; which of the two is called 0 was drawn. ``configs/memprompttss_replay.yaml`` reads the signals
and the remarks; the memory carries one remark to all places that look alike.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.demos.runner import Say, Shown, Worth, run
from pipelines.registry import CONFIGS

__all__ = ["show"]

_STREAMS, _SAMPLES, _RATE = 12, 1024, 100
_SAID = 40
"""The sample that the remark is about."""
_JUDGED = 256
"""Accuracy is that of all samples behind this one: none that the remark was about."""


def show(out: Path, say: Say) -> Shown:
    """Run the demo in a folder."""
    import torch

    from models.memprompttss.two_frequencies import two_frequencies
    from pipelines.viewing.view import view

    x_BLC, state_BL = two_frequencies(_STREAMS, _SAMPLES, torch.Generator().manual_seed(4711))
    say(f"Writing {_STREAMS} signals of {_SAMPLES} samples in which slow and fast waves take turns")
    sensors = out / "sensors"
    sensors.mkdir()
    for number in range(_STREAMS):
        with (sensors / f"pump{number}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["x"], *x_BLC[number].tolist()])
    told = [
        {
            "stream_id": f"pump{number}",
            "prompt_id": "said",
            "kind": "label",
            "at_offset_s": _SAID / _RATE,
            "state": int(state_BL[number, _SAID]),
        }
        for number in range(_STREAMS)
    ]
    accuracy = {}
    for name, prompts in (("without", []), ("with", told)):
        say(f"Telling states apart {name} one remark per signal")
        accuracy[name] = _accuracy(_run(out, name, prompts), state_BL.numpy())
    page = view(out / "with")
    picture = next(path for path in page if path.suffix == ".png")
    return Shown(
        title=f"Samples whose state is right, behind the first {_JUDGED} (chance is a half)",
        columns=("states told", "right"),
        rows=[
            ("without a remark", f"{accuracy['without']:.0%}"),
            (f"with one, about sample {_SAID}", f"{accuracy['with']:.0%}"),
            ("what one remark gained", f"{accuracy['with'] - accuracy['without']:+.0%}"),
        ],
        worth=Worth(
            "states of a signal that nothing names: right",
            f"{accuracy['without']:.0%}",
            f"{accuracy['with']:.0%} after one remark",
        ),
        look=[
            (f"{picture}", "a signal, its states, and the remark"),
            (f"{next(path for path in page if path.name == '_states.html')}", "all of them"),
        ],
        next=["run memprompttss_live    (states of this machine while you watch)", "describe memprompttss"],
    )


def _run(out: Path, name: str, prompts: list[dict[str, Any]]) -> Any:
    """Run the ready pipeline with remarks from a file; return the rows of states."""
    import yaml

    from pipelines import Pipeline

    folder = out / name
    folder.mkdir()
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    document = yaml.safe_load((CONFIGS / "memprompttss_replay.yaml").read_text(encoding="utf-8"))
    columns = document["sources"]["prompts"]["columns"]
    document["sources"]["prompts"] = {
        "type": "jsonl", "path": str(folder / "prompts.jsonl"), "columns": columns, "event_time_unit": "rows", "row_rate": 1
    }  # fmt: skip
    document |= {"state": str(folder / "state"), "name": "demo"}
    document["sources"]["sensors"]["path"] = str(out / "sensors" / "*.csv")
    for sink in ("states", "segments", "prompts_done", "signals", "said"):
        document["sinks"][sink]["path"] = str(folder / sink)
    return run(Pipeline.from_dict(document)).table("states")


def _accuracy(rows: Any, state_BL: Any) -> float:
    """Return the share of right states; of several rows of one sample the last revision counts."""
    streams = rows.column("stream_id").to_pylist()
    sequences = np.asarray(rows.column("sequence"))
    states = rows.column("state").to_pylist()
    final = rows.column("final").to_pylist()
    newest: dict[tuple[str, int], int] = {}
    for stream, sequence, state, done in zip(streams, sequences.tolist(), states, final, strict=True):
        if state is not None and (done or (stream, sequence) not in newest):
            newest[stream, sequence] = state
    judged = [
        state == state_BL[int(stream.removeprefix("pump")), sequence]
        for (stream, sequence), state in newest.items()
        if sequence >= _JUDGED
    ]
    return float(np.mean(judged))
