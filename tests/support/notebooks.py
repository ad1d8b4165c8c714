"""Runs the code of a notebook in one process, without a kernel: what each cell prints and what its last line shows.

``python tests/support/notebooks.py docs/first_steps.ipynb`` runs it in a folder that is thrown away, and writes the outputs
into the notebook.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["execute", "read", "shown_by"]


def read(path: Path) -> dict[str, Any]:
    """Return a notebook."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def execute(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Run all code cells in the working folder; return the outputs of each, in the form of notebooks."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        found.append(_run("".join(cell["source"]), names, number + 1))
    return found


def shown_by(outputs: list[dict[str, Any]]) -> str:
    """Return the plain text of outputs."""
    return "".join("".join(one.get("text", one.get("data", {}).get("text/plain", ""))) for one in outputs)


def _run(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"<cell {number}>", "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if value is not None:
        data = {
            kind: text.splitlines(keepends=True) if kind.startswith("text") else text for kind, text in _bundle(value).items()
        }
        outputs.append({"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}})
    return outputs


def _bundle(value: Any) -> dict[str, str]:
    """Return what a notebook shows of a value."""
    found = {"text/plain": repr(value)}
    for kind, method in (("text/html", "_repr_html_"), ("image/png", "_repr_png_"), ("image/jpeg", "_repr_jpeg_")):
        made = getattr(value, method, lambda: None)()
        if made is not None:
            found[kind] = base64.b64encode(made).decode() if isinstance(made, bytes) else made
    return found


def main(path: Path) -> None:
    """Write the outputs of a notebook into it."""
    notebook = read(path)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            outputs = execute(notebook)
        finally:
            os.chdir(before)
        text = json.dumps(outputs).replace(str(Path(folder).resolve()), "/home/me").replace(folder, "/home/me")
    for number, (cell, made) in enumerate(
        zip((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), json.loads(text), strict=True), start=1
    ):
        cell["outputs"], cell["execution_count"] = made, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
