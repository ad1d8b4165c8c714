"""ReLoop2: a frozen click-through-rate model with an error memory that follows what it has not seen; metrics per window."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.reloop2.config import CtrWindowsOptions, ReLoop2Options
    from operators.reloop2.operator import ReLoop2Operator
    from operators.reloop2.windows import CtrWindows

__all__ = ["CtrWindows", "CtrWindowsOptions", "ReLoop2Operator", "ReLoop2Options"]

__getattr__ = lazy_names(
    __name__,
    {"CtrWindows": "windows", "CtrWindowsOptions": "config", "ReLoop2Operator": "operator", "ReLoop2Options": "config"},
)
