"""Sound to tokens of 0.27 kbit/s and back (SpecVQGAN, BMVC 2021)."""

from operators.specvqgan_codec.config import SpecVQGANCodecOptions
from operators.specvqgan_codec.operator import SpecVQGANCodecOperator

__all__ = ["SpecVQGANCodecOperator", "SpecVQGANCodecOptions"]
