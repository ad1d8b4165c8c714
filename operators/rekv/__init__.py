"""Questions about running videos, answered from a bank of their key/value blocks (ReKV, ICLR 2025)."""

from operators.rekv.config import ReKVOptions
from operators.rekv.operator import ReKVOperator

__all__ = ["ReKVOperator", "ReKVOptions"]
