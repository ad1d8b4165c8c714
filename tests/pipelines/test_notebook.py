"""The notebook of the docs runs, and shows what it says it does."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from notebooks import execute, read, shown_by

PAGE = Path(__file__).resolve().parents[2] / "docs" / "first_steps.ipynb"
# What differs from run to run and from processor to processor: times, scores, edges of boxes.
VARYING = (r"\d+\.\d+", r"0x[0-9a-f]+")


def steady(text: str) -> str:
    for pattern in VARYING:
        text = re.sub(pattern, "#", text)
    return re.sub(r"[ \n]+", " ", text)


@pytest.mark.heavy
def test_every_cell_of_the_notebook_shows_what_the_page_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    nbformat.validate(nbformat.read(PAGE, 4))
    notebook = read(PAGE)
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell, made in zip(cells, execute(notebook), strict=True):
        wanted = cell["outputs"]
        assert [sorted(one.get("data", {})) for one in made] == [sorted(one.get("data", {})) for one in wanted], cell["source"]
        said = shown_by(made).replace(str(tmp_path), "/home/me")
        assert steady(said) == steady(shown_by(wanted)), cell["source"]
