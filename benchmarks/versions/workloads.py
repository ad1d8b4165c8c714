"""What both versions are given: rows, weights and options of every operator, written once, read by both.

A workload is a folder with ``workload.json`` and the batches of its steps, so that both sides get the same bytes cut at the
same places. ``@FOLDER`` stands for that folder and ``@RUN`` for one that is each side's own. Weights are the ones in the
package, or random ones that are saved here. Everything comes from seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from impressions import write_impressions, write_model

from connectors.records import FRAME, TIME_TYPE, key_schema
from models.films import Film, make_film, questions
from models.mamba import checkpoint as mamba_checkpoint
from models.mamba.config import MambaConfig
from models.mamba.model import Mamba
from models.mamba.shapes import ShapesConfig, make_scene
from operators.questions import QUESTION
from operators.rekv.schemas import FRAME_SEQUENCES

__all__ = ["NAMES", "write"]

Frames = list[dict[str, Any]]
"""Rows of a FRAME batch; ``picture`` holds an RGB image, None where there is none."""

_WEIGHTS = Path(__file__).resolve().parents[2] / "models" / "mamba" / "weights"
_SHAPES = {"max_length": 600, "key_length": 120, "write_topk": 12, "max_streams": 4}
"""The banks of the demo, which its weights were trained with."""

_PIXEL_NETWORK: dict[str, Any] = {
    "backbone": "conv5",
    "channels": (8, 16, 16, 24, 32),
    "classes": ("red", "green", "blue"),
    "neck_channels": 16,
    "fc_channels": 32,
    "heads": 4,
    "pixel_heads": 4,
    "pixel_level": True,
    "anchor_scales": (1.0, 2.0, 3.0),
    "nms_pre": 60,
    "proposals": 16,
    "roi_size": 3,
    "max_long_side": 96,
    "max_short_side": 96,
    "score_threshold": 0.05,
}
_PIXEL_BANKS = {
    "max_length": 40,
    "key_length": 16,
    "write_topk": 6,
    "pixel_max_length": 60,
    "pixel_key_length": 24,
    "pixel_score": 0.2,
    "pixel_per_box": 4,
    "pixel_per_frame": 16,
    "pixel_fallback": 5,
}
_FILMS: dict[str, Any] = {"sample_fps": 1.0, "max_answer_tokens": 8, "max_streams": 3, "device_gib": 0.05}
_FILM_FRAMES = 110
_IMPRESSIONS = 6000
_START_US = 1_700_000_000_000_000


def write(name: str, folder: Path) -> None:
    """Write the files of one workload into a folder that exists."""
    _WORKLOADS[name](folder)


def _write_steps(folder: Path, operator: str, options: dict[str, Any], steps: Sequence[tuple[str, Any]]) -> None:
    """Write a workload whose steps are ("process" or "control", batch) and ("close_stream", id)."""
    batches: dict[str, list[pa.RecordBatch]] = {"process": [], "control": []}
    listed = []
    for step, argument in steps:
        if step in batches:
            batches[step].append(argument)
            argument = len(batches[step]) - 1
        listed.append([step, argument])
    for step, given in batches.items():
        if given:
            with pa.OSFile(str(folder / f"{step}.arrow"), "wb") as file, pa.ipc.new_file(file, given[0].schema) as writer:
                for batch in given:
                    writer.write_batch(batch)
    workload = {"method": _method(operator), "operator": operator, "options": options, "steps": listed}
    (folder / "workload.json").write_text(json.dumps(workload))


def _method(operator: str) -> str:
    return operator.split(":")[0].split(".")[1]


def _cut(rows: Frames, draw: np.random.Generator, most: int) -> list[Frames]:
    """Cut rows into batches of 1 to ``most``."""
    batches = []
    start = 0
    while start < len(rows):
        size = int(draw.integers(1, most + 1))
        batches.append(rows[start : start + size])
        start += size
    return batches


def _frame_batch(rows: Frames, encoding: str = "raw_rgb8") -> pa.RecordBatch:
    """Return a FRAME batch, with a column ``role`` where the rows have one."""
    pictures = [row["picture"] for row in rows]
    columns = {
        "stream_id": pa.array([row["stream"] for row in rows], pa.string()),
        "sequence": pa.array([row["sequence"] for row in rows], pa.int64()),
        "event_time": pa.array([row["time_us"] for row in rows], pa.int64()).cast(TIME_TYPE),
        "image": pa.array([None if p is None else _encode(p, encoding) for p in pictures], pa.binary()),
        "encoding": pa.array([encoding] * len(rows), pa.string()),
        "height": pa.array([None if p is None else p.shape[0] for p in pictures], pa.int32()),
        "width": pa.array([None if p is None else p.shape[1] for p in pictures], pa.int32()),
        "error": pa.array([row.get("error") for row in rows], pa.string()),
    }
    schema = FRAME
    if "role" in rows[0]:
        schema = FRAME.append(pa.field("role", pa.string()))
        columns["role"] = pa.array([row["role"] for row in rows], pa.string())
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def _encode(picture: np.ndarray, encoding: str) -> bytes:
    if encoding == "jpeg":
        return bytes(cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])
    return np.ascontiguousarray(picture).tobytes()


# Mamba


@cache
def _clip(number: int, frames: int) -> list[np.ndarray]:
    scene = make_scene(ShapesConfig(frames=frames), 5000 + number)
    return [scene.frame(t) for t in range(frames)]


def _clips(streams: int, frames: int, **more: Any) -> Frames:
    """Return rows of clips of moving shapes, one of each stream in turn, 25 per second."""
    return [
        {"stream": f"clip{s}", "sequence": t, "time_us": _START_US + 40_000 * t, "picture": _clip(s, frames)[t], **more}
        for t in range(frames)
        for s in range(streams)
    ]


def _mamba(
    folder: Path, rows: Frames, options: dict[str, Any], *, encoding: str = "raw_rgb8", weights: Path | None = None
) -> None:
    chosen = {"checkpoint": str(weights or _WEIGHTS / "shapes.safetensors"), **_SHAPES, **options}
    batches = _cut(rows, np.random.default_rng(1), 12)
    steps = [("process", _frame_batch(batch, encoding)) for batch in batches]
    _write_steps(folder, "operators.mamba:MambaOperator", chosen, [*steps, ("close_stream", rows[0]["stream"])])


def _mamba_shapes(folder: Path) -> None:
    _mamba(folder, _clips(4, 40), {})


def _mamba_jpeg(folder: Path) -> None:
    _mamba(folder, _clips(3, 20), {"late": "read_only", "bank_dtype": "float16", "write_every": 2}, encoding="jpeg")


def _mamba_no_memory(folder: Path) -> None:
    _mamba(folder, _clips(2, 12), {"memory": False}, weights=_WEIGHTS / "shapes_base.safetensors")


def _mamba_spread(folder: Path) -> None:
    """Reference frames before the first one of each stream."""
    rows = _clips(3, 16, role=None)
    references = [
        {**rows[3 * t + s], "sequence": n - 6, "time_us": rows[3 * t + s]["time_us"] - 10**9, "role": "reference"}
        for s in range(3)
        for n, t in enumerate(range(0, 16, 3))
    ]
    _mamba(folder, references + rows, {"init": "spread"})


def _mamba_faults(folder: Path, **options: Any) -> None:
    """Late, unreadable and too small frames, gaps, cuts, and more streams than slots; each row has one fault at most."""
    rows: Frames = []
    draw = np.random.default_rng(2)
    for number, row in enumerate(_clips(5, 24)):
        t, stream = row["sequence"], int(row["stream"][4:])
        if (stream >= 3 and t < 5 * stream - 9) or (stream == 0 and t > 13):  # the later ones find all slots taken
            continue
        row = {**row, "time_us": row["time_us"] + (3_000_000 if t >= 12 and stream == 1 else 0)}
        if stream == 2 and t in (9, 10):
            row["picture"] = 255 - row["picture"]  # a cut
        if number % 17 == 5:
            row["error"], row["picture"] = "the file is cut off", None
        elif number % 23 == 7:
            row["picture"] = row["picture"][:4, :6]
        rows.append(row)
        if draw.random() < 0.1 and row["picture"] is not None and row["picture"].shape[0] > 4:
            rows.append(dict(row))
    _mamba(folder, rows, {"max_streams": 4, "max_gap_s": 1.0, "on_cut": "reset", **options})


def _mamba_pixel(folder: Path, **options: Any) -> None:
    """Random weights with the pixel level; heads are scaled up so that boxes and scores depend on the image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Mamba(MambaConfig(**_PIXEL_NETWORK))
        with torch.no_grad():
            for layer, std in ((model.head.logits, 0.5), (model.head.deltas, 0.1), (model.rpn.objectness, 0.5)):
                layer.weight.normal_(std=std)
    mamba_checkpoint.save(model, folder / "pixel.safetensors")
    _mamba(folder, _clips(4, 25), {**_PIXEL_BANKS, **options}, weights=folder / "pixel.safetensors")


