"""Questions about running videos, answered from a bank of their key/value blocks (ReKV, ICLR 2025)."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.rekv.config import ReKVOptions
    from operators.rekv.operator import ReKVOperator

__all__ = ["ReKVOperator", "ReKVOptions"]

__getattr__ = lazy_names(__name__, {"ReKVOperator": "operator", "ReKVOptions": "config"})
