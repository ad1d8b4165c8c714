"""The operator ``memprompttss``."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.memprompttss.config import MemPromptTSSOptions
    from operators.memprompttss.operator import MemPromptTSSOperator

__all__ = ["MemPromptTSSOperator", "MemPromptTSSOptions"]

__getattr__ = lazy_names(__name__, {"MemPromptTSSOperator": "operator", "MemPromptTSSOptions": "config"})
