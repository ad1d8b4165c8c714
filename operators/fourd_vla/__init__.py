"""The operator ``fourd_vla``."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.fourd_vla.config import FourDVLAOptions
    from operators.fourd_vla.operator import FourDVLAOperator

__all__ = ["FourDVLAOperator", "FourDVLAOptions"]

__getattr__ = lazy_names(__name__, {"FourDVLAOperator": "operator", "FourDVLAOptions": "config"})
