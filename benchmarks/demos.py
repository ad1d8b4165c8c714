"""Claim: each of the eight demos ends within two minutes, and shows what its memory is worth.

Every demo runs as ``streambank demo NAME`` does, in a process of its own and an empty folder. What it shows is what the table
in the README says, which ``python -m benchmarks.tables`` writes from this result. ``cpu_s``: processor seconds of the process
and of those that it started; ``wall_s`` is meant on a machine that does nothing else.

    python -m benchmarks.demos [--only NAME ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from pipelines.demos import runner
from pipelines.demos.runner import DEMOS

ALLOWED_S = 120.0


def show(name: str, folder: Path) -> dict[str, Any]:
    """Run a demo here; return what it shows, without files."""
    shown = runner.show(name, folder, lambda text: None)
    return {"title": shown.title, "columns": list(shown.columns), "rows": [list(row) for row in shown.rows]} | {
        "worth": dataclasses.asdict(shown.worth)
    }


def measure(name: str) -> dict[str, Any]:
    """Run a demo in a process of its own; return what it shows and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        said, out = Path(folder) / "said.json", Path(folder) / "out"
        out.mkdir()
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([sys.executable, "-m", "benchmarks.demos", "--one", name, str(out), str(said)], check=True)
        wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        shown: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"says": DEMOS[name].says, **shown, "cpu_s": round(cpu_s, 1), "wall_s": round(wall_s, 1)}


def main(argv: list[str] | None = None) -> int:
    """Run the demos, print what they show, write the result; return 1 where one takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DEMOS, default=list(DEMOS), help="keep what the result has of the others")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "FOLDER", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        name, folder, file = arguments.one
        Path(file).write_text(json.dumps(show(name, Path(folder))), encoding="utf-8")
        return 0
    kept = machine.RESULTS / "demos.json"
    demos: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["demos"] if kept.exists() else {}
    for name in arguments.only:
        demos[name] = made = measure(name)
        worth = made["worth"]
        print(f"{name}: {worth['what']}: {worth['without']} | {worth['having']} ({made['wall_s']} s, {made['cpu_s']} s CPU)")
    demos = {name: demos[name] for name in DEMOS if name in demos}
    holds = len(demos) == len(DEMOS) and all(made["wall_s"] <= ALLOWED_S for made in demos.values())
    print("written:", machine.write("demos", {"allowed_s": ALLOWED_S, "demos": demos, "holds": holds}))
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
