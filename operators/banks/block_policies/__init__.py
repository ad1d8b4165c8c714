"""Published rules for banks of keys and values: what a block keeps of tokens, channels and bits, and which blocks are read.

Each module is one paper: small functions over tensors, and where the rule says how a block is stored, a codec for BlockBank.
``rekv`` offers each of them as its option ``policy``.
"""

from operators.banks.block_policies.block_float import BlockFloatCodec, from_block_float, sorted_pairs, to_block_float
from operators.banks.block_policies.em_llm import event_starts, frame_surprise, refine_starts, select_events, with_neighbors
from operators.banks.block_policies.kept_tokens import KeptTokensCodec
from operators.banks.block_policies.kv_merger import KVMergerCodec, merge_sets, merge_tokens
from operators.banks.block_policies.scissorhands import unimportant_counts
from operators.banks.block_policies.think import ThinKCodec, channel_scores, kept_channels

__all__ = [
    "BlockFloatCodec",
    "KVMergerCodec",
    "KeptTokensCodec",
    "ThinKCodec",
    "channel_scores",
    "event_starts",
    "frame_surprise",
    "from_block_float",
    "kept_channels",
    "merge_sets",
    "merge_tokens",
    "refine_starts",
    "select_events",
    "sorted_pairs",
    "to_block_float",
    "unimportant_counts",
    "with_neighbors",
]
