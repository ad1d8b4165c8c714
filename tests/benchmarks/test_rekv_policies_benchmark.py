"""Every bank policy through the operator's encoder, bank and answering, on a short film with the small model."""

import pytest

from benchmarks import rekv_policies

LENGTH = 100


@pytest.mark.parametrize(
    "name",
    [name if name == "KVMerger, half" else pytest.param(name, marks=pytest.mark.slow) for name in rekv_policies.POLICIES],
)
def test_every_policy_answers_questions_in_no_more_bytes_than_none(name: str) -> None:
    rows = {n: rekv_policies.measure(rekv_policies.POLICIES[n], range(1), LENGTH) for n in ("off", name)}
    assert rows[name]["questions"] == rows["off"]["questions"] > 0
    assert rows[name]["bytes_per_frame"] <= rows["off"]["bytes_per_frame"]
    if name not in ("off", "EM-LLM events"):
        assert rows[name]["bytes_per_frame"] < rows["off"]["bytes_per_frame"]
    assert rows[name]["recall"] > 0
