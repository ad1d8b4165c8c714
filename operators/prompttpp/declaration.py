"""What can be known of ``prompttpp`` before it is built. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from connectors import records
from models.hub import weights_file
from models.prompttpp.header import read_config
from operators.base import Operator
from operators.prompttpp.budget import check
from operators.prompttpp.config import PromptTPPOptions, cautions
from operators.prompttpp.schemas import GOOD, LOSSES, STATUSES, event_schema, score_schema

__all__ = ["PromptTPPDeclaration"]


class PromptTPPDeclaration(Operator):
    """Scores events of many keys and predicts the next ones; prompts follow drift (PromptTPP, NeurIPS 2023)."""

    implementation = "operators.prompttpp.operator:PromptTPPOperator"
    Options = PromptTPPOptions
    input_schema = event_schema("id")
    output_schema = records.output_schema("event_score", 1)  # of an instance: as wide as its network
    statuses = STATUSES
    good_statuses = GOOD
    losses = LOSSES

    @classmethod
    def examine(cls, options: PromptTPPOptions, name: str) -> pa.Schema:
        """Check the checkpoint's header and the memory budget; return the output schema."""
        config = read_config(weights_file(options.checkpoint))
        check(config, options, name)
        return score_schema(config)

    @classmethod
    def keyed(cls, options: PromptTPPOptions) -> bool:
        """Return False where something is learned: prompts are one memory for all keys of a shard."""
        return options.learn == "off"

    @classmethod
    def cautions(cls, options: PromptTPPOptions, align_s: float | None) -> Sequence[tuple[str, str]]:
        """Say which options do not go together."""
        return cautions(options)
