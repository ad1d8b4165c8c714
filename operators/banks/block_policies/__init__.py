"""Published rules for banks of keys and values: what a block keeps of tokens, channels and bits, and which blocks are read.

Each module is one paper: small functions over tensors, and where the rule says how a block is stored, a codec for BlockBank.
"""

from operators.banks.block_policies.block_float import BlockFloatCodec, from_block_float, sorted_pairs, to_block_float
from operators.banks.block_policies.em_llm import (
    attended_representative,
    contiguous_blocks,
    event_starts,
    frame_surprise,
    refine_starts,
    select_events,
)
from operators.banks.block_policies.kept_tokens import KeptTokensCodec
from operators.banks.block_policies.kv_merger import KVMergerCodec, merge_sets, merge_tokens
from operators.banks.block_policies.scissorhands import compact, unimportant_counts
from operators.banks.block_policies.sirllm import decay_entropy, keep_tokens, patch_surprise
from operators.banks.block_policies.think import ThinKCodec, channel_scores, kept_channels

__all__ = [
    "BlockFloatCodec",
    "KVMergerCodec",
    "KeptTokensCodec",
    "ThinKCodec",
    "attended_representative",
    "channel_scores",
    "compact",
    "contiguous_blocks",
    "decay_entropy",
    "event_starts",
    "frame_surprise",
    "from_block_float",
    "keep_tokens",
    "kept_channels",
    "merge_sets",
    "merge_tokens",
    "patch_surprise",
    "refine_starts",
    "select_events",
    "sorted_pairs",
    "to_block_float",
    "unimportant_counts",
]
