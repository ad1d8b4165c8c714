"""A line in a notebook that is rewritten in place: how long work goes on there. Knows nothing of the work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["NotebookLine", "in_notebook"]


def in_notebook() -> bool:
    """Return whether this runs in the kernel of a notebook (Jupyter, VS Code, Colab). Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@dataclass(frozen=True, slots=True)
class _Bar:
    text: str
    share: float | None

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        value = "" if self.share is None else f' value="{min(max(self.share, 0.0), 1.0):.4f}"'  # without one it runs to and fro
        bar = f'<progress max="1"{value} style="vertical-align: middle"></progress>'
        return {"text/plain": self.text, "text/html": f"{bar} <code>{escape(self.text)}</code>"}


class NotebookLine:
    """A bar with a text behind it, in the output of the cell that runs."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str, share: float | None) -> None:
        """Show a text and how much of the work is done, 0 to 1; None: nobody knows."""
        bar = _Bar(text, share)
        if self._handle is None:
            from IPython.display import display

            self._handle = display(bar, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bar)
