"""Video object detection with memory (MAMBA, AAAI 2021) over many streams at once."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.mamba.config import MambaOptions
    from operators.mamba.operator import MambaOperator

__all__ = ["MambaOperator", "MambaOptions"]

__getattr__ = lazy_names(__name__, {"MambaOperator": "operator", "MambaOptions": "config"})
