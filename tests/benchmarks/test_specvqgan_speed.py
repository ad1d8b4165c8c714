"""The benchmark of SpecVQGAN's speed runs at toy size, and tells when its claims do not hold."""

import pytest
import torch

from benchmarks.specvqgan_speed import failures_of, main, measure, published_logits
from models.specvqgan.config import TransformerConfig
from models.specvqgan.transformer import SoundTransformer


def test_the_quick_form_draws_windows_and_counts_frames(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            assert main(["--quick", "--streams", "1", "3"]) == 0
            result = measure([2], quick=True, passes=2)
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "published sampler" in said and "3 streams together" in said
    assert result["rows"][0]["faster"] > 1 and result["stages_s"].keys() == {"encode", "decode", "vocode"}
    assert 0 < result["frames_looked_at"] < 0.3 * result["frames"]


@torch.inference_mode()
def test_the_published_pass_gives_the_logits_of_the_network() -> None:
    model = SoundTransformer(
        TransformerConfig(codes=9, layers=2, heads=2, width=16, features=2, feature_width=5, columns=3)
    ).eval()
    feats, tokens = torch.randn(2, 5, 2), torch.randint(9, (2, 7))
    torch.testing.assert_close(published_logits(model, feats, tokens), model(feats, tokens), atol=1e-5, rtol=1e-5)


def test_claims_that_do_not_hold_are_named() -> None:
    rows = [{"streams": 1, "faster": 30.0}, {"streams": 4, "faster": 1.0}, {"streams": 16, "faster": 99.0}]
    result = {"rows": rows, "frames_looked_at": 50, "frames": 1800}
    assert failures_of(result) == ["99.0 times at 16 streams instead of 100"]
    assert failures_of({"rows": [], "frames_looked_at": 900, "frames": 1800}) == [
        "900 of 1800 frames went through the frame network"
    ]
