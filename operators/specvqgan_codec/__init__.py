"""Sound to tokens of 0.27 kbit/s and back (SpecVQGAN, BMVC 2021)."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.specvqgan_codec.config import SpecVQGANCodecOptions
    from operators.specvqgan_codec.operator import SpecVQGANCodecOperator

__all__ = ["SpecVQGANCodecOperator", "SpecVQGANCodecOptions"]

__getattr__ = lazy_names(__name__, {"SpecVQGANCodecOperator": "operator", "SpecVQGANCodecOptions": "config"})
