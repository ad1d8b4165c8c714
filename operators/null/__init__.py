"""An operator that does nothing, for measuring everything around an operator."""

from operators.null.config import NullOptions
from operators.null.operator import NullOperator

__all__ = ["NullOperator", "NullOptions"]
