"""Sound for frames: equal to the slow way, alone or together, cut or whole; every odd stream has an answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sound_models import share_networks, write_model
from sound_rows import rows_of
from specvqgan_reference import reference
from video_streams import frames

from connectors.errors import ConfigError
from models.specvqgan.codec import unpack_tokens
from models.specvqgan.loaders import load_networks
from models.specvqgan.parts import PARTS
from models.specvqgan.sampling import generate
from models.specvqgan.tokens import grid_of
from models.specvqgan.vision import clip_rows, picked_rows, slots_of
from operators.banks import stream_seed
from operators.base import Context, Emitted
from operators.specvqgan import SpecVQGANOperator, SpecVQGANOptions
from operators.specvqgan import operator as made_in
from operators.specvqgan.drawing import token_noise


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def folder(written: Path) -> Path:
    return write_model(written / "model")


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    share_networks(monkeypatch, made_in)


def pictures(seed: int, count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 6, 8, 3), dtype=np.uint8))


def clip(name: str, seed: int, count: int, *, fps: float = 30.0, start: int = 0, start_us: int = 0) -> pa.RecordBatch:
    """Return frames, different for every seed."""
    times = [start_us + round(i * 1e6 / fps) for i in range(count)]
    return frames([(name, start + i) for i in range(count)], images=pictures(seed, count), times_us=times)


def operator(folder: Path, **options: Any) -> SpecVQGANOperator:
    made = {"checkpoint": str(folder), "emit_cols": 2, "fade_cols": 1, "window_hop": 3} | options
    return SpecVQGANOperator(SpecVQGANOptions(**made), Context(name="sound"))


def ended(made: SpecVQGANOperator, out: list[Emitted], *names: str) -> list[Emitted]:
    for name in names:
        made.close_stream(name)
    return [*out, *made.flush()]


def samples_of(out: list[Emitted], name: str = "a") -> np.ndarray:
    rows = rows_of(out, "sound").to_pylist()
    mine = [np.array(r["samples"], np.int16) for r in rows if r["stream_id"] == name and r["samples"]]
    return np.concatenate([np.zeros(0, np.int16), *mine])


def tokens_of(out: list[Emitted], name: str = "a") -> list[int]:
    rows = [r for r in rows_of(out, "tokens").to_pylist() if r["stream_id"] == name]
    return [int(t) for r in rows for t in unpack_tokens(r["payload"], r["n_cols"], 16)]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("count", "features"),
    [(1, 24), (7, 24), (30, 24), (34, 24), (55, 24), pytest.param(110, 24, marks=pytest.mark.slow), (55, 4)],
)
def test_sound_is_that_of_the_slow_way(written: Path, count: int, features: int) -> None:
    model = write_model(written / f"of {features}", features=features)
    made = operator(model)
    batch = clip("a", count, count)
    out = ended(made, [one for i in range(0, count, 9) for one in made.process(batch.slice(i, 9))], "a")
    times = [i / 30 for i in range(count)]
    tokens, sound = reference(model, "a", pictures(count, count), times, hop=3, emit=2, fade=1)
    if features == 24:
        assert tokens_of(out) == tokens
        assert np.abs(samples_of(out).astype(int) - sound).max() <= 1 and np.abs(sound).max() < 2**15 - 1
    else:  # the window at the end is not on the grid by which frames are picked: it takes those next to its own
        assert tokens_of(out)[:45] == tokens[:45]
        assert made.metrics()["frames_seen"] <= 4 * (1 + 55 // 12) + 2
    assert len(samples_of(out)) == len(sound) == 1024 * (int((count - 1) / 30 * 22050 / 1024 + 0.5) + 1)
    rows = rows_of(out, "sound").to_pylist()
    assert [r["sequence"] for r in rows] == np.cumsum([0, *(len(r["samples"]) for r in rows)])[:-1].tolist()
    assert sum(rows_of(out, "tokens").column("n_samples").to_pylist()) == len(sound)


@pytest.mark.heavy
def test_windows_may_each_begin_anew(written: Path) -> None:
    model = write_model(written / "of 24", features=24)
    made = operator(model, window_hop=6)
    out = ended(made, made.process(clip("a", 3, 60)), "a")
    tokens, _ = reference(model, "a", pictures(3, 60), [i / 30 for i in range(60)], hop=6, emit=2, fade=1)
    assert tokens_of(out) == tokens


@pytest.mark.heavy
def test_rows_of_a_whole_stream_in_one_batch_come_in_order(folder: Path) -> None:
    made = operator(folder, emit_cols=1)
    out = made.process(clip("a", 2, 75))
    for output in ("sound", "tokens"):
        at = rows_of(out, output).column("sequence").to_pylist()
        assert len(at) > 5 and at == sorted(at)


@pytest.mark.heavy
@pytest.mark.parametrize("lookahead", [0, pytest.param(2, marks=pytest.mark.slow), 6])
def test_live_windows_repeat_the_newest_frame(written: Path, lookahead: int) -> None:
    model = write_model(written / "of 24", features=24)
    made = operator(model, lookahead_cols=lookahead, window_hop=2)
    out = ended(made, made.process(clip("a", 3, 48)), "a")
    tokens, sound = reference(
        model, "a", pictures(3, 48), [i / 30 for i in range(48)], hop=2, emit=2, fade=1, lookahead=lookahead
    )
    assert tokens_of(out) == tokens
    assert np.abs(samples_of(out).astype(int) - sound).max() <= 1
    seen = rows_of(out, "sound").column("lookahead_cols").to_pylist()
    assert seen[0] == max(1, lookahead)


@pytest.mark.heavy
def test_streams_that_join_late_get_what_they_get_alone(folder: Path) -> None:
    clips = {name: clip(name, seed, 54 + seed, start_us=seed * 500_000) for seed, name in enumerate("abc")}
    alone = {}
    for name, rows in clips.items():
        made = operator(folder, max_streams=1)
        alone[name] = ended(made, made.process(rows), name)
    table = pa.Table.from_batches(list(clips.values())).sort_by([("event_time", "ascending"), ("stream_id", "ascending")])
    rows = table.combine_chunks().to_batches()[0]
    made = operator(folder, max_streams=3, batch_streams=2)
    out = [one for i in range(0, rows.num_rows, 40) for one in made.process(rows.slice(i, 40))]
    out = ended(made, out, *clips)
    for name in clips:
        assert tokens_of(out, name) == tokens_of(alone[name], name)
        assert np.array_equal(samples_of(out, name), samples_of(alone[name], name))


@pytest.mark.heavy
def test_a_restored_stream_goes_on_token_for_token_in_the_middle_of_a_window(folder: Path) -> None:
    rows = clip("a", 1, 66)
    whole = operator(folder)
    wanted = ended(whole, whole.process(rows), "a")
    for cut in (14, 50):  # before the first window is whole; in the second one
        first, second = operator(folder), operator(folder)
        out = first.process(rows.slice(0, cut))
        second.restore(first.snapshot())
        out += second.process(rows.slice(cut))
        out = ended(second, out, "a")
        assert tokens_of(out) == tokens_of(wanted) and np.array_equal(samples_of(out), samples_of(wanted))


@pytest.mark.heavy
def test_streams_have_noise_of_their_own_and_the_seed_changes_it(folder: Path) -> None:
    def drawn(name: str, **options: Any) -> list[int]:
        made = operator(folder, **options)
        return tokens_of(ended(made, made.process(clip(name, 5, 20)), name), name)

    usual, likeliest = drawn("a"), drawn("a", temperature=0)
    assert drawn("a") == usual
    assert usual not in (drawn("b"), drawn("a", seed=1), drawn("a", top_k=2))
    assert drawn("a", temperature=0, seed=1) == likeliest == drawn("a", top_k=1)
    assert drawn("a", top_k=99) == drawn("a", top_k=0)


@pytest.mark.heavy
@pytest.mark.parametrize("seconds", [4.0, pytest.param(12.0, marks=pytest.mark.slow)])
@torch.inference_mode()
def test_exact_is_the_published_procedure(written: Path, seconds: float) -> None:
    model = write_model(written / "published", columns=53, features=5)
    count = round(seconds * 24)
    made = operator(model, exact=True)
    out = ended(made, made.process(clip("a", 2, count, fps=24)), "a")
    networks = load_networks(model, PARTS)
    eyes, transformer = networks.features, networks.transformer.double()
    images = pictures(2, count)
    slots = slots_of([i / 24 for i in range(count)])
    feats = clip_rows(torch.stack([eyes(eyes.pixels(torch.from_numpy(images[i]))[None])[0] for i in slots]))
    seen = feats[picked_rows(212, 5)].T[None].double()
    samples = round(len(slots) / 21.5 * 22050)
    columns = max(53, (samples - 2 * 1536) // 4096)
    seed = torch.tensor([stream_seed(0, "a", "tokens")])
    tokens = generate(transformer, seen, columns, noise=lambda place: token_noise(seed, torch.tensor([place]), 16), top_k=8)
    assert tokens_of(out) == tokens[0].tolist()
    sound = networks.vocoder((networks.autoencoder.decode(grid_of(tokens))[:, 0] + 1) / 2)[0]
    found = samples_of(out)
    assert len(found) == min(4096 * columns, samples - 1536)
    assert np.abs(found / 32768 - sound[: len(found)].numpy()).max() < 1e-4
    first = rows_of(out, "sound").to_pylist()[0]
    assert first["sequence"] == 1536 and first["event_time"].timestamp() == pytest.approx(1536 / 22050, abs=1e-5)
    assert made.metrics()["frames_seen"] <= 215


def test_frames_beyond_the_longest_clip_are_refused(folder: Path) -> None:
    made = operator(folder, exact=True, exact_max_s=2.0)
    out = made.process(clip("a", 2, 90))
    said = rows_of(out, "sound").to_pylist()
    assert said and {row["status"] for row in said} == {"too_long"}
    assert said[0]["error"] == "the stream is longer than 2 s (exact_max_s)"
    assert len(samples_of(ended(made, [], "a"))) == 10 * 4096


# Edge cases


def test_a_stream_without_a_good_frame_gives_no_sound(folder: Path) -> None:
    made = operator(folder)
    out = made.process(frames([("a", 0)], images=[None]))
    assert rows_of(out, "sound").column("status").to_pylist() == ["rejected_corrupt"]
    assert ended(made, made.process(clip("a", 1, 5).slice(0, 0)), "a") == []


@pytest.mark.heavy
def test_a_first_frame_that_cannot_be_decoded_is_left_out(folder: Path) -> None:
    broken, good = frames([("a", 0)], images=[None], times_us=[0]), clip("a", 2, 40, start=1, start_us=40_000)
    first, second = operator(folder), operator(folder)
    out = ended(first, first.process(broken) + first.process(good), "a")
    assert np.array_equal(samples_of(out), samples_of(ended(second, second.process(good), "a")))


@pytest.mark.heavy
def test_frames_of_one_slot_and_frames_that_are_missing_follow_the_clock(folder: Path) -> None:
    times = [0, 10_000, 20_000, 30_000, 400_000, 420_000, *range(500_000, 2_000_000, 50_000)]
    images = pictures(9, len(times))
    made = operator(folder, max_gap_s=3.0)
    out = ended(made, made.process(frames([("a", i) for i in range(len(times))], images=images, times_us=times)), "a")
    # With four features per window of 24 rows the same rows are picked from the frames that the clock keeps.
    rate = 22050 / 1024
    kept: dict[int, int] = {}
    for i, time in enumerate(times):
        kept[int(time * 1e-6 * rate + 0.5)] = i
    chosen = sorted(kept.values())
    again = operator(folder, max_gap_s=3.0)
    batch = frames(
        [("a", i) for i in chosen], images=[images[i] for i in chosen], times_us=[0, *(times[i] for i in chosen[1:])]
    )
    assert np.array_equal(samples_of(out), samples_of(ended(again, again.process(batch), "a")))
    assert len(chosen) < len(times)


@pytest.mark.heavy
def test_late_and_duplicate_frames_are_answered_and_change_nothing(folder: Path) -> None:
    rows = clip("a", 4, 46)
    made, plain = operator(folder), operator(folder)
    out = made.process(rows.slice(0, 30)) + made.process(rows.slice(10, 1)) + made.process(rows.slice(29, 1))
    said = [status for status in rows_of(out, "sound").column("status").to_pylist() if status != "ok"]
    assert said == ["late", "duplicate"]
    out = ended(made, out + made.process(rows.slice(30)), "a")
    assert np.array_equal(samples_of(out), samples_of(ended(plain, plain.process(rows), "a")))


@pytest.mark.heavy
def test_a_long_pause_begins_sound_of_its_own(folder: Path) -> None:
    first, second = clip("a", 6, 50), clip("a", 7, 50, start=50, start_us=5_000_000)
    made = operator(folder)
    out = ended(made, made.process(first) + made.process(second), "a")
    rows = rows_of(out, "sound").to_pylist()
    at = next(i for i, row in enumerate(rows) if row["status"] == "gap")
    rows_of_take = 1024 * (int(49 / 30 * 22050 / 1024 + 0.5) + 1)
    assert rows[at]["sequence"] == rows_of_take
    assert rows[at]["event_time"].timestamp() == 5.0
    alone = operator(folder)
    assert np.array_equal(samples_of(out)[:rows_of_take], samples_of(ended(alone, alone.process(first), "a")))
    assert {row["status"] for row in rows} == {"ok", "gap"}


@pytest.mark.heavy
def test_frames_may_change_their_size_and_colors(folder: Path) -> None:
    big = [np.repeat(np.repeat(image, 4, 0), 3, 1) for image in pictures(8, 40)]
    times = [round(i * 1e6 / 30) for i in range(40)]
    mixed = [image if i % 2 else big[i] for i, image in enumerate(pictures(8, 40))]
    first, second = operator(folder), operator(folder)
    keys = [("a", i) for i in range(40)]
    small = samples_of(ended(first, first.process(frames(keys, images=pictures(8, 40), times_us=times)), "a"))
    assert np.array_equal(small, samples_of(ended(second, second.process(frames(keys, images=mixed, times_us=times)), "a")))
    gray = operator(folder)
    one_color = [image[..., :1] for image in pictures(8, 40)]
    out = gray.process(frames(keys, images=one_color, encoding="raw_gray8", times_us=times))
    assert len(samples_of(ended(gray, out, "a"))) == len(small)


def given(rows: list[list[float] | None]) -> pa.RecordBatch:
    base = clip("a", 1, len(rows))
    columns = [*base.columns[:3], pa.array(rows, pa.list_(pa.float32())), pa.nulls(len(rows), pa.string())]
    return pa.RecordBatch.from_arrays(columns, names=[*base.schema.names[:3], "feature", "error"]).cast(
        SpecVQGANOperator.takes(SpecVQGANOptions(given_features=True))
    )


@pytest.mark.heavy
def test_given_features_are_taken_and_broken_numbers_become_zero(folder: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 12)).tolist()
    made, mended, broken = (operator(folder, given_features=True) for _ in range(3))
    ok = ended(made, made.process(given(rows)), "a")
    zero = [[0.0] * 12 if i < 20 else row for i, row in enumerate(rows)]
    nan = [[float("nan"), float("inf"), float("-inf")] * 4 if i < 20 else row for i, row in enumerate(rows)]
    out = ended(broken, broken.process(given(nan)), "a")
    assert np.array_equal(samples_of(out), samples_of(ended(mended, mended.process(given(zero)), "a")))
    assert not np.array_equal(samples_of(out), samples_of(ok))
    assert rows_of(out, "sound").column("status").to_pylist()[0] == "repaired"
    assert 0 < broken.metrics()["features_repaired"] < broken.metrics()["frames_seen"]
    [row] = rows_of(made.process(given([[1.0]])), "sound").to_pylist()
    assert row["error"] == "the row has 1 numbers; the transformer takes features of 12"


def test_sound_that_is_no_number_is_told_as_such(tmp_path: Path) -> None:
    made = operator(write_model(tmp_path / "model"))
    with torch.no_grad():
        next(made._voicing.vocoder.parameters()).fill_(torch.nan)
    out = ended(made, made.process(clip("a", 1, 40)), "a")
    rows = rows_of(out, "sound").to_pylist()
    assert rows and {(row["status"], row["samples"]) for row in rows} == {("not_finite", None)}
    assert all("NaN or infinity" in row["error"] for row in rows)


def test_a_transformer_without_a_number_fails_its_stream_only(folder: Path) -> None:
    made, plain = (operator(folder, given_features=True, precision="float32", batch_streams=1) for _ in range(2))
    rows = np.random.default_rng(1).normal(size=(60, 12)).tolist()
    huge = [[3e38] * 12 for _ in rows]  # beyond float32
    other = given(huge).set_column(0, "stream_id", pa.array(["b"] * 60))
    mixed = pa.Table.from_batches([given(rows), other.cast(given(rows).schema)]).sort_by("event_time").combine_chunks()
    out = ended(made, made.process(mixed.to_batches()[0]), "a", "b")
    said = {(row["stream_id"], row["status"]) for row in rows_of(out, "sound").to_pylist()}
    assert ("b", "model_failed") in said and {status for name, status in said if name == "a"} == {"ok"}
    assert np.array_equal(samples_of(out, "a"), samples_of(ended(plain, plain.process(given(rows)), "a")))
    assert not len(samples_of(out, "b")) and made.metrics()["models_failed"] >= 1


@pytest.mark.heavy
def test_sound_is_left_out_or_made_faster_while_the_clock_is_ahead(folder: Path) -> None:
    rows = clip("a", 3, 90)
    now = [0.0]

    def run(policy: str) -> list[Emitted]:
        made = operator(folder, on_behind=policy, max_lag_s=1.0)
        made.clock = lambda: now[0]
        out = []
        for i in range(90):
            now[0] = i / 30 + (3.0 if 30 <= i < 60 else 0.0)
            out += made.process(rows.slice(i, 1))
        return ended(made, out, "a")

    block, drop, fast = run("block"), run("drop"), run("fast")
    plain = operator(folder)
    assert np.array_equal(samples_of(block), samples_of(ended(plain, plain.process(rows), "a")))
    said = rows_of(drop, "sound").to_pylist()
    behind = [row for row in said if row["status"] == "behind"]
    assert len(behind) == 1 and "the clock is 3.0 s ahead of this frame, max_lag_s is 1" in behind[0]["error"]
    after = [row for row in said if row["status"] == "gap"]
    assert [row["event_time"].timestamp() for row in after] == [2.0]
    assert len(samples_of(drop)) < len(samples_of(block)) == len(samples_of(fast))
    assert not np.array_equal(samples_of(fast), samples_of(block))


def test_options_that_do_not_go_together_are_refused(folder: Path) -> None:
    for options, said in (
        ({"window_hop": 7}, "window_hop 7 is more than a window of 6"),
        ({"emit_cols": 6}, "emit_cols 6 and fade_cols 1 must fit"),
        ({"lookahead_cols": 7}, "lookahead_cols 7 is more than"),
        ({"bank_gib": 1e-6}, "banks for 4 streams need"),
    ):
        with pytest.raises(ConfigError, match=said):
            operator(folder, **options)
