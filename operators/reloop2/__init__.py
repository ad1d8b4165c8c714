"""ReLoop2: a frozen click-through-rate model with an error memory that follows what it has not seen."""

from operators.reloop2.config import ReLoop2Options
from operators.reloop2.operator import ReLoop2Operator

__all__ = ["ReLoop2Operator", "ReLoop2Options"]