# ReKV


@cache
def _film(number: int) -> tuple[Film, list[np.ndarray]]:
    film = make_film(7000 + number, length=_FILM_FRAMES)
    return film, [film.frame(t) for t in range(film.length)]


def _film_rows(films: int) -> Frames:
    """Return rows of films, one of each in turn, one per second."""
    return [
        {"stream": f"film{f}", "sequence": t, "time_us": _START_US + 1_000_000 * t, "picture": _film(f)[1][t]}
        for t in range(_FILM_FRAMES)
        for f in range(films)
    ]


def _question(stream: str, number: int, text: str | None, asked_s: float, at_s: float | None = None, **more: Any) -> Any:
    at = None if at_s is None else _START_US + round(at_s * 1e6)
    asked = {"stream_id": stream, "sequence": number, "event_time": _START_US + round(asked_s * 1e6)}
    return {**asked, "question_id": f"q{number}", "question": text, "at": at, "max_tokens": None, **more}


def _question_batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    schema = pa.schema([*QUESTION, pa.field(FRAME_SEQUENCES, pa.list_(pa.int64()))])
    return pa.RecordBatch.from_arrays([pa.array([row.get(f.name) for row in rows], f.type) for f in schema], schema=schema)


def _rekv(folder: Path, rows: Frames, asked: dict[int, list[dict[str, Any]]], options: dict[str, Any]) -> None:
    """Write a workload in which ``asked[n]`` are asked before batch n."""
    steps: list[tuple[str, Any]] = []
    batches = _cut(rows, np.random.default_rng(4), 24)
    for number, batch in enumerate(batches):
        if number in asked:
            steps.append(("control", _question_batch(asked[number])))
        steps.append(("process", _frame_batch(batch)))
    last = [row for number, rows in asked.items() if number >= len(batches) for row in rows]
    if last:
        steps.append(("control", _question_batch(last)))
    _write_steps(folder, "operators.rekv:ReKVOperator", {**_FILMS, **options}, steps)


