"""The operator ``resample``."""

from operators.resample.config import ResampleOptions
from operators.resample.operator import ResampleOperator

__all__ = ["ResampleOperator", "ResampleOptions"]
