"""Streambank's engine: pipeline files, runners, the command line, the test kit.

    from pipelines import Pipeline
    result = Pipeline.load("shapes.yaml").run()
    print(result.table("rows"))

Importing this package loads neither torch nor ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.api import Pipeline, Result

__all__ = ["Pipeline", "Result"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from pipelines import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
