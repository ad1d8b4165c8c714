"""The golden tests on cases of other sizes: other activations, one subsequence, contexts longer and shorter than the window."""

from pathlib import Path

import memprompttss_made_cases
import pytest
import test_golden_memprompttss
from golden_cases import checks_of


@pytest.mark.parametrize(
    ("seed", "batch", "context", "activation", "patch"),
    [
        pytest.param(1, 1, 40, "gelu", (8, 4), marks=pytest.mark.slow),
        pytest.param(2, 4, 17, "relu", (6, 2), marks=pytest.mark.slow),
        (3, 2, 90, "relu", (5, 5)),
        pytest.param(4, 1, 12, "gelu", (4, 3), marks=pytest.mark.slow),
    ],
)
def test_cases_of_other_sizes_pass(
    seed: int, batch: int, context: int, activation: str, patch: tuple[int, int], tmp_path: Path
) -> None:
    path = memprompttss_made_cases.make_case(tmp_path, seed, batch=batch, context=context, activation=activation, patch=patch)
    checks = checks_of(path, [test_golden_memprompttss])
    assert len(checks) == 4
    for check in checks:
        check(path)
