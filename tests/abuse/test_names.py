"""Names from outside: whatever a stream, a file or a pipeline is called, rows stay in the sink's folder and none is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.dataset as ds
import pytest
from abuse import copying, lines, plain_rows, refused, run_file, tree, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = {
    "a path upwards": "../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "slashes": "a/b//c/",
    "two dots": "..",
    "a dot": ".",
    "a hidden name": ".ssh",
    "back slashes": "..\\..\\windows",
    "line ends": "a\nb\r\nc\u2028d",
    "a carriage return": "a\rb",
    "NUL": "a\0b",
    "only NUL": "\0",
    "10,000 letters": "x" * 10_000,
    "10,000 letters and another end": "x" * 9_999 + "y",
    "emoji": "🎥👩‍👩‍👧🏽",
    "3,000 emoji": "🎥" * 3_000,
    "percent signs": "100%",
    "an encoded slash": "..%2F..%2Fetc",
    "an encoding of an encoding": "%252F%00",
    "a leading dash": "-rf",
    "an option": "--set=state=/tmp",
    "a partition": "stream=a/date=1970-01-01",
    "the staging folder": "_staging",
    "a part file": "part-000000-000-0000.parquet",
    "the null partition": "__HIVE_DEFAULT_PARTITION__",
    "a home folder": "~root",
    "a pattern": "*?[a]{b,c}",
    "quotes": "'; DROP TABLE rows; --\"`$(id)`",
    "a space": " ",
    "trailing spaces and dots": "cam. . ",
    "a byte order mark": "\ufeffcam",
    "right to left": "\u202egnp.mac",
    "one letter, composed": "\u00e9",
    "one letter, decomposed": "e\u0301",
    "upper case": "Cam",
    "lower case": "cam",
    "a URL": "s3://bucket/key?x=1#y",
    "a word of YAML": "null",
    "a number": "007",
    "a device of Windows": "CON",
    "a noncharacter": "\uffff",
}
SINKS: dict[str, dict[str, Any]] = {
    "parquet by stream and date": {"type": "parquet", "partition_by": ["stream", "date"]},
    "parquet by stream": {"type": "parquet", "partition_by": ["stream"]},
    "arrow": {"type": "arrow"},
    "jsonl": {"type": "jsonl"},
}


def only_ours(folder: Path, before: dict[str, tuple[int, int]]) -> None:
    """Assert that a run has written below ``rows`` and ``state`` only."""
    new = {path: entry for path, entry in tree(folder).items() if before.get(path) != entry}
    assert {Path(path).parts[0] for path in new} <= {"rows", "state", "pipeline.yaml"}
    assert before.items() <= tree(folder).items()


@pytest.mark.parametrize("sink", SINKS)
def test_whatever_a_stream_is_called_its_rows_are_found_again_and_nothing_lies_elsewhere(sink: str, tmp_path: Path) -> None:
    home = tmp_path / "deep" / "deeper" / "home"
    rows = [
        {"k": name, "v": number + 100 * turn, "t": number} for turn in range(2) for number, name in enumerate(NAMES.values())
    ]
    write_rows(home / "in.jsonl", rows)
    before, around = tree(home), set(tree(tmp_path))
    done = run_file(home, copying(home, lines(home / "in.jsonl"), SINKS[sink] | {"columns": {"stream_id": "s", "v": "v"}}))
    assert done.exit_code == 0, done.output
    found = plain_rows(home / "rows")
    assert sorted((row["s"], row["v"]) for row in found) == sorted((row["k"], row["v"]) for row in rows)
    only_ours(home, before)
    assert {path for path in set(tree(tmp_path)) - around if not path.startswith("deep/deeper/home")} == set()
    assert not any(path.is_symlink() for path in home.rglob("*"))


def test_partition_folders_tell_the_stream_and_other_readers_find_all_rows_of_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"k": name, "v": number, "t": 0} for number, name in enumerate(NAMES.values())])
    done = run_file(tmp_path, copying(tmp_path, lines(tmp_path / "in.jsonl"), SINKS["parquet by stream"]))
    assert done.exit_code == 0, done.output
    folders = {path.name for path in (tmp_path / "rows").iterdir()} - {"_report.html"}
    assert all(name.startswith("stream=") for name in folders)
    assert len(folders) == len(NAMES)
    told = {unquote(name.removeprefix("stream=")) for name in folders}
    assert {name for name in NAMES.values() if len(name.encode()) < 60} <= told
    everything = ds.dataset(tmp_path / "rows", format="parquet", partitioning=None)
    for number, name in enumerate(NAMES.values()):
        assert everything.to_table(filter=ds.field("stream_id") == name)["v"].to_pylist() == [number]


@settings(max_examples=6)
@given(names=st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=8, unique=True))
@pytest.mark.heavy
def test_any_text_is_a_stream(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_rows(folder / "in.jsonl", [{"k": name, "v": number, "t": number} for number, name in enumerate(names)])
    before = tree(folder)
    done = run_file(folder, copying(folder, lines(folder / "in.jsonl"), SINKS["parquet by stream and date"]))
    assert done.exit_code == 0, done.output
    assert {row["v"]: row["stream_id"] for row in plain_rows(folder / "rows")} == dict(enumerate(names))
    only_ours(folder, before)


FILES = {
    "a leading dash": b"-rf.jsonl",
    "a line end": b"a\nb.jsonl",
    "a percent sign": b"100%2F.jsonl",
    "emoji": "🎥.jsonl".encode(),
    "240 letters": b"x" * 240 + b".jsonl",
    "quotes": b"'\"$(id)`.jsonl",
    "dots": b"a...jsonl",
}


def test_whatever_a_file_is_called_it_is_a_stream_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(FILES.values()):
        Path(os.fsdecode(bytes(tmp_path / "in") + b"/" + name)).write_text(f'{{"v": {number}}}\n')
    source = {"type": "jsonl", "path": str(tmp_path / "in"), "event_time_unit": "rows"}
    before = tree(tmp_path)
    done = run_file(tmp_path, copying(tmp_path, source, SINKS["parquet by stream"]))
    assert done.exit_code == 0, done.output
    names = {number: os.fsdecode(name).removesuffix(".jsonl") for number, name in enumerate(FILES.values())}
    assert {row["v"]: row["stream_id"] for row in plain_rows(tmp_path / "rows")} == names
    only_ours(tmp_path, before)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "video", "images"])
def test_a_file_name_that_is_no_text_is_an_error_that_shows_it(kind: str, tmp_path: Path) -> None:
    suffix = {"jsonl": b".jsonl", "csv": b".csv", "video": b".mp4", "images": b".png"}[kind]
    (tmp_path / "in").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "in") + b"/cam\xff" + suffix)).write_bytes(b'{"v": 1}\n')
    times = {"event_time_unit": "rows"} if kind in ("jsonl", "csv") else {}
    path = str(tmp_path / "in" / "*") if kind == "images" else str(tmp_path / "in")
    done = run_file(tmp_path, copying(tmp_path, {"type": kind, "path": path, **times}))
    refused(done, "cam\\\\xff", "its name is not UTF-8 text; rename it")


USABLE = {"upper case", "lower case", "a word of YAML", "a device of Windows", "the staging folder", "the null partition"}
"""Letters, digits and underscores, as a pipeline or a node may be called."""
LONG = {"10,000 letters", "10,000 letters and another end", "3,000 emoji"}
"""Too long for a key of YAML, which is said instead."""


@pytest.mark.parametrize("name", sorted(NAMES.keys() - USABLE))
@pytest.mark.parametrize("place", ["pipeline", pytest.param("node", marks=pytest.mark.slow)])
def test_names_that_become_parts_of_paths_are_refused_before_anything_is_written(place: str, name: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"k": "a", "v": 1, "t": 0}])
    document = copying(tmp_path, lines(tmp_path / "in.jsonl"))
    if place == "pipeline":
        document["name"] = NAMES[name]
    else:
        document["sinks"] = {NAMES[name]: document["sinks"]["rows"]}
    done = run_file(tmp_path, document)
    refused(done, "not valid YAML" if place == "node" and name in LONG else "is not a usable name")
    assert set(tree(tmp_path)) == {"in.jsonl", "pipeline.yaml"}


TIMES = {
    "0001-01-01T00:00:00Z": "0001-01-01",
    "1969-12-31T23:59:59.999999Z": "1969-12-31",
    "9999-12-31T23:59:59Z": "9999-12-31",
}


def test_days_at_the_ends_of_the_calendar_are_folders_of_their_own(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"k": "a", "v": number, "t": text} for number, text in enumerate(TIMES)])
    source = lines(tmp_path / "in.jsonl") | {"event_time_unit": "iso"}
    done = run_file(tmp_path, copying(tmp_path, source, {"type": "parquet", "partition_by": ["date"]}))
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "rows").glob("date=*")} == {f"date={day}" for day in TIMES.values()}
    assert {row["v"] for row in plain_rows(tmp_path / "rows")} == {0, 1, 2}