def _rekv_films(folder: Path, films: int = 2, **options: Any) -> None:
    """Questions about what has been, about a past moment, and about one to come; some bring the frames to look at."""
    asked: dict[int, list[dict[str, Any]]] = {}
    draw = np.random.default_rng(6)
    for f in range(films):
        film = _film(f)[0]
        for number, one in enumerate(questions(film, draw)):
            at_s = [None, float(one.event.stop), float(one.event.start + 1)][number % 3]
            more: dict[str, Any] = {"max_tokens": 3} if number % 5 == 0 else {}
            if number % 7 == 3:
                more[FRAME_SEQUENCES] = list(range(one.event.start, one.event.stop))
            row = _question(f"film{f}", 100 * f + number, one.text, _FILM_FRAMES - 1.0, at_s, **more)
            asked.setdefault([1000, 4, 9, 14][number % 4], []).append(row)
    _rekv(folder, _film_rows(films), asked, options)


def _rekv_disk(folder: Path, **options: Any) -> None:
    _rekv_films(folder, **{"device_gib": 0.002, "disk_gib": 0.012, "disk_path": "@RUN/blocks", **options})


def _rekv_host(folder: Path) -> None:
    _rekv_films(folder, device_gib=0.002, host_gib=0.05, representatives="host")


def _rekv_drop_oldest(folder: Path, **options: Any) -> None:
    _rekv_films(folder, frames_per_stream=50, **options)


