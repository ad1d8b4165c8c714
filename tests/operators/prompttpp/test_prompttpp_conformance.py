"""The operator keeps every promise of ``operators.base``, bit for bit, for each backbone, with learning and without."""

from pathlib import Path

import pytest
from prompttpp_streams import network, operator, rows, stream

from pipelines.testing.conformance import check_operator

BAD = rows([("x", 0, 0.0, None), ("x", 1, 0.0, 17), ("x", 2, 0.0, -4)])


@pytest.mark.parametrize("backbone", ["s2p2", "attnhp", "nhp"])
@pytest.mark.slow  # what learns goes through all of it too
def test_conformance_without_learning(backbone: str, tmp_path: Path) -> None:
    path = network(tmp_path, backbone)
    check_operator(lambda: operator(path), stream(3, 7), bad_rows=BAD, fill_after=1)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("s2p2", {"learn": "prompts", "learn_batch": 5}),
        pytest.param(
            "s2p2+head", {"learn": "prompts", "learn_batch": 5, "common_share": 0.5, "novelty": 0.9}, marks=pytest.mark.slow
        ),
        pytest.param("s2p2", {"learn": "all", "learn_batch": 7, "refresh_lag": 1}, marks=pytest.mark.slow),
        pytest.param("attnhp", {"learn": "prompts+head", "learn_batch": 6, "refresh_lag": 0}, marks=pytest.mark.slow),
    ],
    ids=["prompts", "their head", "all", "attention"],
)
@pytest.mark.heavy
def test_conformance_with_learning(backbone: str, options: dict[str, object], tmp_path: Path) -> None:
    name, _, own_head = backbone.partition("+")
    path = network(tmp_path, name, prompt_head=bool(own_head))
    check_operator(lambda: operator(path, **options), stream(3, 7), bad_rows=BAD, fill_after=1)
