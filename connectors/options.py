"""How sources, sinks and operators declare their options.

An options class is a keyword-only frozen dataclass whose fields are made by :func:`option`. The pipeline file, ``check`` and
``describe`` read the metadata from there, so a default, a unit or a bound is written once. Checks across fields belong into
``__post_init__`` and raise ``ConfigError``. A renamed option says what it ``was``; where one is gone permanently, the class
variable ``removed: ClassVar[Mapping[str, str]]`` says what to write now. Standard library only: operators run where pydantic is
not installed.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["BOUNDS", "REQUIRED", "option"]

BOUNDS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}
"""Kinds of bounds: their words, and whether a number keeps them."""

REQUIRED: Any = dataclasses.MISSING
"""Pass as ``default`` for an option that the user must give."""


def option(
    default: Any,
    doc: str,
    *,
    unit: str | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    secret: bool = False,
    path: bool = False,
    was: Sequence[str] = (),
) -> Any:
    """Declare one option of a keyword-only frozen dataclass.

    ``doc`` is one sentence: meaning and when to change it. ``ge``/``gt``/``le``/``lt`` bound a number. Where only certain
    values are allowed, the field is annotated as ``Literal[...]``, or as a list of it. ``secret`` options take only
    ``{env: NAME}`` or ``{file: PATH}`` in a pipeline file and are never printed. ``path`` options (and all of type ``Path``)
    hold paths or globs; in a pipeline file they are relative to it.
    ``was`` lists former names of the option: using one is an error that gives the new name.
    A list or dict default is copied for every instance. Where options depend on a choice, the field is annotated as a union of
    options classes, each with a ``ClassVar`` called ``type``; a pipeline file then has a mapping with ``type`` and its options.
    """
    metadata = {
        "doc": doc,
        "unit": unit,
        "bounds": {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None},
        "secret": secret,
        "path": path,
        "was": tuple(was),
    }
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, list | dict | set):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