def _rekv_faults(folder: Path) -> None:
    """Late, unreadable and skipped frames, more streams than slots, and questions that cannot be answered."""
    rows = []
    for number, row in enumerate(_film_rows(4)):
        t, film = row["sequence"], int(row["stream"][4:])
        if t > 60 or (film == 3 and not 20 <= t < 45) or (film == 0 and 20 <= t < 45):  # one takes the other's place, and back
            continue
        row = dict(row)
        if number % 19 == 3:
            row["error"], row["picture"] = "the file is cut off", None
        elif number % 29 == 5:
            row["picture"] = np.zeros((0, 0, 3), np.uint8)
        rows.append(row)
        if number % 31 == 7 and row["picture"] is not None:
            rows.append(dict(row))
    waiting = [_question("film1", 20 + n, "which colour was the circle?", 10.0, 5000.0 + n) for n in range(6)]
    asked = {
        0: [_question("film0", 0, "which shape came?", 0.0)],
        3: [
            _question("film0", 1, None, 3.0),
            _question("film0", 2, "", 3.0),
            _question("nowhere", 3, "which shape came?", 3.0),
            _question("film0", 4, "which colour was the circle? " * 40, 3.0),
            _question("film0", 5, "which shape came?", 3.0, max_tokens=-1),
            _question("film0", 6, "which shape came?", 3.0, **{FRAME_SEQUENCES: [0, 999]}),
            _question("film0", 7, "which shape came?", 3.0, -5.0),
        ],
        5: waiting,
        1000: [_question(f"film{f}", 40 + f, "which colour was the circle?", 100.0) for f in range(4)],
    }
    _rekv(folder, rows, asked, {"max_waiting": 4, "max_question_tokens": 60, "max_streams": 3})


# ReLoop2


def _clicks(folder: Path) -> tuple[pa.Table, pa.Table]:
    """Write clicks that drift and a model into ``folder``; return impressions and labels."""
    import pyarrow.parquet as pq

    write_impressions(folder, _IMPRESSIONS, streams=4, seed=11)
    write_model(folder / "model.safetensors", seed=0)
    return pq.read_table(folder / "impressions.parquet"), pq.read_table(folder / "labels.parquet")


def _by_time(impressions: pa.Table, labels: pa.Table, draw: np.random.Generator) -> list[tuple[str, pa.RecordBatch]]:
    """Return steps in the order of event time, batches of up to 700 rows."""
    shown_us, known_us = (table["event_time"].cast(pa.int64()).to_numpy() for table in (impressions, labels))
    steps: list[tuple[str, pa.RecordBatch]] = []
    shown = known = 0
    while shown < len(shown_us):
        stop = min(shown + int(draw.integers(1, 701)), len(shown_us))
        steps.append(("process", _batch(impressions.slice(shown, stop - shown))))
        last = int(np.searchsorted(known_us, shown_us[stop - 1], side="right"))
        if last > known:
            steps.append(("control", _batch(labels.slice(known, last - known))))
        shown, known = stop, max(known, last)
    if known < len(known_us):
        steps.append(("control", _batch(labels.slice(known))))
    return steps


def _batch(table: pa.Table) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return batch


def _reloop2(folder: Path, clicks: tuple[pa.Table, pa.Table] | None = None, **options: Any) -> None:
    impressions, labels = clicks or _clicks(folder)
    chosen = {"checkpoint": "@FOLDER/model.safetensors", "label_timeout_s": 40.0, **options}
    steps = _by_time(impressions, labels, np.random.default_rng(12))
    _write_steps(folder, "operators.reloop2:ReLoop2Operator", chosen, steps)


