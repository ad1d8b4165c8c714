"""An operator that does nothing, for measuring everything around an operator."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.null.config import NullOptions
    from operators.null.operator import NullOperator

__all__ = ["NullOperator", "NullOptions"]

__getattr__ = lazy_names(__name__, {"NullOperator": "operator", "NullOptions": "config"})
