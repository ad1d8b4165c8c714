"""The operator ``resample``."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.resample.config import ResampleOptions
    from operators.resample.operator import ResampleOperator

__all__ = ["ResampleOperator", "ResampleOptions"]

__getattr__ = lazy_names(__name__, {"ResampleOperator": "operator", "ResampleOptions": "config"})
