"""The operator ``memprompttss``."""

from operators.memprompttss.config import MemPromptTSSOptions
from operators.memprompttss.operator import MemPromptTSSOperator

__all__ = ["MemPromptTSSOperator", "MemPromptTSSOptions"]
