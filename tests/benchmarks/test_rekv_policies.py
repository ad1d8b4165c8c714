"""Every bank policy through the session of a stream, on a short film with the small model."""

import pytest
import torch

from benchmarks import rekv_policies
from models.rekv.config import ReKVConfig
from models.rekv.loaders import load_model
from models.rekv.small import SMALL_WEIGHTS, load_small

LENGTH = 100


@pytest.mark.parametrize("name", list(rekv_policies.policies(4, 24)))
def test_every_policy_answers_questions_in_no_more_bytes_than_none(name: str) -> None:
    config = load_small(SMALL_WEIGHTS).rekv
    model = load_model(SMALL_WEIGHTS, config)
    policies = rekv_policies.policies(4, model.decoder.dim)
    rows = {n: rekv_policies.measure(model, config, policies[n], range(1), LENGTH) for n in ("off", name)}
    assert rows[name]["questions"] == rows["off"]["questions"] > 0
    assert rows[name]["bytes_per_frame"] <= rows["off"]["bytes_per_frame"]
    if name not in ("off", "EM-LLM events"):
        assert rows[name]["bytes_per_frame"] < rows["off"]["bytes_per_frame"]
    assert rows[name]["recall"] > 0


class Means:
    """Random means of a film's frames, as surprising at its end as at its beginning."""

    first, below = 0, rekv_policies.FRAMES

    def representatives(self, layer: int) -> torch.Tensor:
        return torch.randn(self.below, 2, 8, generator=torch.Generator().manual_seed(layer)).add_(5)


def test_sirllm_reads_only_frames_that_its_rule_keeps_and_forgets_old_ones_first() -> None:
    select = rekv_policies.sirllm_select(Means(), ReKVConfig(window_tokens=4000, retrieve_frames=600))
    kept = select(0, torch.zeros(rekv_policies.FRAMES))
    most = rekv_policies.SINKS + rekv_policies.SURPRISING + rekv_policies.RECENT
    assert len(kept) == most
    assert kept[: rekv_policies.SINKS].tolist() == list(range(rekv_policies.SINKS))
    assert (kept >= 300).sum() > (kept < 300).sum()


def test_em_llm_reads_at_most_as_many_frames_as_allowed_and_whole_events_first() -> None:
    scores = torch.zeros(rekv_policies.FRAMES)
    scores[100:140] = 1
    chosen = rekv_policies.em_llm_select(Means(), ReKVConfig(window_tokens=4000, retrieve_frames=16))(0, scores)
    assert len(chosen) == 16
    assert (chosen.diff() > 0).all()
    assert ((chosen >= 100 - rekv_policies.LONGEST) & (chosen < 140 + rekv_policies.LONGEST)).all()
