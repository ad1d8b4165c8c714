"""Golden: the same checks take cases of any size of the documented form. The cases are made here, by the slow reference."""

from pathlib import Path

import mamba_made_cases as made
import pytest
import test_golden_mamba_bank
import test_golden_mamba_operator
import test_golden_mamba_parts
import test_golden_mamba_training
import test_golden_mamba_video
from golden_cases import checks_of

MODULES = (
    test_golden_mamba_bank,
    test_golden_mamba_operator,
    test_golden_mamba_parts,
    test_golden_mamba_training,
    test_golden_mamba_video,
)


@pytest.mark.golden
@pytest.mark.parametrize("label", made.SETTINGS)
@pytest.mark.heavy
def test_videos_and_training_steps_of_other_sizes(label: str, tmp_path: Path) -> None:
    for path in made.write_video_cases(tmp_path, label):
        checks = checks_of(path, MODULES)
        assert len(checks) == 2, f"{path.name}: {checks}"  # the published procedure, and the operator; or losses, and samples
        for check in checks:
            check(path)


@pytest.mark.golden
def test_attention_bank_traces_and_evaluations_of_other_sizes(tmp_path: Path) -> None:
    for path in made.write_small_cases(tmp_path):
        checks = checks_of(path, MODULES)
        assert checks, f"no check takes {path.name}"
        for check in checks:
            check(path)


def test_made_cases_cover_what_the_published_ones_leave_out() -> None:
    """Guards the settings: what each is for must not get lost when somebody changes a number."""
    odd, alone, crowded = (made.SETTINGS[label] for label in ("odd", "alone", "crowded"))
    assert isinstance(odd["scale"], list) and len(set(odd["scale"])) == 2 and isinstance(alone["scale"], float)
    assert [s.get("store_roi") for s in (odd, alone, crowded)] == [False, True, None]
    assert all(s["fc"] % 16 and s["fc"] % s["heads"] == 0 for s in (odd, alone, crowded))
    assert (odd["n_ref"] + 1) * odd["topk"] > odd["max_len"] + odd["topk"]  # the start overflows the instance banks
    assert crowded["neck"] == 32 * crowded["base"] and crowded["position"] == "neck"  # shapes would suggest the backbone
    assert crowded["topk"] > max(crowded["max_len"], crowded["n_prop"]) and crowded["ppf"] > crowded["pmax"]
    assert alone["n_ref"] == 0 and alone["key_len"] == alone["topk"]
