"""``streambank view`` of sound: spectrograms of rows, below the film that they belong to and its own sound."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.records import PCM, TIME_TYPE
from connectors.sinks.mp4 import Mp4Writer
from pipelines.viewing.sounds import draw_sound, has_sound, sounds_of
from pipelines.viewing.view import view


def rows(stream: str, samples: np.ndarray, *, rate: int = 22050, piece: int = 5000, gap: int = 0) -> pa.Table:
    """Return rows of sound; from the third on they are ``gap`` samples later."""
    parts = [samples[i : i + piece] for i in range(0, len(samples), piece)]
    at = [i * piece + (gap if i > 1 else 0) for i in range(len(parts))]
    columns = [
        pa.array([stream] * len(parts)),
        pa.array(at, pa.int64()),
        pa.array([7_000_000 + round(i * 1e6 / rate) for i in at], TIME_TYPE),
        pa.array([rate] * len(parts), pa.int32()),
        pa.array([1] * len(parts), pa.int8()),
        pa.array(parts, pa.list_(pa.int16())),
        pa.nulls(len(parts), pa.string()),
    ]
    return pa.Table.from_batches([pa.RecordBatch.from_arrays(columns, schema=PCM)])


def test_sound_of_rows_is_put_where_it_is_heard() -> None:
    samples = np.arange(20_000, dtype=np.int16)
    table = pa.concat_tables([rows("b", samples), rows("a", samples, gap=300)])
    assert has_sound(table) and not has_sound(table.drop_columns(["samples"]))
    gapped, whole = sounds_of([table])
    assert (gapped.stream, whole.stream, whole.begin_us) == ("a", "b", 7_000_000)
    assert np.array_equal(whole.samples_N, samples)
    wanted = np.concatenate([samples[:10_000], np.zeros(300, np.int16), samples[10_000:]])
    assert np.array_equal(gapped.samples_N, wanted)
    assert sounds_of([rows("c", samples[:0])]) == []


def test_a_tone_is_a_bright_line_and_silence_is_dark() -> None:
    tone = np.round(12_000 * np.sin(2 * np.pi * 1000 * np.arange(22_050) / 22_050)).astype(np.int16)
    [sound] = sounds_of([rows("a", np.concatenate([tone, np.zeros(22_050, np.int16)]), piece=44_100)])
    picture = draw_sound(sound, None).astype(int).sum(2)
    left, right = picture[30:, 100:500], picture[30:, 650:]
    assert left.max() > 500 and right.max() < 60
    assert (left.max(1) > 500).sum() < 30


def test_view_draws_frames_real_and_made_sound_of_each_stream(tmp_path: Path) -> None:
    tone = np.round(9000 * np.sin(2 * np.pi * 900 * np.arange(22_050) / 22_050)).astype(np.int16)
    (tmp_path / "out" / "sound").mkdir(parents=True)
    pq.write_table(
        pa.concat_tables([rows("a", tone), rows("b", tone)]), tmp_path / "out" / "sound" / "part-000000-000-0000.parquet"
    )
    (tmp_path / "videos").mkdir()
    writer = Mp4Writer(tmp_path / "videos" / "a.mp4", size=(64, 48), sound_rate=22_050)
    for i in range(20):
        writer.write(np.full((48, 64, 3), 200, np.uint8), i * 50_000, 50_000)
    writer.write_sound(tone[::-1].copy())
    writer.finish()
    written = view(tmp_path / "out", video=tmp_path / "videos")
    assert {path.name for path in written} == {"_report.html", "_sounds.html", "a.png", "b.png"}
    with_film, alone = (cv2.imread(str(tmp_path / "out" / "_sounds" / f"{name}.png")) for name in "ab")
    assert with_film.shape[0] > 2 * 160 > alone.shape[0] > 160
    page = (tmp_path / "out" / "_sounds.html").read_text()
    assert page.count('<img class="wide"') == 2 and "2 streams" in page
