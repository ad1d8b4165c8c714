"""``benchmarks.versions``: what counts as the same rows, and two checkouts in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.versions import worker
from benchmarks.versions.rows import compare

_HERE = Path(__file__).resolve().parents[2]


def rows(**columns: Any) -> pa.Table:
    return pa.table({"stream_id": ["a", "a", "b"], "sequence": [0, 1, 0], "x": [0.0, float("nan"), 1.5], **columns})


def test_equal_rows_are_the_same_whatever_their_chunks_and_wording() -> None:
    found = [[{"score": 0.5}], None, [{"score": float("nan")}, {"score": -0.0}]]
    old = rows(found=found, error=[None, "bad image", None])
    new = pa.concat_tables([part for part in (old.slice(0, 1), old.slice(1))])
    new = new.set_column(new.column_names.index("error"), "error", [[None, "image cannot be read", None]])
    comparison = compare(old, new)
    assert comparison.same
    assert comparison.reworded == 1


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"x": [-0.0, float("nan"), 1.5]}, "x"),
        ({"x": [0.0, float("nan"), 1.5000000000000002]}, "x"),
        ({"x": [None, float("nan"), 1.5]}, "x"),
        ({"found": [[{"score": 0.5}], [], [{"score": 0.25}, {"score": 0.0}]]}, "found"),
        ({"found": [[{"score": 0.5}], None, [{"score": 0.25}]]}, "found"),
        ({"error": [None, None, None]}, "error"),
    ],
)
def test_one_bit_is_a_difference_and_its_row_is_named(change: dict[str, Any], column: str) -> None:
    base = {"found": [[{"score": 0.5}], None, [{"score": 0.25}, {"score": 0.0}]], "error": [None, "bad image", None]}
    comparison = compare(rows(**base), rows(**{**base, **change}))
    assert not comparison.same
    assert list(comparison.columns) == [column]
    assert comparison.first is not None and column in comparison.first


def test_other_rows_columns_types_and_orders_are_told_apart() -> None:
    old = rows(status=["ok", "late", "ok"])
    assert compare(old, old.slice(1)).problems == ["2 rows in place of 3 (ok 2 -> 1)"]
    assert compare(old, old.drop_columns("x")).problems == ["column x is gone"]
    assert compare(old.drop_columns("x"), old).problems == ["column x is new"]
    narrow = old.set_column(2, "x", old["x"].cast(pa.float32()))
    assert compare(old, narrow).problems == ["column x is float in place of double"]
    assert "the same rows in another order" in compare(old, old.take([2, 0, 1])).problems


@dataclass(frozen=True)
class Before:
    """Options as an older checkout has them."""

    on_full: str = "evict"
    seed: int = 0


def test_renamed_options_columns_and_statuses_are_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker._in_old_words({"on_streams_full": "reject", "seed": 1}, Before, "mamba") == {"on_full": "reject", "seed": 1}
    monkeypatch.setitem(worker.NEW_COLUMNS, "method", {"x": "value"})
    monkeypatch.setitem(worker.STATUSES, "method", {"broken": "rejected_corrupt"})
    table = rows(status=pa.array(["ok", "broken", "ok"]).dictionary_encode(), lag_s=[0.1, 0.2, 0.3])
    renamed = worker._in_new_words(table, "method")
    assert renamed.column_names == ["stream_id", "sequence", "value", "status"]
    assert renamed["status"].to_pylist() == ["ok", "rejected_corrupt", "ok"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.versions", *arguments]
    return subprocess.run(command, cwd=_HERE, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_checkout_equals_itself_and_one_with_another_operator_does_not(tmp_path: Path) -> None:
    same = run(str(_HERE), "--only", "null")
    assert (same.returncode, "all rows are the same bit for bit" in same.stdout) == (0, True), same.stdout + same.stderr
    other = tmp_path / "other"
    other.mkdir()
    for package in ("connectors", "models"):
        (other / package).symlink_to(_HERE / package)
    (other / "operators").mkdir()
    for path in (_HERE / "operators").iterdir():
        if path.name != "null":
            (other / "operators" / path.name).symlink_to(path)
    (other / "operators" / "null").mkdir()
    for path in (_HERE / "operators" / "null").glob("*.py"):
        (other / "operators" / "null" / path.name).write_text(path.read_text().replace('pa.scalar("ok")', 'pa.scalar("fine")'))
    different = run(str(other), "--only", "null")
    assert different.returncode == 1
    assert "status: 59 of 60 rows" in different.stdout


@pytest.mark.slow
def test_what_is_no_checkout_and_unknown_names_are_refused(tmp_path: Path) -> None:
    assert "is no checkout of this project" in run(str(tmp_path)).stderr
    assert "no workload begins so" in run(str(_HERE), "--only", "nothing").stderr
    assert "with --speed choose among keyed, decode, kafka" in run(str(_HERE), "--speed", "--only", "null").stderr
