"""The operator ``fourd_vla``."""

from operators.fourd_vla.config import FourDVLAOptions
from operators.fourd_vla.operator import FourDVLAOperator

__all__ = ["FourDVLAOperator", "FourDVLAOptions"]
