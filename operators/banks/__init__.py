"""The memory that operators share: preallocated, batched over streams, with snapshots. It knows no method and no stream id."""

from operators.banks.block_bank import REFUSED, BlockBank
from operators.banks.blocks.reader import BlockReader, FileReader, SharedBlocks
from operators.banks.blocks.spec import BlockCodec, BlockSpec, PlainCodec
from operators.banks.draws import Sampler, random_numbers, sample_without_replacement, stream_seed
from operators.banks.forgetting import Forgetting, HalfLife, Never, ResetEvery, Slices
from operators.banks.lsh_table import LshTable
from operators.banks.policies import (
    Fills,
    Plan,
    Policy,
    Writing,
    append,
    drop_redundant_neighbor,
    fifo_pinned,
    random_replacement,
    ring,
)
from operators.banks.pool_bank import PoolBank, PoolRead
from operators.banks.posting_lists import PostingLists, PostingRules
from operators.banks.row_ring import Neighbors, RowRing
from operators.banks.sign_hash import SignHash
from operators.banks.sketch_bank import SketchBank, SketchRead, mean_direction
from operators.banks.slot_bank import ReadBuffer, Readout, RowSpec, SlotBank
from operators.banks.tail_bank import TailBank

__all__ = [
    "REFUSED",
    "BlockBank",
    "BlockCodec",
    "BlockReader",
    "BlockSpec",
    "FileReader",
    "Fills",
    "Forgetting",
    "HalfLife",
    "LshTable",
    "Neighbors",
    "Never",
    "PlainCodec",
    "Plan",
    "Policy",
    "PoolBank",
    "PoolRead",
    "PostingLists",
    "PostingRules",
    "ReadBuffer",
    "Readout",
    "ResetEvery",
    "RowRing",
    "RowSpec",
    "Sampler",
    "SharedBlocks",
    "SignHash",
    "SketchBank",
    "SketchRead",
    "Slices",
    "SlotBank",
    "TailBank",
    "Writing",
    "append",
    "drop_redundant_neighbor",
    "fifo_pinned",
    "mean_direction",
    "random_numbers",
    "random_replacement",
    "ring",
    "sample_without_replacement",
    "stream_seed",
]
