"""Golden: the slow reference repeats the published vectors, and the cases of other sizes that it makes pass the same tests."""

from pathlib import Path

import pytest
import test_golden_videostreaming
import torch
import videostreaming_made_cases as made
from golden_cases import checks_of, golden
from videostreaming_cases import CASE, assert_close, read_case
from videostreaming_reference import INPUTS, replay


@pytest.mark.heavy
@golden("videostreaming", ".npz", *CASE)
def test_reference_repeats_the_recorded_case(path: Path) -> None:
    sizes, weights, case = read_case(path)
    got = replay(weights, sizes, {name: case[name] for name in INPUTS})
    assert got.keys() == case.keys() - set(INPUTS)
    for name, tensor in got.items():
        if tensor.is_floating_point():
            assert_close(tensor, case[name], name)
        else:
            assert torch.equal(tensor, case[name]), name


@pytest.mark.heavy
@pytest.mark.golden
@pytest.mark.parametrize("label", made.SETTINGS)
def test_cases_of_other_sizes(label: str, tmp_path: Path) -> None:
    path = made.write_case(tmp_path, label)
    checks = checks_of(path, [test_golden_videostreaming])
    assert len(checks) == 3
    for check in checks:
        check(path)


def test_made_cases_cover_what_the_published_one_leaves_out() -> None:
    """Guards the settings: what each is for must not get lost when somebody changes a number."""
    few, odd = made.SETTINGS["few"], made.SETTINGS["odd"]
    assert few["K"] < few["V"] and few["P"] == 1 and few["encoder"]["partial_rotary_factor"] == 1
    assert odd["N"] ** 0.5 % odd["P"] ** 0.5 and not odd["final_norm"] and odd["encoder"]["num_attention_heads"] == 3
