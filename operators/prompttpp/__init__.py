"""PromptTPP: when the next event of each key comes and of which type, with prompts learned from the stream."""

from typing import TYPE_CHECKING

from operators.lazy import lazy_names

if TYPE_CHECKING:
    from operators.prompttpp.config import PromptTPPOptions
    from operators.prompttpp.operator import PromptTPPOperator

__all__ = ["PromptTPPOperator", "PromptTPPOptions"]

__getattr__ = lazy_names(__name__, {"PromptTPPOperator": "operator", "PromptTPPOptions": "config"})
