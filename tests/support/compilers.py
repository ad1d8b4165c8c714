"""PyTorch's compiler without its second half: functions are captured as graphs, and run as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

__all__ = ["Captured", "captured"]


class Captured:
    """Functions that were given to the compiler, and how often each was called."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.graphs = 0

    def backend(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        """Count a graph; run it as it is."""
        self.graphs += 1
        forward: Callable[..., Any] = graph.forward
        return forward


def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """Replace ``torch.compile``; return what it is asked for from now on."""
    found, compiler = Captured(), torch.compile

    def compile_(function: Callable[..., Any], *, fullgraph: bool = False, **_: Any) -> Callable[..., Any]:
        compiled = compiler(function, backend=found.backend, dynamic=False, fullgraph=fullgraph)
        number = len(found.calls)
        found.calls.append(0)

        def run(*given: Any) -> Any:
            found.calls[number] += 1
            return compiled(*given)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return found
