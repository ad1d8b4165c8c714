"""Every case of bad, late and unusual input has its answer; modes change what they say and nothing else."""

# B streams

from typing import Any

import mamba_streams
import numpy as np
import pyarrow as pa
import pytest
import torch
from mamba_streams import frames, image, interleaved, operator

from connectors.errors import ConfigError, RecoveryError, SchemaError
from models.mamba import checkpoint
from models.mamba.config import MambaConfig
from models.mamba.model import Mamba, Proposals
from operators.banks import RowSpec, SlotBank
from operators.base import Context
from operators.mamba import MambaOperator, MambaOptions
from operators.state import State
from pipelines.testing.conformance import check_operator


def rows_of(outputs: list[pa.RecordBatch]) -> list[dict[str, Any]]:
    return [row for batch in outputs for row in batch.to_pylist()]


def run(detector: MambaOperator, rows: list[tuple[str, int]], **arguments: Any) -> list[dict[str, Any]]:
    return rows_of(detector.process(frames(rows, **arguments)))


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Compare all columns but the latency."""
    return [{**row, "latency_ms": 0} for row in a] == [{**row, "latency_ms": 0} for row in b]


# The ordinary


def test_every_frame_gives_one_row_with_sorted_detections_in_original_pixels():
    rows = run(operator(), interleaved(["a", "b"], 4), images=[image("a", n, 200, 250) for n in range(8)])
    assert [(row["stream_id"], row["sequence"]) for row in rows] == interleaved(["a", "b"], 4)
    edges = []
    for row in rows:
        assert row["status"] == "ok" and row["error"] is None and row["latency_ms"] > 0
        scores = [d["score"] for d in row["detections"]]
        assert scores == sorted(scores, reverse=True)
        for d in row["detections"]:
            assert 0 <= d["x1"] <= d["x2"] <= 250.01 and 0 <= d["y1"] <= d["y2"] <= 200.01
            assert 0 <= d["label"] < 3
            edges.append(d["x2"])
    assert max(edges) > 150  # boxes of the resized 96-px image would end at 96


def test_classes_are_reported_as_asked_for_and_the_memory_stays_the_same():
    rows = [("a", n) for n in range(4)]
    everything, chosen = run(operator(), rows), run(operator(classes=["blue", "red"]), rows)
    for all_of, some in zip(everything, chosen, strict=True):
        assert some["detections"] == [d for d in all_of["detections"] if d["label"] in (0, 2)]
        assert some["bank_size"] == all_of["bank_size"]
    assert any(d["label"] == 1 for row in everything for d in row["detections"])
    with pytest.raises(ConfigError, match=r"know no 'bleu' \(did you mean 'blue'\?\); allowed: red, green, blue"):
        MambaOperator.examine(MambaOptions(network=mamba_streams.NETWORK, classes=["bleu"]), "detect")


def test_banks_fill_by_topk_and_stop_at_the_cap():
    rows = run(operator(), [("a", n) for n in range(10)])
    assert [row["bank_size"] for row in rows] == [[min(6 * (n + 1), 40)] * 2 for n in range(10)]
    assert [row["keys_used"] for row in rows] == [[6, 6]] + [[min(6 * n, 16)] * 2 for n in range(1, 10)]


def test_official_banks_overshoot_the_limit():
    rows = run(operator(compat="official"), [("a", n) for n in range(10)])
    assert [row["bank_size"][0] for row in rows] == [6, 12, 18, 24, 30, 36, 42, 42, 42, 42]


def test_write_every_thins_the_memory():
    rows = run(operator(write_every=3), [("a", n) for n in range(8)])
    assert [row["bank_size"][0] for row in rows] == [6, 6, 6, 12, 12, 12, 18, 18]


def test_memory_changes_detections_and_without_it_frames_are_independent():
    last = [("a", 5)]
    with_memory, without = operator(), operator(memory=False)
    run(with_memory, [("a", n) for n in range(5)])
    run(without, [("a", n) for n in range(5)])
    assert same(run(without, last), run(operator(memory=False), last))
    assert not same(run(with_memory, last), run(operator(), last))
    assert run(operator(memory=False), last)[0]["bank_size"] == []


def test_zero_output_projection_equals_the_detector_without_memory():
    plain, remembering = operator(memory=False), operator()
    for attention in remembering.detector.model.head.attention:
        torch.nn.init.zeros_(attention.output.weight)
        torch.nn.init.zeros_(attention.output.bias)
    rows = [("a", n) for n in range(6)]
    a, b = (d.process(frames(rows))[0].column("detections") for d in (plain, remembering))
    assert mamba_streams.detections_difference(a, b) is None


def test_levels_choose_the_banks():
    rows = [("a", n) for n in range(3)]
    sizes = {
        levels: len(run(operator(pixel=True, levels=levels), rows)[-1]["bank_size"]) for levels in ("all", "instance", "pixel")
    }
    assert sizes == {"all": 3, "instance": 2, "pixel": 1}
    with pytest.raises(ConfigError, match="these weights have no pixel level"):
        operator(levels="pixel")


def test_seed_changes_the_draws_of_the_same_weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    checkpoint.save(Mamba(MambaConfig(**mamba_streams.NETWORK)), path)
    rows = [("a", n) for n in range(8)]

    def with_seed(seed: int) -> list[dict[str, Any]]:
        options = MambaOptions(checkpoint=str(path), seed=seed, **mamba_streams.SIZES)
        return run(MambaOperator(options, Context()), rows)

    assert same(with_seed(1), with_seed(1))
    assert not same(with_seed(1), with_seed(2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_banks_halve_the_bytes_and_hardly_change_scores(dtype: str):
    rows = [("a", n) for n in range(8)]
    full, half = operator(), operator(bank_dtype=dtype)
    a, b = (d.process(frames(rows))[0].column("detections") for d in (full, half))
    assert half.metrics()["bank_bytes"] < 0.52 * full.metrics()["bank_bytes"]
    close = [
        (np.mean([d["score"] for d in x]), np.mean([d["score"] for d in y]))
        for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)
    ]
    assert max(abs(x - y) for x, y in close) < 1e-2


def test_interleaved_streams_equal_each_alone_bit_by_bit_in_bookkeeping():
    together = operator()
    run(together, interleaved(["a", "b", "c"], 6))
    alone = operator()
    run(alone, [("b", n) for n in range(6)])
    everyone, one = together.snapshot(), alone.snapshot()
    mine = everyone.select([stream == "b" for stream in everyone.streams])
    for name in ("last_sequence", "last_time_us", "instance0.fill", "instance0.seed", "instance0.step"):
        assert torch.equal(mine.dense[name], one.dense[name])
    assert torch.allclose(mine.rows["instance1.key"].values_R, one.rows["instance1.key"].values_R, atol=1e-4)


# Bad rows


def test_unusable_images_are_rejected_and_change_nothing():
    clean, dirty = operator(), operator()
    wanted = run(clean, [("a", 0)]) + run(clean, [("a", 1)])
    first = run(dirty, [("a", 0)])
    nan = np.full((64, 80, 3), np.nan, np.float32)
    for bad in (
        frames([("a", 1)], images=[None]),
        frames([("a", 1)], images=[np.zeros((64, 0, 3), np.uint8)]),
        frames([("a", 1)], images=[np.zeros((4, 80, 3), np.uint8)]),
        frames([("a", 1)], images=[nan], encoding="raw_f32_rgb"),
        frames([("a", 1)], images=[image("a", 1)]).set_column(4, "encoding", pa.array(["png"])),
    ):
        (row,) = rows_of(dirty.process(bad))
        assert row["status"] == "rejected_corrupt" and row["error"] and row["detections"] is None and row["bank_size"] is None
    assert same(first + run(dirty, [("a", 1)]), wanted)
    assert dirty.metrics()["rejected"] == 5


@pytest.mark.parametrize("pixel", [False, True])
def test_features_that_are_not_finite_leave_banks_and_draws_alone(pixel: bool):
    detector, clean = operator(pixel=pixel), operator(pixel=pixel)
    wanted = run(clean, [("a", 0), ("b", 0), ("b", 1), ("a", 2), ("b", 2)])
    encode = detector.detector.model.encode

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        feature = encode(pixels)
        feature[:, :, 2, 3] = torch.nan
        return feature

    got = run(detector, [("a", 0), ("b", 0)])
    before = detector.snapshot()
    detector.detector.model.encode = broken
    (row,) = run(detector, [("a", 1)])
    assert row["status"] == "rejected_corrupt" and "not finite" in row["error"]
    del detector.detector.model.encode
    after = detector.snapshot()
    for name, rows in before.rows.items():
        assert torch.equal(rows.values_R, after.rows[name].values_R)
    assert all(torch.equal(before.dense[n], after.dense[n]) for n in before.dense if n.endswith((".step", ".fill")))
    got += run(detector, [("b", 1), ("a", 2), ("b", 2)])
    assert [row["bank_size"] for row in got] == [row["bank_size"] for row in wanted]
    assert mamba_streams.detections_difference(*(pa.array([r["detections"] for r in side]) for side in (wanted, got))) is None


@pytest.mark.parametrize("pixel", [False, True])
def test_first_frame_that_is_not_finite_leaves_the_start_to_the_next(pixel: bool):
    detector = operator(pixel=pixel)
    encode = detector.detector.model.encode
    detector.detector.model.encode = lambda pixels: encode(pixels) * torch.inf
    assert run(detector, [("a", 0)])[0]["status"] == "rejected_corrupt"
    del detector.detector.model.encode
    assert run(detector, [("a", 1)])[0]["bank_size"] == run(operator(pixel=pixel), [("a", 1)])[0]["bank_size"]


def no_proposals(detector: MambaOperator) -> None:
    propose = detector.detector.model.propose

    def nothing(*arguments: Any) -> Proposals:
        return Proposals(*(torch.zeros_like(part) for part in propose(*arguments)))

    detector.detector.model.propose = nothing


def test_no_proposal_means_no_detection_and_no_write():
    detector = operator()
    run(detector, [("a", n) for n in range(8)])
    before = detector.snapshot()
    no_proposals(detector)
    (row,) = run(detector, [("a", 8)])
    assert row["status"] == "no_detection" and row["detections"] == [] and row["bank_size"] == [40, 40]
    after = detector.snapshot()
    assert all(torch.equal(before.rows[name].values_R, after.rows[name].values_R) for name in before.rows)
    del detector.detector.model.propose
    assert run(detector, [("a", 9)])[0]["status"] == "ok"


def test_stream_that_begins_without_proposals_starts_at_the_next_frame():
    detector = operator()
    no_proposals(detector)
    (row,) = run(detector, [("a", 0)])
    assert row["status"] == "no_detection" and row["bank_size"] == [0, 0] and row["keys_used"] == [0, 0]
    del detector.detector.model.propose
    (row,) = run(detector, [("a", 1)])
    assert row["status"] == "ok" and row["keys_used"] == [6, 6]


def test_fewer_proposals_than_topk_write_what_there_is():
    detector = operator(network={"proposals": 4})
    rows = run(detector, [("a", n) for n in range(3)])
    assert [row["bank_size"][0] for row in rows] == [4, 8, 12]


def test_missing_column_is_an_error_that_names_it():
    with pytest.raises(SchemaError, match="detect: column 'image'"):
        operator().process(frames([("a", 0)]).drop_columns(["image"]))


# Order and time


def test_late_and_duplicate_rows_are_dropped():
    detector, clean = operator(), operator()
    got = run(detector, [("a", 0), ("a", 1), ("a", 1), ("a", 0), ("a", 2)])
    assert [row["status"] for row in got] == ["ok", "ok", "duplicate", "late", "ok"]
    assert "sequence 1 was taken already" in got[2]["error"] and "sequence 0 does not follow 1" in got[3]["error"]
    wanted = run(clean, [("a", 0), ("a", 1), ("a", 2)])
    assert (
        mamba_streams.detections_difference(
            *(pa.array([row["detections"] for row in side if row["status"] == "ok"]) for side in (wanted, got))
        )
        is None
    )
    assert detector.metrics()["late"] == 2


def test_time_that_does_not_rise_is_late_too():
    got = run(operator(), [("a", 0), ("a", 1)], times_us=[50_000, 50_000])
    assert got[1]["status"] == "late" and "0.000000 s before or at" in got[1]["error"]


def test_read_only_detects_in_late_rows_without_writing():
    detector = operator(late="read_only")
    run(detector, [("a", n) for n in range(4)])
    before = detector.snapshot()
    (row,) = run(detector, [("a", 2)])
    assert row["status"] == "late" and row["detections"] and row["bank_size"] == [24, 24] and row["keys_used"] == [16, 16]
    after = detector.snapshot()
    assert all(torch.equal(before.rows[name].values_R, after.rows[name].values_R) for name in before.rows)
    assert all(torch.equal(before.dense[name], after.dense[name]) for name in before.dense)


def test_gap_resets_the_memory_only_beyond_the_limit():
    times = [0, 1_000_000, 5_000_000, 6_000_000]
    got = run(operator(max_gap_s=3.0), [("a", n) for n in range(4)], times_us=times)
    assert [row["status"] for row in got] == ["ok", "ok", "reset", "ok"]
    assert [row["bank_size"][0] for row in got] == [6, 12, 6, 12]
    assert got[2]["error"] == "4.000 s since the last frame, max_gap_s is 3.0" and got[2]["detections"]
    assert [row["status"] for row in run(operator(), [("a", n) for n in range(4)], times_us=times)] == ["ok"] * 4


def test_scene_cut_resets_only_where_asked_for():
    blue = np.full((64, 80, 3), (10, 20, 220), np.uint8)
    scene = image("a", 0)
    pictures = [scene, np.roll(scene, 4, axis=1), blue, blue, scene]
    rows = [("a", n) for n in range(5)]
    got = run(operator(on_cut="reset"), rows, images=pictures)
    assert [row["status"] for row in got] == ["ok", "ok", "reset", "ok", "reset"]
    assert got[2]["bank_size"] == [6, 6] and "scene cut" in got[2]["error"]
    assert [row["bank_size"][0] for row in run(operator(), rows, images=pictures)] == [6, 12, 18, 24, 30]


@pytest.mark.parametrize("pixel", [False, True])
def test_resolution_change_keeps_the_memory(pixel: bool):
    pictures = [image("a", 0), image("a", 1), image("a", 2, 120, 90), image("a", 3, 40, 80)]
    got = run(operator(pixel=pixel), [("a", n) for n in range(4)], images=pictures)
    assert [row["status"] for row in got] == ["ok"] * 4
    first = 12 if pixel else 6  # the pixel level's start writes references, then the frame itself
    assert [row["bank_size"][0] for row in got] == [first, first + 6, first + 12, first + 18]


# Slots


def test_full_table_evicts_the_stream_idle_longest_and_says_so():
    detector = operator(max_streams=2)
    got = run(detector, [("a", 0), ("b", 0), ("a", 1), ("c", 0), ("a", 2), ("b", 1), ("b", 2)])
    assert [row["status"] for row in got] == ["ok", "ok", "ok", "ok", "ok", "reset", "ok"]
    assert [row["bank_size"][0] for row in got] == [6, 6, 12, 6, 18, 6, 12]
    assert "evicted to make room; raise max_streams" in got[5]["error"]
    assert detector.metrics()["evictions"] == 2 and detector.metrics()["streams"] == 2


def test_eviction_does_not_depend_on_where_batches_are_cut():
    rows = [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("b", 2), ("c", 1), ("a", 2), ("a", 3)]
    at_once, one_by_one = operator(max_streams=2), operator(max_streams=2)
    wanted = run(at_once, rows)
    got = [row for entry in rows for row in run(one_by_one, [entry])]
    for a, b in zip(wanted, got, strict=True):
        assert (a["status"], a["bank_size"], a["error"]) == (b["status"], b["bank_size"], b["error"])


def test_full_table_rejects_new_streams_where_asked_for():
    got = run(operator(max_streams=1, on_streams_full="reject"), [("a", 0), ("b", 0), ("a", 1)])
    assert [row["status"] for row in got] == ["ok", "rejected_full", "ok"]
    assert "raise max_streams" in got[1]["error"]


def test_eviction_survives_snapshots_and_increments():
    rows = [("a", 0), ("b", 0), ("c", 0)]
    detector = operator(max_streams=2)
    state = detector.snapshot()
    for entry in rows:
        run(detector, [entry])
        state = state.apply(detector.snapshot(incremental=True))
    for restored in (state, detector.snapshot()):
        other = operator(max_streams=2)
        other.restore(restored)
        assert run(other, [("a", 1)])[0]["status"] == "reset"
        assert other.metrics()["streams"] == 2
        # "b" was idle longest when "a" came back.
        assert run(other, [("c", 1)])[0]["status"] == "ok"


def test_closed_stream_starts_afresh():
    detector = operator()
    first = run(detector, [("a", n) for n in range(3)])
    detector.close_stream("a")
    assert same(run(detector, [("a", n) for n in range(3)]), first)


# Reference frames


def spread(detector: MambaOperator, rows: int, references: int, streams: str = "a") -> list[dict[str, Any]]:
    """Run streams whose first rows are references with negative sequences and the first frame's time."""
    keys = [(s, n) for n in range(-references, rows) for s in streams]
    roles = ["reference" if n < 0 else None for _, n in keys]
    times = [max(n, 0) * 40_000 for _, n in keys]
    pictures = [image(s, n % 23) for s, n in keys]
    return run(detector, keys, roles=roles, times_us=times, images=pictures)


