"""Options of operators whose memory is a BlockBank over device, host and disk, and the opening of such a bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from connectors.errors import ConfigError
from connectors.options import option

if TYPE_CHECKING:
    import torch

    from operators.banks import BlockBank, BlockCodec, BlockSpec

__all__ = ["BlockBankOptions", "OnBankFull", "on_bank_full", "open_bank"]

_GIB = 1 << 30


OnBankFull = Literal["drop_oldest", "refuse"]


def on_bank_full(*, was: Sequence[str] = ()) -> Any:
    """Declare the option ``on_bank_full``; ``was``: what an operator called it before."""
    return option(
        "drop_oldest",
        "When a stream's share of the bank is full: drop its oldest content, or `refuse` what is new (status `bank_full`).",
        was=was,
    )


@dataclass(frozen=True, kw_only=True)
class BlockBankOptions:
    """Options of every operator with a BlockBank."""

    on_bank_full: OnBankFull = on_bank_full()
    device_gib: float = option(
        1.0,
        "Device memory of the bank: what content is found by, and the content used last (all of it if there is no other tier).",
        unit="GiB",
        gt=0,
    )
    host_gib: float = option(0.0, "Host memory of the bank (page-locked on a GPU); 0: no such tier.", unit="GiB", ge=0)
    disk_gib: float = option(
        0.0, "Files of the bank; 0: no such tier. Snapshots then hold none of its content.", unit="GiB", ge=0
    )
    disk_path: str | None = option(
        None, "Folder of these files, kept as long as the state; a folder below /dev/shm keeps them in memory.", path=True
    )
    representatives: Literal["device", "host"] = option("device", "Where that lies by which content is found.")

    def check_tiers(self) -> None:
        """Raise ``ConfigError`` where the tiers do not go together."""
        if bool(self.disk_gib) != (self.disk_path is not None):
            raise ConfigError(
                f"disk_gib={self.disk_gib} with disk_path={self.disk_path!r}: give both, or neither for a bank without files"
            )
        if self.representatives == "host" and not self.host_gib:
            raise ConfigError("representatives='host' needs host_gib above 0")


def open_bank(
    name: str,
    spec: BlockSpec,
    options: BlockBankOptions,
    streams: int,
    device: torch.device,
    *,
    noun: str,
    per_stream: int | None,
    codec: BlockCodec | None = None,
    least: Callable[[], tuple[int, str]] = lambda: (1, ""),
) -> tuple[BlockBank, int]:
    """Return a bank in which each stream has the same share, and that share in blocks.

    ``noun`` is what a block is, for messages, and what the option ``<noun>s_per_stream`` counts (``per_stream``; None: as many
    as there is room for). ``least`` returns the fewest blocks that a share must hold, and why. Raises ``ConfigError``.
    """
    from operators.banks import BlockBank  # the options need no torch
    from operators.banks.blocks.budget import Budget, TierPlan
    from operators.banks.blocks.spec import PlainCodec, page_bytes

    codec = codec or PlainCodec(spec.dtype)
    fields = codec.fields(spec)
    budget = Budget(
        device=int(options.device_gib * _GIB),
        host=int(options.host_gib * _GIB),
        disk=int(options.disk_gib * _GIB),
        representatives=options.representatives,
    )
    plan = TierPlan.of(name, spec, fields, budget, streams)
    share, block = plan.blocks // streams, spec.layers * (page_bytes(fields) + spec.representative.bytes)
    if plan.home == "disk":  # oldest blocks are read by file: one of them may be needed for a few blocks only
        share = max(plan.blocks // plan.segment_blocks // streams - 1, 0) * plan.segment_blocks
    option_name = f"{noun}s_per_stream"
    if per_stream is not None and per_stream > share:
        raise ConfigError(
            f"{name}: {option_name}={per_stream} of {streams} streams do not fit: each has room for {share}; "
            f"raise {plan.home}_gib (a {noun} takes {block} bytes), or lower {option_name} or max_streams"
        )
    share = per_stream or share
    fewest, reason = least()
    if share < fewest:
        raise ConfigError(
            f"{name}: a stream keeps {share} {noun}s, but {reason}; raise {plan.home}_gib (a {noun} takes {block} bytes) or "
            f"{option_name}, or lower max_streams"
        )
    bank = BlockBank(
        spec,
        slots=streams,
        device=device,
        device_bytes=budget.device,
        host_bytes=budget.host,
        disk_bytes=budget.disk,
        disk_folder=Path(options.disk_path) if options.disk_path is not None else None,
        representatives=options.representatives,
        codec=codec,
        on_full=options.on_bank_full,
        blocks_per_stream=share,
        name=name,
    )
    return bank, share
