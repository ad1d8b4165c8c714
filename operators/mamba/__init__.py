"""Video object detection with memory (MAMBA, AAAI 2021) over many streams at once."""

from operators.mamba.config import MambaOptions
from operators.mamba.operator import MambaOperator

__all__ = ["MambaOperator", "MambaOptions"]