@pytest.mark.parametrize("pixel", [False, True])
def test_references_fill_the_banks_before_the_first_frame(pixel: bool):
    got = spread(operator(init="spread", pixel=pixel), rows=3, references=3, streams="ab")
    assert [(row["stream_id"], row["sequence"]) for row in got] == interleaved(["a", "b"], 3)
    # Four images of 6 rows; the pixel level then processes the first frame once more, with sampled keys, and writes it.
    assert got[0]["bank_size"][0] == (30 if pixel else 24)
    assert got[0]["keys_used"][0] == (16 if pixel else 24)


@pytest.mark.parametrize("pixel", [False, True])
def test_official_first_frame_attends_to_all_references_even_where_they_exceed_the_bank(pixel: bool):
    sizes = {"max_length": 7, "key_length": 5}
    got = spread(operator(init="spread", compat="official", pixel=pixel, **sizes), rows=3, references=9)
    # Ten images of 6 rows are the bank, whatever its limit; from then on rows are replaced. The limit is a cap without compat.
    assert [row["bank_size"][0] for row in got] == [60, 60, 60]
    assert [row["keys_used"][0] for row in got] == [5 if pixel else 60, 5, 5]  # the pixel level's start is a pass of its own
    capped = spread(operator(init="spread", pixel=pixel, **sizes), rows=1, references=9)
    assert capped[0]["bank_size"][0] == 7 and capped[0]["detections"] != got[0]["detections"]


