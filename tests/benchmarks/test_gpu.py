"""The measurement of a device at toy size on the CPU: every part gives its figures."""

import torch

from benchmarks import gpu


def test_every_part_is_measured() -> None:
    found = gpu.measure(gpu.TOY, torch.device("cpu"), gpu.PARTS, 600.0)
    assert found["peak"]["flop_per_s"] > 0 and found["peak"]["bytes_per_s"] > 0
    assert found["agreement"]["rekv_scores"] < 1e-5 < found["agreement"]["rekv_scores_size"]
    assert [(row["streams"], row["frames"]) for row in found["rekv"]] == [(1, 2), (2, 1)]
    assert all(row["frames_per_s"] > 0 and row["utilization"] > 0 and row["tokens_per_frame"] == 6 for row in found["rekv"])
    assert found["rekv"][0]["first_token_s"] > 0 and found["rekv"][0]["answer_tokens"] == 4
    assert [row["streams"] for row in found["mamba"]] == [1, 2] and found["most_streams"]["mamba"] == 2
    assert all(row["tokens_per_s"] > 0 for row in found["specvqgan"])
    assert set(found["sketch"]) == {"hash", "write", "read"}
    assert found["left_out"] == []


def test_what_the_time_does_not_suffice_for_is_named() -> None:
    found = gpu.measure(gpu.TOY, torch.device("cpu"), ["rekv", "sketch"], -1.0)
    assert found["rekv"] == [] and "sketch" not in found
    assert found["left_out"] == ["rekv toy: 1 streams, 2 frames", "rekv toy: 2 streams, 1 frames", "sketch"]


def test_operations_of_a_frame_are_those_of_the_design() -> None:
    linear = gpu.flop_per_frame(gpu.SHAPES["7b"], 0)
    assert abs(linear / 2.558e12 - 1) < 0.01
    assert abs((gpu.flop_per_frame(gpu.SHAPES["7b"], 15_000) - linear) / 1.180e12 - 1) < 0.01
