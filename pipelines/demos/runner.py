"""``streambank demo NAME``: run one demo in a folder of its own, then show a table with and without memory, and a picture.

A demo is a module of this package with a function ``show(out, say)``. It renders its own input, lets a pipeline work on it, and
returns what is shown. Only folders that hold nothing but an earlier demo are emptied.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from connectors.errors import ConfigError
from connectors.extras import missing

if TYPE_CHECKING:
    from pipelines import Pipeline
    from pipelines.api import Result

__all__ = ["DEMOS", "Demo", "Say", "Shown", "Worth", "command", "run", "run_demo", "show"]

Say = Callable[[str], None]
"""Tells the user what happens now."""
_MARK = ".streambank-demo"
"""Lies in the folder of a demo from its beginning."""
_WRITTEN = frozenset(
    (
        f"{_MARK} picture.png rows state video videos film.mp4 impressions.parquet labels.parquet training.parquet network "
        "predictions windows events.parquet off prompts sensors with without scans seen dark again again.yaml states segments "
        "prompts_done signals said _report.html _states _states.html _sounds _sounds.html"
    ).split()
)
"""What demos write, and ``streambank view`` beside it: a folder with anything else is left alone."""


@dataclass(frozen=True, slots=True)
class Demo:
    """What can be shown."""

    says: str
    needs: tuple[str, ...] = ()
    """Modules of ``connectors.extras``."""


DEMOS: Mapping[str, Demo] = {
    "mamba": Demo("objects whose class only earlier frames can tell, on Ray", ("cv2", "torchvision", "ray")),
    "rekv": Demo("questions about a film, from the few frames that match them", ("cv2", "transformers")),
    "videostreaming": Demo("questions about a film, from a few memories of clips", ("cv2", "transformers")),
    "reloop2": Demo("clicks that shift, predicted with a memory of errors", ("cv2",)),
    "prompttpp": Demo("events of users whose habits drift, learned on by prompts", ("cv2",)),
    "memprompttss": Demo("states of a signal, told apart by one remark", ("cv2",)),
    "fourd_vla": Demo("a robot that must remember what it saw", ("cv2",)),
    "specvqgan": Demo("sound for silent films", ("av", "cv2", "torchvision")),
}
"""Demos by name: those of the module of that name in this package."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What a memory is worth in one line, for the table of all demos (``benchmarks.demos``)."""

    what: str
    without: str
    having: str
    loses: str = ""
    """Where the memory makes it worse, in words and figures; empty where it nowhere does."""


@dataclass(slots=True)
class Shown:
    """What a demo has to show at its end."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The last one is what the memory gained."""
    worth: Worth
    facts: Sequence[str] = ()
    look: Sequence[tuple[str, str]] = ()
    """Files and what they are; the first one is the picture."""
    next: Sequence[str] = field(default_factory=list)
    """What to type next."""


def run_demo(name: str, out: Path | None = None) -> int:
    """Run a demo and print what it gave; return the exit status. Raise ``ConfigError`` where it cannot run here."""
    demo = DEMOS[name]
    folder = Path("demo" if name == "mamba" else f"demo_{name}") if out is None else out
    if told := missing(demo.needs):
        raise ConfigError(told)
    take(folder)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{name}: {demo.says}")
    began = time.monotonic()
    steps = iter(range(1, 100))

    def say(text: str) -> None:
        console.print(f"{next(steps)}. {text}")

    try:
        shown = show(name, folder, say)
    except KeyboardInterrupt:
        console.print("\nstopped; what is there so far lies in", str(folder))
        return 130
    _print(console, shown, time.monotonic() - began)
    return 0


def show(name: str, folder: Path, say: Say) -> Shown:
    """Let a demo do its work. Its networks are small: a second thread gains next to nothing, and waits on a busy machine."""
    from models.training import one_thread

    with one_thread():
        shown: Shown = importlib.import_module(f"pipelines.demos.{name}").show(folder, say)
    return shown


def run(pipeline: Pipeline, *, runner: str | None = None) -> Result:
    """Run a pipeline to its end. Ctrl-C lets it commit and stop, and then ends the demo (``KeyboardInterrupt``)."""
    result = pipeline.run(runner=runner)
    if result.report.status != "finished":
        raise KeyboardInterrupt
    return result


def take(folder: Path) -> None:
    """Make a folder, or empty that of an earlier demo. Raise ``ConfigError`` where it holds anything else."""
    if folder.exists() and not _is_ours(folder):
        raise ConfigError(f"{folder} is there and holds other things than a demo; name another folder behind the demo's name")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder holds nothing but what a demo wrote there, also one that was killed."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    return not names or (_MARK in names and names <= _WRITTEN)


def _print(console: Console, shown: Shown, seconds: float) -> None:
    table = Table()
    for number, column in enumerate(shown.columns):
        table.add_column(column, justify="right" if number else "left")
    for number, row in enumerate(shown.rows):
        table.add_row(*row, style="bold" if number == len(shown.rows) - 1 else None)
    console.print(f"\n{shown.title}")
    console.print(table)
    for fact in shown.facts:
        console.print(fact)
    console.print(f"{seconds:.0f} s in all")
    console.print("\nLook at it:")
    width = max((len(path) for path, _ in shown.look), default=0)
    for path, what in shown.look:
        console.print(f"  {path:<{width}}   {what}".rstrip())
    if shown.next:
        console.print("Type next:")
        for line in shown.next:
            console.print(f"  {command()} {line}")


def command() -> str:
    """Return how to call ``streambank`` from here: by its name where that finds this installation, else by its path."""
    here, found = Path(sys.executable).parent / "streambank", shutil.which("streambank")
    if found is not None and Path(found).resolve() == here.resolve():  # an environment may be reached by a link
        return "streambank"
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)