def test_official_bank_takes_more_rows_per_frame_than_its_limit():
    got = run(operator(compat="official", max_length=4, key_length=3), [("a", n) for n in range(3)])
    assert [row["bank_size"] for row in got] == [[6, 6]] * 3


def test_without_references_spread_equals_self():
    rows = frames([("a", n) for n in range(4)], roles=[None] * 4)
    assert same(rows_of(operator(init="spread").process(rows)), rows_of(operator().process(rows)))


@pytest.mark.parametrize("pixel", [False, True])
@pytest.mark.slow
def test_spread_conforms(pixel: bool):
    keys = [(s, n) for n in range(-2, 4) for s in "ab"]
    batch = frames(
        keys,
        roles=["reference" if n < 0 else None for _, n in keys],
        times_us=[max(n, 0) * 40_000 for _, n in keys],
        images=[image(s, n % 23) for s, n in keys],
    )
    check_operator(
        lambda: operator(init="spread", pixel=pixel),
        batch,
        causal=False,
        fill_after=2,
        compare={"detections": mamba_streams.detections_difference},
    )


def test_reference_after_the_first_frame_is_late():
    got = run(operator(init="spread"), [("a", 0), ("a", 1)], roles=[None, "reference"])
    assert got[1]["status"] == "late" and "came after the first frame" in got[1]["error"]


