"""The golden tests on causal cases of other sizes, and the slow reference on the recorded ones."""

from pathlib import Path

import numpy as np
import prompttpp_cases
import prompttpp_made_cases
import pytest
import test_golden_prompttpp
from golden_cases import checks_of, golden, read_json, read_npz
from prompttpp_reference import causal_vectors
from safetensors.numpy import load_file


@pytest.mark.parametrize("seed", range(3))
def test_cases_of_other_sizes_pass(seed: int, tmp_path: Path) -> None:
    path = prompttpp_made_cases.make_case(tmp_path, seed)
    checks = checks_of(path, [test_golden_prompttpp])
    assert len(checks) == 2
    for check in checks:
        check(path)


@golden("prompttpp", ".npz", *prompttpp_cases.CAUSAL)
def test_reference_repeats_a_sequence(path: Path) -> None:
    label = path.stem.removesuffix("_io")
    arrays, config = read_npz(path), read_json(path.with_name(f"{label}_config.json"))
    weights = load_file(path.with_name(f"{label}_state.safetensors"))
    row = int(np.argmin(config["seq_lens"]))
    n = config["seq_lens"][row]
    found = causal_vectors(weights, config, arrays["time_seq"][row, :n].astype(np.float64), arrays["event_seq"][row, :n], row)
    for name, got in found.items():
        np.testing.assert_allclose(got, arrays[name], atol=1e-9, err_msg=name)
