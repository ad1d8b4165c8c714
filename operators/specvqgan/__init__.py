"""Sound for silent video, of many streams at once (SpecVQGAN, BMVC 2021)."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.specvqgan.config import SpecVQGANOptions
    from operators.specvqgan.operator import SpecVQGANOperator

__all__ = ["SpecVQGANOperator", "SpecVQGANOptions"]

__getattr__ = lazy_names(__name__, {"SpecVQGANOperator": "operator", "SpecVQGANOptions": "config"})
