"""Golden: the slow reference repeats the published vectors, and the cases of other sizes that it makes pass the same test."""

from pathlib import Path

import pytest
import rekv_made_cases as made
import test_golden_rekv_stream
import torch
from golden_cases import golden, read_json
from rekv_cases import STREAM, assert_close, vectors
from rekv_reference import Model, replay
from safetensors.torch import load_file

INPUTS = ("init_ids", ".frames", ".question_ids", ".prompt_ids")


@golden("rekv", ".json", *STREAM)
def test_reference_repeats_the_recorded_stream_and_questions(path: Path) -> None:
    case, io = read_json(path), vectors(path)
    weights = load_file(path.with_suffix(".weights.safetensors"))
    inputs = {name: tensor for name, tensor in io.items() if name.endswith(INPUTS)}
    got = replay(Model(weights, case["config"], case["rekv"]), case["events"], inputs)
    assert got.keys() == io.keys() - inputs.keys()
    for name, tensor in got.items():
        if tensor.is_floating_point():
            assert_close(tensor.float(), io[name], name)
        else:
            assert torch.equal(tensor, io[name]), name


@pytest.mark.heavy
@pytest.mark.golden
@pytest.mark.parametrize("label", made.SETTINGS)
def test_streams_and_questions_of_other_sizes(label: str, tmp_path: Path) -> None:
    path = made.write_case(tmp_path, label)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    test_golden_rekv_stream.test_recorded_stream_and_questions_are_reproduced(path, folder)


def test_made_cases_cover_what_the_published_ones_leave_out() -> None:
    """Guards the settings: what each is for must not get lost when somebody changes a number."""
    odd, narrow, even = (made.SETTINGS[label] for label in ("odd", "narrow", "even"))
    assert odd["heads"] // odd["groups"] == 3 and odd["chunk"] == 3 and (odd["image"] // odd["patch"]) % 2
    assert narrow["image"] == 2 * narrow["patch"] and narrow["window"] == narrow["topk"] == narrow["sinks"]  # one token a frame
    assert even["groups"] == even["heads"] and even["heads"] % 2 and even["layers"] == 4
    assert even["sinks"] > even["sinks"] + 10 * 4 - even["window"] > 0  # ten frames of 2 x 2 tokens
    assert len({s["layers"] for s in (odd, narrow, even)} | {3}) == 4
