"""PromptTPP: when the next event of each key comes and of which type, with prompts learned from the stream."""

from operators.prompttpp.config import PromptTPPOptions
from operators.prompttpp.operator import PromptTPPOperator

__all__ = ["PromptTPPOperator", "PromptTPPOptions"]
