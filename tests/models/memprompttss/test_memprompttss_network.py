"""Properties of the network that hold for any weights, and its files (spec section 12)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from connectors.errors import CheckpointMismatch, ConfigError
from models.memprompttss.checkpoint import load_network, save_network
from models.memprompttss.config import MemPromptTSSConfig
from models.memprompttss.header import network_config
from models.memprompttss.layers import coverage
from models.memprompttss.model import MemPromptTSS, Prompts


def network(seed: int = 0, **settings: Any) -> MemPromptTSS:
    sizes = {"channels": 2, "classes": 4, "width": 16, "encoder_layers": 2, "decoder_blocks": 3, "patch": 8, "patch_stride": 4}
    torch.manual_seed(seed)
    model = MemPromptTSS(MemPromptTSSConfig(**(sizes | {"window": 32, "context": 24, "stride": 8} | settings)))
    for parameter in model.parameters():  # biases, too: where nothing is remembered they are all that is left
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def windows(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 32, 2, generator=torch.Generator().manual_seed(seed))


def bank(count: int, tokens: int, seed: int = 2) -> Tensor:
    return torch.randn(count, tokens, 16, generator=torch.Generator().manual_seed(seed))


def test_the_order_of_the_bank_does_not_matter() -> None:
    model, m_BND = network(), bank(2, 7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(windows(2), m_BND[:, order]), model(windows(2), m_BND), atol=1e-5, rtol=1e-5)


def test_a_masked_bank_equals_one_without_the_gaps() -> None:
    model, m_BND = network(), bank(3, 6)
    there_BN = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    of_W = torch.tensor([0, 1, 2, 2, 0])
    together = model(windows(5), m_BND, there_BN, of_W)
    for w, b in enumerate(of_W.tolist()):
        alone = model(windows(5)[w : w + 1], m_BND[b : b + 1, there_BN[b]])
        torch.testing.assert_close(together[w], alone[0], atol=1e-5, rtol=1e-5)


def test_an_empty_bank_leaves_the_bias_of_the_reading_attention() -> None:
    model = network()
    x_WPD = model.ts_encoder(windows(2))
    block = model.state_decoder.blocks[0]
    got, _ = block(x_WPD, bank(2, 0), None, None)
    wanted = x_WPD + block.x_self.to_itself(block.ln_x_sa(x_WPD)) + block.x_from_m.out_proj.bias
    torch.testing.assert_close(got, wanted + block.ff_x(block.ln_x_ff(wanted)), atol=1e-6, rtol=1e-6)
    assert model(windows(2), bank(2, 0)).isfinite().all()


def test_reading_changes_no_token_of_the_bank() -> None:
    model, m_BND = network(), bank(1, 5)
    before = m_BND.clone()
    model(windows(3), m_BND, None, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(m_BND, before)


def test_on_the_axis_of_time_a_window_does_not_see_the_others_of_its_batch() -> None:
    model, x_WTC = network(), windows(4)
    alone = torch.cat([model.ts_encoder(x_WTC[w : w + 1]) for w in range(4)])
    torch.testing.assert_close(model.ts_encoder(x_WTC), alone, atol=1e-5, rtol=1e-5)


def test_on_the_axis_of_the_batch_a_patch_of_a_lone_window_depends_on_itself_only() -> None:
    encoder, x_BTC = network(encoder_axis="batch").ts_encoder, windows(1)
    changed = x_BTC.clone()
    changed[:, 20:24] += 1.0  # patches 4 and 5 at [16, 24) and [20, 28), and patch 3 at [12, 20) not
    differs_P = (encoder.encode(x_BTC) - encoder.encode(changed)).abs().amax(2)[0] > 1e-7
    assert differs_P.nonzero()[:, 0].tolist() == [4, 5]
    assert torch.equal(encoder.encode(x_BTC), encoder.encode(x_BTC)) and not torch.allclose(
        encoder(windows(2))[:1], encoder(windows(2)[:1]), atol=1e-3
    )


@pytest.mark.parametrize(("scale", "shift", "tolerance"), [(1000.0, 0.0, 1e-4), (1.0, 1e4, 5e-3), (3.0, -7.0, 1e-4)])
def test_scale_and_level_of_a_channel_are_invisible(scale: float, shift: float, tolerance: float) -> None:
    model, x_WTC = network(), windows(2)
    factor_C = torch.tensor([scale, 1.0])
    offset_C = torch.tensor([shift, 2.0])
    torch.testing.assert_close(model(x_WTC * factor_C + offset_C, bank(2, 3)), model(x_WTC, bank(2, 3)), atol=tolerance, rtol=0)


def test_a_flat_channel_gives_numbers() -> None:
    assert network()(torch.full((1, 32, 2), 5.0), bank(1, 2)).isfinite().all()


@pytest.mark.parametrize(("samples", "patch", "stride"), [(32, 8, 4), (17, 5, 3), (20, 4, 4), (256, 16, 8)])
def test_logits_of_samples_are_means_over_the_patches_that_cover_them(samples: int, patch: int, stride: int) -> None:
    count = (samples - patch) // stride + 1
    patch_PK = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack(
        [
            torch.stack([patch_PK[p] for p in range(count) if p * stride <= t < p * stride + patch]).mean(0)
            for t in range(samples)
        ]
    )
    cover_TP = coverage(samples, count, patch, stride)
    torch.testing.assert_close(cover_TP @ patch_PK, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cover_TP.sum(1), torch.ones(samples), atol=1e-6, rtol=0)


def test_prompts_about_a_state_and_about_a_boundary_are_told_apart() -> None:
    model, one = network(), torch.tensor([1])
    context = windows(1)[:, :24]
    tokens = [
        model.remember(Prompts(kind, one, one, aspect), context)
        for kind in (torch.tensor([0]), torch.tensor([1]))
        for aspect in (torch.tensor([0]), torch.tensor([1]))
    ]
    assert torch.pdist(torch.cat(tokens)).min() > 1e-3


def test_windows_that_end_within_a_patch_are_refused_with_a_length_that_fits() -> None:
    with pytest.raises(ConfigError, match=r"window of 250 samples .* choose 248"):
        MemPromptTSSConfig(channels=1, classes=2, window=250)
    with pytest.raises(ConfigError, match="width 15 must be even"):
        MemPromptTSSConfig(channels=1, classes=2, width=15)
    with pytest.raises(ConfigError, match="encoder_axis is 'space'"):
        MemPromptTSSConfig(channels=1, classes=2, encoder_axis="space")  # type: ignore[arg-type]


def test_a_network_comes_back_from_its_file(tmp_path: Path) -> None:
    model = network(channel_names=("x", "y"), state_names=("a", "b", "c", "d"), mean=(1.0, 2.0), std=(1.0, 3.0), rate_hz=50.0)
    save_network(model, tmp_path / "a.safetensors")
    assert network_config(tmp_path / "a.safetensors") == model.config
    again = load_network(tmp_path / "a.safetensors")
    assert torch.equal(again(windows(2), bank(2, 3)), model(windows(2), bank(2, 3)))
    with pytest.raises(CheckpointMismatch, match=r"holds its own settings; remove \['heads'\]"):
        load_network(tmp_path / "a.safetensors", {"heads": 4})


def test_another_number_of_states_renews_head_and_labels_only(tmp_path: Path) -> None:
    model = network()
    save_network(model, tmp_path / "a.safetensors")
    other = load_network(tmp_path / "a.safetensors", classes=7)
    assert other(windows(1), bank(1, 2)).shape == (1, 32, 7)
    renewed = {name for name, t in other.state_dict().items() if not torch.equal(t, model.state_dict().get(name, t[:0]))}
    assert renewed == {
        f"{part}.{kind}" for part in ("prompt_encoder.label_proj", "state_decoder.head") for kind in ("weight", "bias")
    }


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({name: t for name, t in state.items() if "memory_encoder.layers.1.attn" not in name}, tmp_path / "a.pth")
    with pytest.raises(CheckpointMismatch, match=r"missing memory_encoder\.layers\.1\.attn"):
        load_network(tmp_path / "a.pth", {"patch": 8, "patch_stride": 4, "window": 32, "context": 24})
    torch.save({"weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointMismatch, match=r"b\.pth: is no checkpoint of MemPromptTSS"):
        load_network(tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointMismatch, match=r"not a complete PyTorch checkpoint|refused"):
        load_network(tmp_path / "c.pth")
