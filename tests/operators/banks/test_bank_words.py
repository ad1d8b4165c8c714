"""All banks speak the words of ``operators.banks.bank``: names, arguments, and what ``bytes`` returns."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from operators.banks import (
    BlockBank,
    BlockSpec,
    LshTable,
    PoolBank,
    PostingLists,
    RowRing,
    RowSpec,
    SignHash,
    SketchBank,
    TailBank,
)
from operators.banks.bank import Bank, SharedBank


def banks(folder: Path) -> list[tuple[type, Any]]:
    ring = RowRing(10, 4)
    return [
        (Bank, SketchBank(2, 3, ("label",), slots=2)),
        (Bank, BlockBank(BlockSpec(layers=1, groups=1, tokens=2, dim=4), slots=2, device_bytes=10_000)),
        (Bank, TailBank("tail", RowSpec(()), slots=2, capacity=3)),
        (SharedBank, ring),
        (SharedBank, LshTable(ring, 2, 3, 4, SignHash(4, 2, 3, seed=0))),
        (SharedBank, PostingLists(folder, 4)),
        (SharedBank, PoolBank(3, 4)),
    ]


def test_every_bank_has_the_calls_of_its_protocol_with_the_same_arguments(tmp_path: Path):
    for protocol, bank in banks(tmp_path):
        calls = {name: call for name, call in vars(protocol).items() if inspect.isfunction(call) and not name.startswith("_")}
        assert len(calls) >= 5
        for name, call in calls.items():
            wanted, found = (list(inspect.signature(c).parameters.values()) for c in (call, getattr(type(bank), name)))
            assert len(found) == len(wanted), f"{type(bank).__name__}.{name}"
            keywords = [{p.name for p in part if p.kind is p.KEYWORD_ONLY} for part in (wanted, found)]
            assert keywords[0] == keywords[1], f"{type(bank).__name__}.{name}"


def test_bytes_are_told_by_tier(tmp_path: Path):
    for _, bank in banks(tmp_path):
        assert bank.bytes().keys() <= {"device", "host", "disk"}
        assert sum(bank.bytes().values()) > 0


@pytest.mark.parametrize("former", ["add", "adjust", "set", "top_k"])
def test_no_bank_of_rows_has_a_second_word_for_the_same(former: str, tmp_path: Path):
    for _, bank in banks(tmp_path):
        assert not hasattr(bank, former)
