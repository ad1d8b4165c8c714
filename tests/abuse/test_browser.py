"""What a browser makes of the report: nothing of the data runs. In headless Chromium where there is one."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from abuse import command, copying, lines, run_file, write_rows
from browser import needs_browser, shown

pytestmark = [pytest.mark.slow, needs_browser]

HOSTILE = [
    "<script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "<svg onload=\"document.title='ran'\">",
    "</td></tr></table></style><iframe srcdoc=\"<script>parent.document.title='ran'</script>\"></iframe>",
    "\"'><input autofocus onfocus=\"document.title='ran'\">",
    "<style>@import 'data:text/css,*{display:none}'</style>",
    "<!--",
    "<base href=//127.0.0.1:9>",
]


class Elements(HTMLParser):
    """The tags of a document."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.title = [unescape(text) for text in re.findall(r"<title>(.*?)</title>", document, flags=re.S)]
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


def test_a_script_in_a_page_would_have_run(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    page = tmp_path / "page.html"
    page.write_text(f"<title>page</title>{HOSTILE[1]}")
    assert Elements(shown(page)).title == ["ran"]


def test_nothing_of_the_data_runs_in_the_report(tmp_path: Path) -> None:
    rows = [{"k": text, text: 1.5, "status": text, "error": text, "t": n} for n, text in enumerate(HOSTILE)]
    write_rows(tmp_path / "in.jsonl", [*rows, {"k": HOSTILE[0], "t": HOSTILE[1]}])
    done = run_file(tmp_path, copying(tmp_path, lines(tmp_path / "in.jsonl")))
    assert done.exit_code == 0, done.output
    sink = tmp_path / HOSTILE[1].replace("/", "-")
    (tmp_path / "rows").rename(sink)
    assert command("view", sink, "--output", tmp_path / "report.html").exit_code == 0
    written = Elements((tmp_path / "report.html").read_text())
    seen = Elements(shown(tmp_path / "report.html", until="main-svg"))  # Plotly has drawn
    assert seen.title == written.title
    assert written.tags <= seen.tags
    assert not seen.tags & {"img", "iframe", "input", "base"}
