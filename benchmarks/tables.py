"""Write docs/benchmarks.md, and the figures of the README, from benchmarks/results/*.json, so that they cannot differ.

    python -m benchmarks.tables [--check]

A claim is one row: what was measured, the figure taken from the result of one benchmark, and the command that measures it. A
result that says of itself that it missed its goal has that written behind its figure.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.claims import CLAIMS, README_CLAIMS
from benchmarks.machine import RESULTS
from benchmarks.result_words import Result

__all__ = ["demo_table", "main", "page", "readme"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"

_INTRODUCTION = """# Benchmarks

Every figure comes from one command in [`benchmarks/`](../benchmarks) that runs both sides in one go and writes its result, with
the machine's description, to `benchmarks/results/`; `make bench` runs them all. This page is written from those results by
`python -m benchmarks.tables`.

"""

_BETWEEN = re.compile(r"(<!-- figures: python -m benchmarks\.tables -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL)
_DEMOS = re.compile(r"(<!-- demos: python -m benchmarks\.tables -->\n)(.*?)(<!-- end of demos -->)", re.DOTALL)


def page(folder: Path = RESULTS) -> str:
    """Return the text of docs/benchmarks.md."""
    lines = [_INTRODUCTION]
    for subject in dict.fromkeys(claim.subject for claim in CLAIMS):
        lines += [f"## {subject}\n\n", "| measured | figure | command |\n", "|---|---|---|\n"]
        for claim in CLAIMS:
            if claim.subject == subject:
                result = _read(folder, claim.result)
                missed = " **(missed its goal)**" if _missed(result, claim.goal) else ""
                lines.append(f"| {claim.claim} | {claim.figure(result)}{missed} | `{claim.command}` |\n")
        lines.append("\n")
    lines.append("## Where and when\n\n| result | processor | date |\n|---|---|---|\n")
    for name in sorted({claim.result for claim in CLAIMS}):
        result = _read(folder, name)
        machine = result["machine"]
        device = machine["gpu"]["name"] if machine.get("gpu") else f"{machine['cores']} cores of {machine['processor']}, no GPU"
        lines.append(f"| `{name}` | {device} | {result['at'][:10]} |\n")
    return "".join(lines)


def readme(text: str, folder: Path = RESULTS) -> str:
    """Return the README with its figures between the two marks written anew."""
    rows = [f"- {what}: {figure(_read(folder, name))}\n" for name, what, figure in README_CLAIMS]
    text = _BETWEEN.sub(lambda found: found[1] + "".join(rows) + found[3], text)
    return _DEMOS.sub(lambda found: found[1] + demo_table(_read(folder, "demos")) + found[3], text)


def demo_table(result: Result) -> str:
    """Return what each demo's memory is worth, and where it loses, as a table."""
    lines = ["| demo | without memory | with |\n", "|---|---|---|\n"]
    for name, demo in result["demos"].items():
        worth = demo["worth"]
        loses = f" (worse: {worth['loses']})" if worth["loses"] else ""
        lines.append(f"| `{name}` | {worth['what']}: {worth['without']} | {worth['having']}{loses} |\n")
    return "".join(lines)


def _read(folder: Path, name: str) -> Result:
    result: Result = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return result


def _missed(result: Result, goal: str) -> bool:
    said = [result[word] for word in ("holds", "held", "passed") if word in result]
    return any((one[goal] if isinstance(one, Mapping) else one) is False for one in said)


def main(argv: list[str] | None = None) -> int:
    """Write both files, or say which is not what the results give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not what the results give")
    args = parser.parse_args(argv)
    stale = 0
    for path, text in ((PAGE, page()), (README, readme(README.read_text(encoding="utf-8")))):
        if path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"{'differs' if args.check else 'written'}: {path.relative_to(ROOT)}")
        if not args.check:
            path.write_text(text, encoding="utf-8")
    return stale if args.check else 0


if __name__ == "__main__":
    sys.exit(main())
