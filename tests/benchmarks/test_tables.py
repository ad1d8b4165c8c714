import json
import re
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.claims import CLAIMS
from benchmarks.machine import RESULTS, write


def test_the_page_and_the_readme_say_what_the_results_give() -> None:
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page(), "run: python -m benchmarks.tables"
    text = tables.README.read_text(encoding="utf-8")
    assert text == tables.readme(text), "run: python -m benchmarks.tables"


def test_another_result_gives_another_page(tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    result = json.loads((tmp_path / "rekv_speed.json").read_text())
    result["ratio"]["frame"], result["holds"] = 1.25, False
    (tmp_path / "rekv_speed.json").write_text(json.dumps(result))
    [row] = [line for line in tables.page(tmp_path).splitlines() if "benchmarks.rekv_speed" in line]
    assert "1.2 times per encoded frame" in row
    assert "missed its goal" in row


def test_a_goal_that_is_missed_is_told_of_its_own_claim_only(tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    result = json.loads((tmp_path / "memprompttss_gain.json").read_text())
    for missed in result["holds"]:
        said = {goal: goal != missed for goal in result["holds"]}
        (tmp_path / "memprompttss_gain.json").write_text(json.dumps(result | {"holds": said}))
        page = tables.page(tmp_path)
        for claim in CLAIMS:
            if claim.result == "memprompttss_gain":
                [row] = [line for line in page.splitlines() if line.startswith(f"| {claim.claim} |")]
                assert ("missed its goal" in row) == (claim.goal == missed)


@pytest.mark.parametrize("name", sorted({claim.result for claim in CLAIMS}))
def test_every_command_is_a_benchmark(name: str) -> None:
    source = (Path(tables.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    for claim in CLAIMS:
        if claim.result == name:
            assert all(option in source for option in re.findall(r"--[a-z-]+", claim.arguments))


def test_results_are_json_that_every_reader_takes(tmp_path: Path) -> None:
    path = write("b", {"values": [1.0, float("nan"), {"x": float("inf")}]}, folder=tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(path.read_text(), parse_constant=refuse)["values"] == [1.0, None, {"x": None}]
    for committed in RESULTS.glob("*.json"):
        json.loads(committed.read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_table_of_demos_says_where_a_memory_loses() -> None:
    worth = {"what": "logloss", "without": "0.6", "having": "0.5", "loses": "at rest: 0.4 without, 0.41 with"}
    table = tables.demo_table({"demos": {"one": {"worth": worth}, "two": {"worth": {**worth, "loses": ""}}}})
    assert "| `one` | logloss: 0.6 | 0.5 (worse: at rest: 0.4 without, 0.41 with) |\n" in table
    assert "| `two` | logloss: 0.6 | 0.5 |\n" in table
