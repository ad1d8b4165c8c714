"""How a result shows itself in a notebook: what became of the rows, and the first ones of each table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as ds

from connectors.sinks.read import committed_files
from pipelines.commands.summary import report_text

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.runners.report import RunReport
    from pipelines.spec import PipelineSpec

__all__ = ["result_html", "result_text"]

_ROWS = 5
_WIDTH = 60
"""Characters of a value."""
_FORMATS = {".parquet": "parquet", ".arrow": "ipc", ".jsonl": "json"}


def result_text(spec: PipelineSpec, report: RunReport) -> str:
    """Return what is said at the end of a run."""
    return report_text(spec.name, report, spec.folders)


def result_html(spec: PipelineSpec, report: RunReport) -> str:
    """Return the same as HTML, with the first rows of each table. Reads no more than these rows."""
    parts = [f"<pre>{escape(result_text(spec, report))}</pre>"]
    for name, folder in spec.folders.items():
        rows = _first_rows(folder)
        if rows is not None:
            parts.append(f"<p><b>{escape(name)}</b>, the first rows</p>{_table(rows)}")
    return "\n".join(parts)


def _first_rows(folder: Path) -> pa.Table | None:
    files = [file for file in committed_files(folder) if file.suffix in _FORMATS]
    return ds.dataset([str(files[0])], format=_FORMATS[files[0].suffix]).head(_ROWS) if files else None


def _table(rows: pa.Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows.schema.names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_shown(value))}</td>' for value in row.values())}</tr>" for row in _plain(rows))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _plain(rows: pa.Table) -> list[Mapping[str, Any]]:
    plain: list[Mapping[str, Any]] = rows.to_pylist()
    return plain


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
