"""What is said at the end of a run: how it ended, and per node what has become of its rows.

Every row whose status is not good, every late or dropped row, every loss that an operator counts and every file that was not
read is told here, with the reason that the first of them gives. Counts are of the whole run, over resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.outputs import address_of
from pipelines.runtime.tally import MAX_NAMES, Tally

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.fresh import Leftover
    from pipelines.runners.report import RunReport

__all__ = ["duration", "facts", "leftover_text", "problem_text", "report_text", "size", "tally_lines"]

_NAMES = 5
"""Files that are named in one line."""
_FIRST = 3
"""Files of a folder that are named before they are deleted."""


def facts(tallies: Iterable[Tally]) -> dict[str, int]:
    """Return how much was not ok, by kind; what is nothing is left out."""
    total = Tally.sum(part for tally in tallies for _, part in tally.by_output())
    counts = {
        "not_ok": total.not_ok,
        "late_rows": total.late_rows,
        "dropped": total.dropped.total(),
        "losses": total.losses.total(),
        "incomplete": total.incomplete.total(),
        "unread_files": total.unread_files,
    }
    return {name: number for name, number in counts.items() if number}


def problem_text(report: RunReport) -> str:
    """Return in one line what was not ok in a run, node by node."""
    return "; ".join(
        f"{node}: {', '.join(f'{number:,} {name.replace(chr(95), chr(32))}' for name, number in facts([tally]).items())}"
        for node, tally in _by_address(report.tallies).items()
        if not tally.all_ok
    )


def report_text(name: str, report: RunReport, folders: Mapping[str, Path]) -> str:
    """Return what is said at the end of a run; ``folders`` says where each sink has written."""
    tallies = _by_address(report.tallies)
    if report.status == "already finished":
        lines = [f"{name}: already finished at epoch {report.epoch}; nothing has come since"]
        lines += [line for node, tally in tallies.items() if not tally.all_ok for line in _node_lines(node, 0, None, tally)]
        return "\n".join(lines)
    lines = [
        f"{name}: {report.status} after {duration(report.seconds)} (start-up {report.startup_s:.1f} s) on {report.runner}, "
        f"{report.epochs} epoch{'s' if report.epochs != 1 else ''}"
        + (f", {report.attempts} attempts" if report.attempts > 1 else "")
    ]
    rows: dict[str, int | None] = {node: tally.rows for node, tally in tallies.items()}
    rows |= report.rows_committed
    rows |= {node: None for node, tally in report.tallies.items() if tally.outputs and not tally.rows}  # all are of an output
    nodes = [*tallies, *(node for node in report.rows_committed if node not in tallies)]
    width = max(map(len, nodes), default=0)
    for node in nodes:
        tally = tallies.get(node)
        first, *further = _node_lines(node, width, rows[node], tally)
        lines += [f"{first}  {folders[node]}" if node in folders else first, *further]
    if report.status == "stopped":
        lines.append("  go on with --resume")
    return "\n".join(lines)


def leftover_text(found: Sequence[Leftover]) -> str:
    """Return a line per folder: how many files of earlier runs, how large, the first ones by name."""
    lines = []
    for part in found:
        names = [str(file.relative_to(part.folder)) for file in part.files[:_FIRST]]
        more = f", {names[-1]} …" if len(part.files) > _FIRST else ""
        shown = ", ".join(names if not more else names[:-1]) + more
        files = "1 file" if len(part.files) == 1 else f"{len(part.files):,} files"
        lines.append(f"  {part.where}: {files}, {size(part.bytes)} in {part.folder} ({shown})")
    return "\n".join(lines)


def _by_address(tallies: Mapping[str, Tally]) -> dict[str, Tally]:
    """Return the tally of each output by its address: an operator that names its outputs has one line for each."""
    return {address_of(node, output): part for node, tally in tallies.items() for output, part in tally.by_output()}


def _node_lines(node: str, width: int, rows: int | None, tally: Tally | None) -> list[str]:
    """Return the line of a node, and more where more than statuses is to be told."""
    line = f"  {node}" if rows is None else f"  {node:<{width}}  {rows:>12,} rows"
    if tally is None:
        return [line]
    first, *further = tally_lines(tally, _NAMES) if tally.statuses else ["", *tally_lines(tally, _NAMES)]
    return [line + (f": {first}" if first else ""), *(f"  {'':<{width}}  {text}" for text in further)]


def tally_lines(tally: Tally, names: int) -> list[str]:
    """Return rows by status, where they have one, then all else that is to be told, with at most so many names of files."""
    return [*([_statuses(tally)] if tally.statuses else []), *_counts(tally), *_unread(tally, names)]


def _statuses(tally: Tally) -> str:
    """Return rows by status, ``ok`` first, then the most frequent."""
    known = tally.statuses.total()
    statuses = {**tally.statuses, **({"ok": tally.rows - known} if tally.rows > known else {})}
    ordered = sorted(statuses.items(), key=lambda item: (item[0] != "ok", -item[1], item[0]))
    parts = []
    for status, number in ordered:
        reason = tally.reasons.get(status)
        parts.append(f"{number:,} {status}" + (f" ({reason})" if reason else ""))
    return ", ".join(parts)


def _counts(tally: Tally) -> list[str]:
    lines = []
    if tally.late_rows:
        remedy = "they came behind the watermark of their input; a longer align_s gives them their place"
        lines.append(f"{tally.late_rows:,} late rows: {remedy}")
    lines += [f"{number:,} rows dropped: {reason}" for reason, number in tally.dropped.most_common() if number]
    lines += [f"{number:,} rows {text}" for text, number in tally.incomplete.most_common() if number]
    for name, number in tally.losses.most_common():
        reason = tally.reasons.get(name)
        if number:
            lines.append(f"{number:,} {name.replace('_', ' ')}" + (f": {reason}" if reason else ""))
    return lines


def _unread(tally: Tally, names: int) -> list[str]:
    if not tally.unread_files:
        return []
    named = [f"  {name}: {reason}" for name, reason in list(tally.unread.items())[:names]]
    left = tally.unread_files - len(named)
    more = f"  and {left:,} more" + (f"; inspect names up to {MAX_NAMES}" if len(tally.unread) > len(named) else "")
    files = "1 file was" if tally.unread_files == 1 else f"{tally.unread_files:,} files were"
    return [f"{files} not read, or not to the end:", *named, *([more] if left else [])]


def size(count: float) -> str:
    """Write a number of bytes for people: ``512 B``, ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Write a time for people: ``2.5 s``, ``1:15``, ``2:00:01``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
