"""Sound for silent video, of many streams at once (SpecVQGAN, BMVC 2021)."""

from operators.specvqgan.config import SpecVQGANOptions
from operators.specvqgan.operator import SpecVQGANOperator

__all__ = ["SpecVQGANOperator", "SpecVQGANOptions"]
