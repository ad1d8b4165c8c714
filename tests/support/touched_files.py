"""Which of the project's own files run while something happens: for the tests that bound how many a reader has to know.

The bounds stand in tables of docs/architecture.md.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("connectors", "models", "operators", "pipelines")


class Touched:
    """Functions that were called, by file relative to the repository."""

    def __init__(self) -> None:
        self.functions: dict[str, set[str]] = {}

    @property
    def files(self) -> list[str]:
        """The files, sorted."""
        return sorted(self.functions)

    @property
    def by_package(self) -> Counter[str]:
        """How many files of each package."""
        return Counter(file.partition("/")[0] for file in self.functions)

    def require_at_most(self, allowed: dict[str, int]) -> None:
        """Fail, with the list of files, where a package has more than it is allowed, or the figures could be much lower."""
        listed = f"{dict(self.by_package)} against {allowed}:\n" + "\n".join(self.files)
        assert all(count <= allowed.get(name, 0) for name, count in self.by_package.items()), listed
        assert sum(allowed.values()) - len(self.functions) <= 3, f"lower the figures of docs/architecture.md; {listed}"


def documented(title: str) -> dict[str, int]:
    """Return package → files from the first table behind ``title`` in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition(title)[2].split("\n\n")[1]
    return {name: int(number) for name, number in re.findall(r"^\| `(\w+)` \| (\d+) \|", table, re.MULTILINE)}


@contextmanager
def touched(start: str | None = None, stop: str | None = None) -> Iterator[Touched]:
    """Collect the files of the four packages with a function that is called within the block, in threads it starts too.

    ``start`` and ``stop`` are qualified names: count from the first call of the one to the next return from the other.
    """
    found = Touched()
    prefixes = tuple(str(ROOT / package) + "/" for package in PACKAGES)
    skip = len(str(ROOT)) + 1
    counting = start is None

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal counting
        code = frame.f_code
        if not code.co_filename.startswith(prefixes):
            return
        if event == "call":
            counting = counting or code.co_qualname == start
            if counting:
                found.functions.setdefault(code.co_filename[skip:], set()).add(code.co_qualname)
        elif event == "return" and code.co_qualname == stop:
            counting = False

    before = sys.getprofile(), threading.getprofile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(before[0])
        threading.setprofile(before[1])  # type: ignore[arg-type]
