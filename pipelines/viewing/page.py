"""The page of ``streambank view``: one HTML file about all results of a pipeline, that opens anywhere and loads nothing.

Numbers are drawn by Plotly's script, which stands in the page where the extra ``report`` is installed. Nothing of the data
runs: a browser is told to run the two scripts of this page, by their hashes, and none besides.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from connectors.extras import missing
from pipelines.viewing.curves import drawings

__all__ = ["document", "page"]

logger = logging.getLogger(__name__)

_MOST_STREAMS = 50
_MOST_ERRORS = 10
_MOST_ANSWERS = 50
_MOST_FILMS = 20


def page(title: str, tables: Mapping[str, pa.Table], media: Sequence[Path], folder: Path) -> str:
    """Return the page.

    ``tables``: the rows of each sink by name; ``media``: films and sounds that sinks have written; ``folder``: where the
    page will lie, from which it refers to the media.
    """
    figures: list[Mapping[str, Any]] = []
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if len(tables) > 1:
        counts = "".join(f"<tr><td>{html.escape(name)}</td><td>{len(rows):,}</td></tr>" for name, rows in tables.items())
        parts.append(f"<table><tr><th>sink</th><th>rows</th></tr>{counts}</table>")
    parts.append(_media(media, folder))
    for name, table in tables.items():
        parts += [part for part in _section(name, table, figures, alone=len(tables) == 1) if part]
    script, told = _script()
    if told and figures:
        parts.insert(1, f"<p>{html.escape(told)}</p>")
        logger.warning("view has drawn no curves: %s", told)
    return document(title, parts, figures, [script, _DRAW] if script and figures else [])


def document(title: str, parts: Sequence[str], figures: Sequence[Mapping[str, Any]] = (), scripts: Sequence[str] = ()) -> str:
    """Return HTML of ``parts``, in which nothing but ``scripts`` runs."""
    hashes = " ".join(f"'sha256-{_sha(script)}'" for script in scripts) or "'none'"
    shown = json.dumps(figures, allow_nan=False).replace("<", "\\u003c")
    given = f'<script type="application/json" id="figures">{shown}</script>' if scripts else ""
    return _PAGE.format(
        title=html.escape(title),
        hashes=hashes,
        body="\n".join(part for part in parts if part),
        scripts=given + "".join(f"<script>{script}</script>" for script in scripts),
    )


def _section(name: str, table: pa.Table, figures: list[Mapping[str, Any]], *, alone: bool) -> Iterator[str]:
    if not alone:
        yield f"<h2>{html.escape(name)}</h2>"
    yield f"<p>{table.num_rows:,} rows, {len(table.column_names)} columns, {_time_range(table)}</p>"
    yield _streams(table)
    yield _errors(table)
    yield _answers(table)
    for drawing in drawings(table):
        text = f"<h3>{html.escape(drawing.title)}</h3><p>{html.escape(drawing.words)}</p>"
        if drawing.figure is not None:
            text += f'<div class="figure" id="figure{len(figures)}"></div>'
            figures.append(drawing.figure)
        yield text
    yield _schema(table.schema)


def _time_range(table: pa.Table) -> str:
    if "event_time" not in table.column_names or not table.num_rows:
        return "no event times"
    ends = pc.min_max(table.column("event_time")).as_py()
    return f"{ends['min']} to {ends['max']}"


def _streams(table: pa.Table) -> str:
    """Rows per stream and status."""
    if "stream_id" not in table.column_names:
        return ""
    keys = ["stream_id", "status"] if "status" in table.column_names else ["stream_id"]
    plain = table.select(keys)
    if "status" in keys:
        plain = plain.set_column(1, "status", plain.column("status").cast(pa.string()))
    counts = plain.group_by(keys).aggregate([([], "count_all")]).sort_by([(key, "ascending") for key in keys])
    rows = [[*(str(row[key]) for key in keys), f"{row['count_all']:,}"] for row in counts.slice(0, _MOST_STREAMS).to_pylist()]
    more = f"<p>and {counts.num_rows - _MOST_STREAMS:,} more</p>" if counts.num_rows > _MOST_STREAMS else ""
    return f"<h3>Streams</h3>{_table([*keys, 'rows'], rows)}{more}"


def _errors(table: pa.Table) -> str:
    """The most frequent errors."""
    if "error" not in table.column_names or not len(errors := table.column("error").drop_null()):
        return ""
    counts = sorted(pc.value_counts(errors).to_pylist(), key=lambda entry: -entry["counts"])[:_MOST_ERRORS]
    rows = [[entry["values"], f"{entry['counts']:,}"] for entry in counts]
    return f"<h3>Errors</h3>{_table(['error', 'rows'], rows)}"


def _answers(table: pa.Table) -> str:
    """The first questions with their answers."""
    wanted = [name for name in ("stream_id", "as_of", "question", "answer", "confidence") if name in table.column_names]
    if not {"question", "answer"} <= set(wanted):
        return ""
    rows = [
        ["" if value is None else str(value) for value in row.values()] for row in _first(table.select(wanted), _MOST_ANSWERS)
    ]
    more = f"<p>and {table.num_rows - _MOST_ANSWERS:,} more</p>" if table.num_rows > _MOST_ANSWERS else ""
    return f"<h3>Answers</h3>{_table(wanted, rows)}{more}"


def _first(table: pa.Table, count: int) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = table.slice(0, count).to_pylist()
    return rows


def _schema(schema: pa.Schema) -> str:
    rows = [[field.name, str(field.type)] for field in schema]
    return f"<details><summary>Columns</summary>{_table(['column', 'type'], rows)}</details>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{html.escape(value)}</td>' for value in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _media(files: Sequence[Path], folder: Path) -> str:
    """Films and sounds, to be played from where they lie."""
    shown = []
    for file in files[:_MOST_FILMS]:
        kind = "audio" if file.suffix == ".wav" else "video"
        place = quote(Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix())
        player = f'<{kind} controls preload="metadata" src="{html.escape(place)}"></{kind}>'
        shown.append(f"<figure>{player}<figcaption>{html.escape(file.name)}</figcaption></figure>")
    more = f"<p>and {len(files) - _MOST_FILMS:,} more files</p>" if len(files) > _MOST_FILMS else ""
    return f'<div class="films">{"".join(shown)}</div>{more}' if shown else ""


def _script() -> tuple[str, str | None]:
    """Return Plotly's script, or what to install for it."""
    if told := missing(["plotly"]):
        return "", f"Curves are not drawn: {told}"
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"), None


def _sha(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


_DRAW = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const look = {responsive: true, displayModeBar: false};
figures.forEach((figure, i) => Plotly.newPlot("figure" + i, figure.data, figure.layout, look));
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; \
img-src data: blob:; media-src *"><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2026; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }}
.films {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; margin-top: 1rem; }}
svg rect {{ fill: #3b6ea8; }}
.films figure {{ margin: 0; }} .films video, .films audio {{ width: 100%; }} img.wide {{ max-width: none; }}
h2 {{ margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem; }} h3 {{ margin-top: 2rem; font-size: 1.1rem; }}
</style></head><body>
{body}
{scripts}
</body></html>
"""
