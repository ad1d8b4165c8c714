"""The golden tests on cases of other sizes, and the slow reference on the recorded ones."""

from pathlib import Path

import fourd_vla_cases
import fourd_vla_made_cases
import fourd_vla_reference as reference
import numpy as np
import pytest
import test_golden_fourd_vla
from golden_cases import checks_of, golden, read_json, read_npz, sibling


@pytest.mark.parametrize("seed", range(3))
def test_cases_of_other_sizes_pass(seed: int, tmp_path: Path) -> None:
    fourd_vla_made_cases.make_case(tmp_path, seed)
    checks = checks_of(tmp_path / "case.npz", [test_golden_fourd_vla])
    assert len(checks) == 3
    for check in checks:
        check(tmp_path / "case.npz")


@golden("fourd_vla", ".npz", *fourd_vla_cases.SAMPLING)
def test_reference_repeats_the_traces(path: Path) -> None:
    arrays = read_npz(path)
    for mode, name, n, k in fourd_vla_cases.traces(arrays):
        alike = reference.cosines(arrays[f"feat_{name}"])
        times = range(len(alike))
        kept = [reference.window(alike, t, n, k) for t in times] if mode == "window" else reference.incremental(alike, n, k)
        wanted = [[int(i) for i in row if i >= 0] for row in arrays[f"{mode}_{name}_n{n}_k{k}"]]
        assert kept == wanted, f"{mode} of {name}, n={n}, k={k}"


@golden("fourd_vla", ".npz", *fourd_vla_cases.LOSSES)
def test_reference_repeats_the_losses(path: Path) -> None:
    arrays = read_npz(path)
    np.testing.assert_allclose(reference.losses(arrays), arrays["loss_terms"], atol=1e-12)


@golden("fourd_vla", ".npz", *fourd_vla_cases.GEOMETRY)
def test_reference_repeats_the_points(path: Path) -> None:
    arrays, config = read_npz(path), read_json(sibling(path, "case", "config", ".json"))
    name = next(name for name in arrays if name.startswith("depth_stride"))
    stride = int(name.removeprefix("depth_stride"))
    made = reference.points(arrays[name], stride, config["depth_scale"], config["depth_trunc"], arrays["K"], arrays["T_wc"])
    np.testing.assert_allclose(made, arrays[f"points_stride{stride}"], atol=1e-5)