def test_number_of_references_is_bounded():
    got = run(
        operator(init="spread"),
        [("a", n) for n in range(70)],
        roles=["reference"] * 70,
        images=[image("a", 0, 20, 20)] * 70,
    )
    assert [row["status"] for row in got] == ["late"] * 6 and "64 reference frames" in got[0]["error"]


def test_spread_without_the_role_column_says_what_to_set():
    with pytest.raises(SchemaError, match="set references"):
        operator(init="spread").process(frames([("a", 0)]))


# Options and snapshots


def test_budget_is_checked_before_anything_is_allocated():
    with pytest.raises(ConfigError, match=r"detect: banks for 4 streams need .* the budget is 10.49 KiB; 0 streams fit"):
        operator(bank_gib=1e-5)


def test_full_size_banks_cost_what_the_documentation_says():
    row = RowSpec((1024,))
    stage = SlotBank.bytes_per_slot({"key": row, "value": row}, 20000)
    assert round(2 * stage / 2**20) == 313


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write_topk": 50}, "write_topk=50 rows do not fit into a bank of max_length=40"),
        ({"pixel_per_frame": 100, "pixel_max_length": 60}, "pixel_per_frame=100 rows do not fit"),
        ({"pixel_fallback": 50, "pixel_per_frame": 20}, "pixel_fallback=50 exceeds pixel_per_frame=20"),
        ({"checkpoint": "x.safetensors"}, "both set"),
        ({"network": {"neck_chanels": 3}}, "no field 'neck_chanels' .did you mean 'neck_channels'"),
        ({"network": {"heads": "four"}}, "network.heads='four' must be a int"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str):
    base: dict[str, Any] = {"network": mamba_streams.NETWORK, **mamba_streams.SIZES}
    with pytest.raises(ConfigError, match=message):
        MambaOperator(MambaOptions(**base | options), Context())