def _reloop2_per_key(folder: Path) -> None:
    """A memory per stream; half-way another stream takes the place of one that has become silent."""
    impressions, labels = _clicks(folder)
    middle_us = impressions["event_time"].cast(pa.int64())[_IMPRESSIONS // 2].as_py()
    clicks = []
    for table in (impressions, labels):
        later = table["event_time"].cast(pa.int64()).to_numpy() > middle_us
        names = np.array(table["stream_id"].to_pylist(), dtype=object)
        names[names == "partition3"] = "partition0"
        names[later & (names == "partition0")] = "partition3"
        clicks.append(_with(table, "stream_id", pa.array(names, pa.string())))
    _reloop2(folder, (clicks[0], clicks[1]), scope="per_key", max_streams=3, bits=8, arrays=20, similarity="count")


def _reloop2_faults(folder: Path) -> None:
    """Impressions and labels out of order, twice, without id or with a wrong one, a clock that jumps, and another model."""
    impressions, labels = _clicks(folder)
    write_model(folder / "other.safetensors", seed=1)
    draw = np.random.default_rng(13)
    impressions = impressions.take(np.sort(np.concatenate([np.arange(_IMPRESSIONS), draw.integers(0, _IMPRESSIONS, 60)])))
    ids = impressions["impression_id"].to_numpy()
    no_id = draw.random(len(ids)) < 0.01
    times = impressions["event_time"].cast(pa.int64()).to_numpy().copy()
    times[3000] += 400_000_000
    times[::250] -= 30_000_000
    impressions = _with(impressions, "impression_id", pa.array(ids, mask=no_id))
    impressions = _with(impressions, "event_time", pa.array(times).cast(TIME_TYPE))
    values = labels["label"].to_numpy().copy()
    values[draw.random(len(values)) < 0.01] = 3.0
    labels = _with(labels, "label", pa.array(values, mask=draw.random(len(values)) < 0.01))
    paths = np.full(len(values), None, dtype=object)
    paths[[2500, 4000]] = ["@FOLDER/other.safetensors", "@FOLDER/no_such_file.safetensors"]
    paths[[2500, 4000]] = [str(path).replace("@FOLDER", str(folder.resolve())) for path in paths[[2500, 4000]]]
    labels = labels.append_column("checkpoint", pa.array(paths, pa.string()))
    chosen = {"checkpoint": "@FOLDER/model.safetensors", "label_timeout_s": 40.0, "late_correction_s": 60.0, "max_jump_s": 60.0}
    steps = _by_time(impressions, labels, draw)
    _write_steps(folder, "operators.reloop2:ReLoop2Operator", {**chosen, "forgetting": "reset"}, steps)


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _ctr_windows(folder: Path) -> None:
    """Predictions made up from the impressions, judged per minute and stream."""
    impressions, labels = _clicks(folder)
    draw = np.random.default_rng(14)
    base, prediction = (pa.array(draw.random(_IMPRESSIONS).astype(np.float32)) for _ in range(2))
    prediction = pa.array(prediction.to_numpy(), mask=draw.random(_IMPRESSIONS) < 0.02)
    schema = key_schema(
        "ctr_prediction",
        1,
        [
            pa.field("impression_id", pa.int64()),
            pa.field("y_base", pa.float32()),
            pa.field("y_pred", pa.float32()),
            pa.field("flags", pa.int32()),
        ],
    )
    keys = [impressions[name] for name in ("stream_id", "sequence", "event_time", "impression_id")]
    predictions = pa.table([*keys, base, prediction, pa.array(np.zeros(_IMPRESSIONS, np.int32))], schema=schema)
    options = {"window_s": 20.0, "label_timeout_s": 40.0, "group": "stream_id"}
    _write_steps(folder, "operators.reloop2:CtrWindows", options, _by_time(predictions, labels, draw))


def _clicks_pipeline(folder: Path, sink: str = "rows", **options: Any) -> None:
    """A whole pipeline, aligned in event time: impressions and labels from Parquet through both operators."""
    _clicks(folder)
    tables = {name: {"type": "parquet", "path": f"@FOLDER/{name}.parquet"} for name in ("impressions", "labels")}
    aligned = {"control": "labels", "align_s": 5.0, "max_batch": 512}
    quality = {"window_s": 20.0, "label_timeout_s": 40.0}
    document = {
        "name": "clicks",
        "state": "@RUN/state",
        "sources": tables,
        "operators": {
            "correct": {"type": "reloop2", "input": "impressions", **aligned},
            "quality": {"type": "ctr_windows", "input": "correct", **aligned, **quality},
        },
        "sinks": {
            "rows": {"type": "parquet", "input": "correct", "path": "@RUN/rows"},
            "windows": {"type": "parquet", "input": "quality", "path": "@RUN/windows"},
        },
    }
    workload = {
        "method": "reloop2",
        "operator": "operators.reloop2:ReLoop2Operator",
        "options": {"checkpoint": "@FOLDER/model.safetensors", "label_timeout_s": 40.0, **options},
        "pipeline": document,
        "sink": sink,
    }
    (folder / "workload.json").write_text(json.dumps(workload))


# Null and running mean


def _null(folder: Path) -> None:
    rows = _clips(3, 20)
    rows[7] = {**rows[7], "error": "the file is cut off", "picture": None}
    steps = [("process", _frame_batch(batch)) for batch in _cut(rows, np.random.default_rng(1), 12)]
    _write_steps(folder, "operators.null:NullOperator", {}, steps)


def _running_mean(folder: Path) -> None:
    """Values of 100 streams, some missing, and control rows that change the sums."""
    draw = np.random.default_rng(20)
    steps: list[tuple[str, Any]] = []
    counts: dict[str, int] = {}
    for number in range(40):
        control = number % 8 == 5
        names = [f"k{n:03d}" for n in draw.integers(0, 100, int(draw.integers(1, 400)))]
        values = np.where(draw.random(len(names)) < 0.02, np.nan, draw.normal(size=len(names)))
        sequences = []
        for name in names:
            sequences.append(counts.get(name, 0))
            counts[name] = sequences[-1] + 1
        added, given = pa.array(np.nan_to_num(values)), pa.array(values, mask=draw.random(len(names)) < 0.02)
        columns = {
            "stream_id": pa.array(names),
            "sequence": pa.array(sequences, pa.int64()),
            "event_time": pa.array([_START_US + number] * len(names), pa.int64()).cast(TIME_TYPE),
            "add" if control else "v": added if control else given,
        }
        steps.append(("control" if control else "process", pa.RecordBatch.from_pydict(columns)))
    steps.insert(20, ("close_stream", "k007"))
    _write_steps(folder, "pipelines.testing.running_mean:RunningMean", {}, steps)


_WORKLOADS: dict[str, Callable[[Path], None]] = {
    "null": _null,
    "running_mean": _running_mean,
    "mamba_shapes": _mamba_shapes,
    "mamba_jpeg": _mamba_jpeg,
    "mamba_no_memory": _mamba_no_memory,
    "mamba_spread": _mamba_spread,
    "mamba_evict": _mamba_faults,
    "mamba_reject": partial(_mamba_faults, on_streams_full="reject", max_streams=3),
    "mamba_read_only": partial(_mamba_faults, late="read_only"),
    "mamba_pixel": _mamba_pixel,
    "mamba_pixel_official": partial(_mamba_pixel, compat="official"),
    "rekv_films": _rekv_films,
    "rekv_one_by_one": partial(_rekv_films, batch_frames=1, batch_questions=1, score="cosine"),
    "rekv_chunks": partial(_rekv_films, chunk_frames=2, sink_overlap="exact"),
    "rekv_disk": _rekv_disk,
    "rekv_answerers": partial(_rekv_disk, answerers=1),
    "rekv_host": _rekv_host,
    "rekv_drop_oldest": _rekv_drop_oldest,
    "rekv_refuse": partial(_rekv_drop_oldest, on_bank_full="refuse"),
    "rekv_faults": _rekv_faults,
    "reloop2_sketch": _reloop2,
    "reloop2_count": partial(_reloop2, similarity="count", prior_rows=20.0, gamma=0.0, strength=1.0, forget_rows=1000),
    "reloop2_slices": partial(_reloop2, forgetting="slices", forget_rows=2000, arrays=20, bits=10),
    "reloop2_reset": partial(_reloop2, forgetting="reset", forget_rows=1500, reset_every_s=45.0, center="none"),
    "reloop2_drop": partial(_reloop2, on_timeout="drop", micro_batch=64),
    "reloop2_knn": partial(_reloop2, mode="knn", capacity=2000, sigma=0.1),
    "reloop2_lsh_table": partial(_reloop2, mode="lsh_table", capacity=2000, bits=6, arrays=10, keep_rate=0.5),
    "reloop2_posting_lists": partial(_reloop2, mode="posting_lists", capacity=2000, lists_path="@RUN/lists"),
    "reloop2_per_key": _reloop2_per_key,
    "reloop2_faults": _reloop2_faults,
    "reloop2_aligned": _clicks_pipeline,
    "reloop2_aligned_per_key": partial(_clicks_pipeline, scope="per_key", max_streams=4, bits=8, arrays=20),
    "ctr_windows": _ctr_windows,
    "ctr_windows_aligned": partial(_clicks_pipeline, sink="windows"),
}
_EVENT_TIME = "with align_s event time comes from the engine, and a label's own time says whether it is in time"
INTENDED = {
    "reloop2_aligned": _EVENT_TIME,
    "reloop2_aligned_per_key": _EVENT_TIME,
    "ctr_windows_aligned": "windows are cut by a row's own time and judged once event time has passed them: the last ones, too",
}
"""Workload → why its rows are not those of versions before 0.2."""

NAMES = tuple(_WORKLOADS)
"""Every workload, in the order they are run."""
