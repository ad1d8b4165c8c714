"""Much of everything: rubbish among good lines, lines and pictures of absurd size, broken files beside whole ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from abuse import copying, lines, plain_rows, run_file, write_rows

ROOT = Path(__file__).resolve().parents[2]

RUBBISH = (
    b"",  # a blank line is no record
    b"null",
    b"[1, 2]",
    b'"text"',
    b"{",
    b'{"k": "a"',
    b'{"k": "a", "v": 1, "t": 5}}',
    b'{"k": "a", "v": "seven", "t": 5}',
    b'{"k": "a", "v": 1, "t": "yesterday"}',
    b'{"k": "\xff\xfe", "v": 1, "t": 5}',
    b"\0" * 100,
    b"\x1f\x8b\x08\x00" + bytes(range(128, 256)),
    b'{"x": ' + b"[" * 20_000,
    b"<html>" * 50,
)


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_one_line_of_a_thousand_is_rubbish_and_every_other_row_is_there(count: int, tmp_path: Path) -> None:
    good = 0
    bad = 0
    with (tmp_path / "in.jsonl").open("wb") as file:
        for number in range(count):
            if number % 1000 == 999:
                line = RUBBISH[number // 1000 % len(RUBBISH)]
                bad += line != b""
            else:
                line = b'{"k": "s%d", "v": %d, "t": %d}' % (number % 7, number, number)
                good += number
            file.write(line + b"\n")
    source = lines(tmp_path / "in.jsonl", columns={"v": "int64"})
    done = run_file(tmp_path, copying(tmp_path, source))
    assert done.exit_code == 0, done.output
    rows = plain_rows(tmp_path / "rows")
    whole = [row for row in rows if row["error"] is None]
    assert sum(row["v"] for row in whole) == good
    assert len(whole) == count - count // 1000
    assert len(rows) - len(whole) == bad


@pytest.mark.parametrize(
    ("megabytes", "kept"),
    [(8, True), pytest.param(50, True, marks=pytest.mark.slow), pytest.param(160, False, marks=pytest.mark.slow)],
)
def test_a_line_of_many_megabytes_is_a_row_or_an_error_in_its_place(megabytes: int, kept: bool, tmp_path: Path) -> None:
    text = "x" * (megabytes << 20)
    write_rows(tmp_path / "in.jsonl", [{"k": "a", "v": value, "t": n} for n, value in enumerate(["first", text, "last"])])
    done = run_file(tmp_path, copying(tmp_path, lines(tmp_path / "in.jsonl")))
    assert done.exit_code == 0, done.output
    first, long, last = plain_rows(tmp_path / "rows")
    assert (first["v"], last["v"]) == ("first", "last")
    assert (first["error"], last["error"]) == (None, None)
    assert long["v"] == (text if kept else None)
    assert (long["error"] is None) == kept


def test_a_parquet_file_with_one_broken_row_group_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).random(3_000)
        table = pa.table({"k": ["a"] * 3_000, "t": range(3_000 * number, 3_000 * (number + 1)), "v": values})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=1_000, compression="zstd")
    broken = folder / "1.parquet"
    expected = [value for number in (0, 2) for value in pq.read_table(folder / f"{number}.parquet")["v"].to_pylist()]
    first_group = pq.ParquetFile(broken).read_row_group(0)["v"].to_pylist()
    chunk = pq.ParquetFile(broken).metadata.row_group(1).column(2)
    content = bytearray(broken.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xa5" * chunk.total_compressed_size
    broken.write_bytes(content)
    source = {"type": "parquet", "path": str(folder), "stream_id": "k", "event_time": "t", "event_time_unit": "s"}
    done = run_file(tmp_path, copying(tmp_path, source))
    assert done.exit_code == 0, done.output
    rows = plain_rows(tmp_path / "rows")
    whole = [row["v"] for row in rows if row["error"] is None]
    assert sorted(set(whole)) == sorted({*expected, *first_group} | set(whole))
    assert len(whole) == len(set(whole))
    assert len(whole) in (7_000, 8_000)  # what lies behind the broken group may be read or not
    (error,) = {row["error"] for row in rows} - {None}
    assert "1.parquet" in error
    assert run_file(tmp_path, copying(tmp_path / "strict", source), "--strict").exit_code == 3


# Pictures


def png(height: int, width: int, rows: int) -> bytes:
    """A gray PNG whose header promises ``height`` rows and that holds the first ``rows``, black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packed = zlib.compressobj(1)
    data = b"".join([*(packed.compress(bytes(1 + width)) for _ in range(rows)), packed.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bmp(height: int, width: int) -> bytes:
    header = struct.pack("<2sIHHI", b"BM", 1 << 31, 0, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(1000)


DECODE_AND_RUN = """
from pipelines.cli import main
from operators.frames import decode_image
for name in ("small.png", "large.png"):
    try:
        print(decode_image(open(name, "rb").read(), "png", None, None).shape)
    except ValueError as error:
        print(error)
main()
"""


def alone(folder: Path, *arguments: str) -> str:
    """Run Python in a process of its own, which loads OpenCV as a run does; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, text=True, capture_output=True, check=True)
    return done.stdout


@pytest.mark.parametrize("rows", [1, pytest.param(30_000, marks=pytest.mark.slow)])
@pytest.mark.heavy
def test_of_900_million_pixels_a_picture_is_refused_and_a_file_is_a_row_with_an_error(rows: int, tmp_path: Path) -> None:
    """Nothing of them is unpacked, and the file after it is read."""
    (tmp_path / "small.png").write_bytes(png(20, 30, 20))
    (tmp_path / "large.png").write_bytes(png(30_000, 30_000, rows))
    folder = tmp_path / "cam"
    folder.mkdir()
    (folder / "1.bmp").write_bytes(bmp(30_000, 30_000))
    cv2.imwrite(str(folder / "2.bmp"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "p.yaml").write_text(json.dumps(copying(tmp_path, {"type": "images", "path": str(folder)})))
    small, large = alone(tmp_path, "-c", DECODE_AND_RUN, "run", "p.yaml").splitlines()[:2]
    assert small == "(20, 30, 3)"
    assert "more than 268,435,456 pixels" in large
    first, second = plain_rows(tmp_path / "rows")
    assert "more than 268,435,456 pixels" in first["error"]
    assert (second["height"], second["width"], second["error"]) == (8, 8, None)


@pytest.mark.parametrize("count", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_many_videos_at_once_are_read_whole(count: int, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    writer = cv2.VideoWriter(str(tmp_path / "one.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (32, 32))
    for number in range(5):
        writer.write(np.full((32, 32, 3), 40 * number, np.uint8))
    writer.release()
    for number in range(count):
        shutil.copy(tmp_path / "one.mp4", folder / f"clip{number}.mp4")
    sink: dict[str, Any] = {"type": "parquet", "partition_by": [], "exclude": ["image"]}
    done = run_file(tmp_path, copying(tmp_path, {"type": "video", "path": str(folder), "parallelism": 4}, sink))
    assert done.exit_code == 0, done.output
    rows = plain_rows(tmp_path / "rows")
    assert {row["error"] for row in rows} == {None}
    found = sorted((row["stream_id"], row["sequence"]) for row in rows)
    assert found == sorted((f"clip{clip}", frame) for clip in range(count) for frame in range(5))


@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_more_keys_than_slots_lose_the_least_recent_memory_and_rows_say_so(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, weight = 64, 0.5
    keys = [f"key {key}" for key in np.random.default_rng(0).zipf(1.2, 3 * count) % count]
    assert len(set(keys)) > 5 * slots
    write_rows(tmp_path / "in.jsonl", ({"k": key, "value": n % 7, "t": n} for n, key in enumerate(keys)))
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)
    (tmp_path / "smooth_of_the_page.py").write_text(code)
    document = copying(tmp_path, lines(tmp_path / "in.jsonl", columns={"value": "double"}))
    operator = {"type": "smooth_of_the_page:Smooth", "input": "events", "max_streams": slots, "max_batch": 16}
    document["operators"] = {"mean": operator}
    document["sinks"]["rows"]["input"] = "mean"
    monkeypatch.syspath_prepend(tmp_path)
    done = run_file(tmp_path, document, "--strict")
    monkeypatch.delitem(sys.modules, "smooth_of_the_page")
    rows = plain_rows(tmp_path / "rows")  # in the order in which the operator had them, which is fair to rare keys
    order = [round(row["event_time"].timestamp()) for row in rows]
    assert sorted(order) == list(range(len(keys)))
    held: dict[str, float] = {}  # the least recently used first
    evicted: dict[str, None] = {}  # only so many are remembered
    wanted = []
    for n in order:
        key = keys[n]
        before = held.pop(key, None)
        if before is None and len(held) == slots:
            oldest = next(iter(held))
            evicted[oldest] = None
            del held[oldest]
            if len(evicted) > 4096:
                del evicted[next(iter(evicted))]
        told = "reset" if before is None and key in evicted else "ok"
        evicted.pop(key, None)
        held[key] = n % 7 if before is None else before + weight * (n % 7 - before)
        wanted.append((key, n, held[key], told))
    assert [(row["stream_id"], n, row["mean"], row["status"]) for row, n in zip(rows, order, strict=True)] == wanted
    resets = sum(status == "reset" for *_, status in wanted)
    assert done.exit_code == 3, done.output
    assert f"{resets:,} reset" in done.output