def test_output_schema_carries_class_names_and_a_config_hash():
    metadata = operator().output_schema.metadata
    assert metadata[b"streambank.classes"] == b'["red", "green", "blue"]'
    assert metadata[b"streambank.config"] != operator(key_length=8).output_schema.metadata[b"streambank.config"]
    assert metadata[b"streambank.schema"] == b"detections.v1"


def test_score_threshold_limits_what_is_reported():
    rows = run(operator(score_threshold=0.4), [("a", n) for n in range(4)])
    assert all(d["score"] > 0.4 for row in rows for d in row["detections"])


def test_snapshot_of_other_weights_is_refused():
    detector = operator()
    run(detector, [("a", 0)])
    with pytest.raises(RecoveryError, match="resume with the same checkpoint"):
        operator(seed=9).restore(detector.snapshot())


def test_snapshot_with_too_many_streams_is_refused():
    detector = operator(max_streams=3)
    run(detector, [("a", 0), ("b", 0), ("c", 0)])
    with pytest.raises(RecoveryError, match="holds 3 streams, max_streams is 2"):
        operator(max_streams=2).restore(detector.snapshot())


def test_increment_cannot_be_restored_alone():
    detector = operator()
    with pytest.raises(RecoveryError, match="apply it to a full one first"):
        detector.restore(detector.snapshot(incremental=True))
    detector.restore(State())
    assert detector.metrics()["streams"] == 0


def test_increment_is_much_smaller_than_the_full_snapshot():
    detector = operator(max_length=400, write_topk=2)
    run(detector, interleaved(["a", "b"], 30))
    full = detector.snapshot().bytes()
    run(detector, [("a", 30)])
    assert detector.snapshot(incremental=True).bytes() < full / 20
