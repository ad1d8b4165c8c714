"""The measurement of a device at toy size on the CPU: every part gives its figures."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from launches import DEVICE, on_device

from benchmarks import gpu, gpu_golden
from benchmarks.gpu_frames import why_none
from benchmarks.gpu_golden import check_golden

BLOCKED = ("ray", "kafka", "decord", "open3d")

RUN = f"""
import importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Block())
import torch
compiler = torch.compile  # its first half: what it captures is run as it is
torch.compile = lambda function, **_: compiler(function, backend="eager", dynamic=False, fullgraph=True)
from benchmarks import gpu
found = gpu.measure(gpu.TOY, torch.device("cpu"), sys.argv[1:], 600.0)
assert not set({BLOCKED}) & set(sys.modules)
print("FOUND", json.dumps(found))
"""


def measured(*parts: str) -> dict[str, Any]:
    """Return what is measured in a process where the packages of connectors and pipelines are missing."""
    ran = subprocess.run([sys.executable, "-c", RUN, *parts], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.partition("FOUND ")[2])
    assert [what for what in found["left_out"] if not what.startswith("frames: ")] == []
    return found


def test_every_part_is_measured_where_ray_kafka_decord_and_open3d_are_missing() -> None:
    found = measured(*(part for part in gpu.PARTS if part not in ("golden", "decoding")))
    assert found["peak"]["flop_per_s"] > 0 and found["peak"]["bytes_per_s"] > 0
    assert found["agreement"]["rekv_scores"] < 1e-5 < found["agreement"]["rekv_scores_size"]
    assert [(row["streams"], row["frames"]) for row in found["rekv"]] == [(1, 2), (2, 1)]
    assert all(row["frames_per_s"] > 0 and row["utilization"] > 0 and row["tokens_per_frame"] == 6 for row in found["rekv"])
    assert found["rekv"][0]["first_token_s"] > 0 and found["rekv"][0]["answer_tokens"] == 4
    assert [row["streams"] for row in found["mamba"]] == [1, 2]
    assert all(row["tokens_per_s"] > 0 and row["step_p95_s"] > 0 for row in found["specvqgan"])
    assert set(found["sketch"]) == {"hash", "write", "read"}
    assert [(row["part"], row["streams"], row["tried"]) for row in found["most_streams"]] == [
        ("mamba", 2, [1, 2]),
        ("specvqgan", 2, [1, 2]),
    ]
    if why_none() is None:
        assert [row["frames"] for row in found["frames"]] == ["carried", "kept"]
        assert all(row["frames_per_s"] > 0 and row["difference"] == 0 for row in found["frames"])  # one decoder, one device


@pytest.mark.slow  # eight seconds of compiling
def test_compiled_decoding_is_measured_beside_eager_decoding() -> None:
    found = measured("decoding")
    assert [(row["model"], row["batch"]) for row in found["decoding"]] == [("rekv toy", 2), ("specvqgan", 2)]
    answers, sounds = found["decoding"]
    assert answers["first_compiled_s"] > answers["compiled_answer_s"] > 0 and answers["answer_s"] > 0
    assert {"token_s", "compiled_token_s"} <= set(answers)
    assert sounds["first_compiled_s"] > 0 and sounds["token_s"] > 0 and sounds["compiled_token_s"] > 0


@pytest.mark.slow
def test_golden_vectors_hold_on_a_device_that_is_not_there() -> None:
    """Every tensor lies where a GPU needs it, and the numbers are those of the CPU."""
    with on_device() as launches:
        rows = check_golden(DEVICE)
    assert {row["method"] for row in rows} == {
        "fourd_vla", "mamba", "memprompttss", "prompttpp", "rekv", "reloop2", "specvqgan", "videostreaming"
    }  # fmt: skip
    assert all(row["holds"] and row["comparisons"] > 2 for row in rows), rows
    assert launches.kernels > 1000


@pytest.mark.parametrize(("got", "holds"), [(1.0, True), (1.1, False), (float("nan"), False)])
def test_a_difference_beyond_what_is_allowed_is_told(got: float, holds: bool) -> None:
    rows = [("fine", torch.ones(2), [1.0, 1.0], 1e-5), ("other", torch.tensor([got, 1.0]), [1.0, 1.0], 1e-5)]
    assert gpu_golden._row("some", iter(rows))["holds"] == holds


def test_what_the_time_does_not_suffice_for_is_named() -> None:
    found = gpu.measure(gpu.TOY, torch.device("cpu"), ["rekv", "sketch"], -1.0)
    assert found["rekv"] == [] and "sketch" not in found
    assert found["left_out"] == ["rekv toy: 1 streams, 2 frames", "rekv toy: 2 streams, 1 frames", "sketch"]


def test_operations_of_a_frame_are_those_of_the_design() -> None:
    linear = gpu.flop_per_frame(gpu.SHAPES["7b"], 0)
    assert abs(linear / 2.558e12 - 1) < 0.01
    assert abs((gpu.flop_per_frame(gpu.SHAPES["7b"], 15_000) - linear) / 1.180e12 - 1) < 0.01
