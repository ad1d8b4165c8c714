"""What ``fourd_vla`` says of frames: selections, edge cases of depth, pose and camera, and actions from cached tokens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import fourd_vla_reference as reference
import numpy as np
import pyarrow as pa
import pytest
import rgbd_folders as made
import torch
from fourd_vla_streams import STEP_US, feature_rows, frames, given, operator, png, rgbd, rgbd_row, rows_of, tiny_policy

from connectors.errors import CheckpointMismatch, ConfigError, RecoveryError, SchemaError
from connectors.records import FRAME
from models.fourd_vla.checkpoint import load_policy
from models.fourd_vla.geometry import depth_meters, resize_plan
from models.fourd_vla.header import SMALL_WEIGHTS
from operators.fourd_vla import FourDVLAOperator, FourDVLAOptions
from operators.fourd_vla.config import Given


def features(length: int, streams: int, seed: int = 0, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, streams, width)).astype(np.float32)


def said(made_operator: Any, rows: list[dict[str, Any]], **more: pa.DataType) -> list[dict[str, Any]]:
    return rows_of(made_operator.process(rgbd(rows, **more)))


@pytest.mark.parametrize("sampling", ["window", "incremental", "unbounded"])
def test_selections_equal_the_loop_and_say_how_alike_frames_are(sampling: str) -> None:
    values = features(30, 2)
    unbounded = sampling == "unbounded"
    options = {"sampling": "incremental" if unbounded else sampling, "horizon": "unbounded" if unbounded else "window"}
    made_operator = given(6, window=9, keep=4, max_streams=2, **options)
    rows = rows_of(made_operator.process(feature_rows("ab", values)))
    for s, stream in enumerate("ab"):
        mine, alike = [row for row in rows if row["stream_id"] == stream], reference.cosines(values[:, s])
        held = (
            [reference.window(alike, t, 9, 4) for t in range(30)]
            if sampling == "window"
            else reference.incremental(alike, None if unbounded else 9, 4)
        )
        assert [row["selected_sequences"] for row in mine] == held
        for t, row in enumerate(mine):
            kept = held[t]
            assert row["offsets"] == [t - i for i in kept]
            assert [moment.timestamp() for moment in row["selected_times"]] == pytest.approx([i * STEP_US / 1e6 for i in kept])
            assert row["similarity"] == pytest.approx([alike[a, b] for a, b in pairwise(kept)], abs=1e-6)
            best = [max(alike[i, h] for h in kept) for i in range(max(0, t - 8), t + 1)]
            assert (row["coverage"], row["worst_coverage"]) == pytest.approx((np.mean(best), min(best)), abs=1e-6)
            assert (row["status"], row["valid_depth"], row["reference"]) == ("ok", None, None)


def test_unbounded_memory_keeps_an_event_that_the_window_has_lost() -> None:
    values = np.ones((60, 1, 6), np.float32)
    values[5] = [1, -1, 1, -1, 1, -1]
    options: dict[str, Any] = {"sampling": "incremental", "window": 8, "keep": 3}
    kept = rows_of(given(6, **options, horizon="unbounded").process(feature_rows("a", values)))[-1]
    lost = rows_of(given(6, **options).process(feature_rows("a", values)))[-1]
    assert 5 in kept["selected_sequences"]
    assert min(lost["selected_sequences"]) >= 52
    assert kept["offsets"] == [59 - i for i in kept["selected_sequences"]]


def test_an_image_is_enough_for_a_selection() -> None:
    batch = frames("a", 5).select(FRAME.names)
    rows = rows_of(operator(window=4, keep=2).process(batch))
    assert [row["status"] for row in rows] == ["ok"] * 5
    assert [len(row["offsets"]) for row in rows] == [1, 2, 2, 2, 2]
    assert {row["valid_depth"] for row in rows} == {None}
    with pytest.raises(SchemaError, match="feature"):
        given(6).process(batch)


def test_depth_is_looked_at_but_decides_nothing() -> None:
    holes = made.depth(0)
    holes[:, : made.WIDTH // 2] = 0
    raw = np.where(made.depth(3) > 0, made.depth(3) / 1000.0, np.nan).astype("<f4")
    rows = [
        rgbd_row("a", 0, depth=png(holes)),
        rgbd_row("a", 1, depth=None),
        rgbd_row("a", 2, depth=png(np.full_like(holes, 65535))),
        rgbd_row("a", 3, depth=raw.tobytes(), depth_encoding="raw_f32", depth_scale=1.0),
        rgbd_row("a", 4, depth=made.depth(4).astype("<u2").tobytes(), depth_encoding="raw_u16"),
    ]
    full = 1 - 16 / (made.HEIGHT * made.WIDTH)
    got = said(operator(), rows)
    assert [row["status"] for row in got] == ["ok"] * 5
    assert [row["valid_depth"] for row in got] == pytest.approx([0.5, 0, 0, full, full])
    assert [len(row["offsets"]) for row in got] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"depth": png(made.depth(0)[:12])}, "the aspects differ; align depth to color before"),
        ({"depth": png(made.depth(0).astype(np.uint8))}, "must be a 16-bit PNG of one channel"),
        ({"depth": b""}, "the depth image is not an image"),
        ({"depth_encoding": "jpeg"}, "depth_encoding 'jpeg' is not supported; use png, raw_u16, raw_f32"),
        ({"depth_scale": None}, "depth_scale is None; it must be units per meter"),
        ({"intrinsics": None}, "the row has no camera matrix"),
        ({"intrinsics": made.MATRIX.T.ravel().tolist()}, "is it stored by columns?"),
        ({"pose": [float("nan")] * 16}, "NaN or infinity (lost tracking?)"),
        ({"pose": np.diag([1.1, 1, 1, 1]).ravel().tolist()}, "no rigid transform: det R is 1.1"),
        ({"pose": None}, "the row has no pose and the stream's frames before it have one"),
    ],
)
def test_a_frame_that_cannot_be_used_is_refused_and_the_next_goes_on(change: dict[str, Any], reason: str) -> None:
    made_operator = operator(window=4, keep=3)
    got = said(made_operator, [rgbd_row("a", 0), rgbd_row("a", 1, **change), rgbd_row("a", 2)])
    assert [row["status"] for row in got] == ["ok", "rejected_corrupt", "ok"]
    assert reason in got[1]["error"]
    assert got[1]["selected_sequences"] is None
    assert got[2]["selected_sequences"] == [0, 2]
    assert made_operator.metrics()["rejected"] == 1


def test_depth_of_half_the_size_is_scaled_by_the_nearest_pixel() -> None:
    small = made.depth(0)[::2, ::2]
    row = said(operator(), [rgbd_row("a", 0, depth=png(small))])[0]
    assert row["valid_depth"] == pytest.approx(1 - 4 / small.size)
    own = rgbd_row("a", 0, depth=png(small), depth_intrinsics=[1.0] * 9)
    got = said(operator(), [own], depth_intrinsics=pa.list_(pa.float64()))[0]
    assert "depth has a camera of its own" in got["error"]


def test_late_and_duplicate_frames_change_nothing() -> None:
    got = said(operator(window=4, keep=4), [rgbd_row("a", n) for n in (0, 2, 1, 2, 3)])
    assert [row["status"] for row in got] == ["ok", "ok", "late", "duplicate", "ok"]
    assert got[-1]["selected_sequences"] == [0, 2, 3]


def test_a_stream_starts_over_with_an_episode_a_gap_or_another_camera() -> None:
    text = {"episode": pa.string(), "reset": pa.bool_()}
    other = [*(2 * made.MATRIX).ravel().tolist()[:8], 1.0]
    rows = [
        rgbd_row("a", 0, episode="one"),
        rgbd_row("a", 1, episode="one"),
        rgbd_row("a", 2, episode="two"),
        rgbd_row("a", 3, episode="two", reset=True),
        rgbd_row("a", 4, episode="two"),
        rgbd_row("a", 30, episode="two"),
        rgbd_row("a", 31, episode="two", intrinsics=other),
        rgbd_row("a", 32, episode="two", intrinsics=other),
    ]
    got = said(operator(), rows, **text)
    statuses = ["ok", "ok", "new_episode", "new_episode", "ok", "reset", "reset", "ok"]
    assert [row["status"] for row in got] == statuses
    assert [row["selected_sequences"] for row in got] == [[0], [0, 1], [2], [3], [3, 4], [30], [31], [31, 32]]
    assert "episode 'two' begins" in got[2]["error"]
    assert "2.600 s since the last frame, max_gap_s is 2.0" in got[5]["error"]
    assert "the camera was fx, fy" in got[6]["error"]
    kept = said(operator(on_camera_change="keep", max_gap_s=None), rows, **text)
    assert [row["selected_sequences"] for row in kept][-3:] == [[3, 4, 30], [3, 4, 30, 31], [3, 4, 30, 31, 32]]


def test_frames_of_another_size_start_a_stream_over() -> None:
    small = rgbd_row("a", 1, image=png(made.color(1)[::2, ::2]), depth=png(made.depth(1)[::2, ::2]))
    got = said(operator(), [rgbd_row("a", 0), small | {"height": 12, "width": 16}])
    assert (got[1]["status"], got[1]["selected_sequences"]) == ("reset", [1])
    assert "frames were 32x24 px, this one is 16x12" in got[1]["error"]


def test_poses_decide_the_frame_of_reference_of_a_stream() -> None:
    got = said(operator(), [rgbd_row("a", 0), rgbd_row("b", 0, pose=None), rgbd_row("b", 1)])
    assert [row["reference"] for row in got] == ["world", "camera", None]
    assert "the row has a pose and the stream's frames before it have none" in got[2]["error"]


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for options, reason in [
        ({"horizon": "unbounded"}, "needs sampling='incremental'"),
        ({"checkpoint": "x"}, "checkpoint has no effect with mode='select'"),
        ({"instruction": "wait"}, "instruction has no effect with mode='select'"),
        ({"mode": "act", "checkpoint": "x", "features": Given(size=3)}, "leave features out"),
        ({"window": 10_000, "bank_gib": 0.001}, "streams fit"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            operator(**options)
    with pytest.raises(CheckpointMismatch):
        operator(mode="act", checkpoint=str(tmp_path / "none.safetensors"))


def test_without_a_checkpoint_the_small_policy_of_the_package_acts() -> None:
    assert SMALL_WEIGHTS.stat().st_size < 2 << 20
    first, second = (operator(mode="act", instruction="x", **more) for more in ({}, {"checkpoint": str(SMALL_WEIGHTS)}))
    assert first.model_id == second.model_id
    assert first.output_schema == FourDVLAOperator.examine(FourDVLAOptions(mode="act"), "act")


def test_a_snapshot_of_other_options_is_not_taken_up() -> None:
    first = given(6, window=9, keep=4)
    first.process(feature_rows("a", features(5, 1)))
    with pytest.raises(RecoveryError, match="window 9, keep 4"):
        given(6, window=9, keep=3).restore(first.snapshot())


@pytest.mark.parametrize("nominal_rate", [None, 10.0], ids=["frames", "seconds"])
def test_actions_from_cached_tokens_equal_encoding_every_kept_frame_again(tmp_path: Path, nominal_rate: float | None) -> None:
    file = tiny_policy(tmp_path, state_dim=2)
    options: dict[str, Any] = {"mode": "act", "checkpoint": file, "window": 5, "keep": 3, "nominal_rate": nominal_rate}
    rows = [
        rgbd_row("a", n, instruction=f"the {'red' if n % 2 else 'blue'} cube", state=[0.1 * n, -1.0])
        for n in (0, 1, 2, 4, 5, 6)
    ]
    rows[3]["depth"] = None
    got = said(operator(**options), rows, instruction=pa.string(), state=pa.list_(pa.float32()))
    policy = load_policy(file)
    model, vision = policy.model, policy.model.config.vision
    by_sequence = {row["sequence"]: row for row in rows}
    for row, told in zip(rows, got, strict=True):
        tokens = []
        for sequence in told["selected_sequences"]:
            frame = by_sequence[sequence]
            plan = resize_plan((made.HEIGHT, made.WIDTH), (vision.height, vision.width))
            look = sequence + 100 * ord("a")
            rgb = plan.color(torch.from_numpy(made.color(look)).permute(2, 0, 1)[None].float())
            raw = made.depth(sequence) if frame["depth"] is not None else np.zeros((made.HEIGHT, made.WIDTH))
            depth, valid = depth_meters(torch.from_numpy(raw.astype(np.int32))[None], torch.tensor([1000.0]), 10.0)
            coord, share = model.coordinates(
                plan.depth(depth),
                plan.depth(valid),
                plan.camera(torch.from_numpy(made.MATRIX)[None]),
                torch.from_numpy(made.pose(sequence))[None],
            )
            tokens.append(model.spatial_tokens(model.vision_model(model.vision_model.normalize(rgb)), coord, share))
        ago = [row["sequence"] - s for s in told["selected_sequences"]] if nominal_rate else told["offsets"]
        wanted = model.act(
            torch.cat(tokens)[None],
            torch.tensor([ago]),
            [len(ago)],
            [torch.tensor(policy.tokenizer.encode(row["instruction"]))],
            torch.tensor([row["state"]]),
        )
        np.testing.assert_allclose(told["action"], wanted.scaled(model.config)[0].numpy(), atol=1e-5)
        assert told["gripper"] == pytest.approx(wanted.gripper_B.sigmoid().item(), abs=1e-5)
        assert told["model_id"].startswith("fourd_vla-")
    assert [row["status"] for row in got] == ["ok"] * 6


def test_a_policy_needs_an_instruction_and_its_state(tmp_path: Path) -> None:
    file = tiny_policy(tmp_path, state_dim=2)
    got = said(operator(mode="act", checkpoint=file), [rgbd_row("a", 0, state=[0.0, 1.0])], state=pa.list_(pa.float32()))
    assert "there is no instruction" in got[0]["error"]
    got = said(operator(mode="act", checkpoint=file, instruction="the cube"), [rgbd_row("a", 0)])
    assert "needs a column state of 2 finite numbers" in got[0]["error"]
    with pytest.raises(SchemaError, match="depth"):
        operator(mode="act", checkpoint=file, instruction="the cube").process(frames("a", 1).select(FRAME.names))


def test_a_policy_in_half_precision_acts_nearly_the_same(tmp_path: Path) -> None:
    file = tiny_policy(tmp_path)
    options: dict[str, Any] = {"mode": "act", "checkpoint": file, "instruction": "the cube", "keep": 2}
    full, half = (rows_of(operator(**options, dtype=dtype).process(frames("a", 3))) for dtype in ("float32", "bfloat16"))
    for a, b in zip(full, half, strict=True):
        np.testing.assert_allclose(b["action"][:6], a["action"][:6], atol=0.05)
