"""Golden: every network of SpecVQGAN as the official code computes it, its tokens, losses, metrics, and names of weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import specvqgan_cases as cases
import torch
from golden_cases import assert_complete, golden, read_json, read_npz, sibling
from specvqgan_cases import close, loss_networks, sound_file, sound_model, tensors

from models.specvqgan.autoencoder import perplexity
from models.specvqgan.checkpoint import load_autoencoder, load_transformer, load_vocoder
from models.specvqgan.losses import autoencoder_loss, discriminator_loss, token_loss
from models.specvqgan.mel import mel_basis, one_shot_mel
from models.specvqgan.melception import Melception
from models.specvqgan.metrics import frechet_distance, inception_score, kernel_distance, matched_kl
from models.specvqgan.perceptual import PerceptualDistance
from models.specvqgan.sampling import centered_start, choose, generate
from models.specvqgan.tokens import grid_of, sequence_of
from models.specvqgan.transformer import KVCache
from models.specvqgan.vision import picked_rows


def test_every_file_belongs_to_a_kind_and_every_kind_has_a_case() -> None:
    assert_complete("specvqgan", cases.KINDS)


@golden("specvqgan", ".npz", *cases.MEL)
def test_mel_spectrograms_are_the_recorded_ones(path: Path) -> None:
    case = tensors(path)
    close(mel_basis().float(), case["mel_basis"], "filters", 1e-7)
    for name in (name for name in case if name.endswith("_mel01")):
        stem = name.removesuffix("_mel01")
        samples_N = case[f"{stem}_wav"] if f"{stem}_wav" in case else case[f"{stem}_pcm22050"] / 32768
        close(one_shot_mel(samples_N), case[name], name, 2e-5)


@pytest.mark.heavy
@golden("specvqgan", ".npz", *cases.AUTOENCODER)
def test_autoencoder_makes_the_recorded_tokens_and_spectrograms(path: Path) -> None:
    case, model = tensors(path), sound_model(sound_file(path, "vqmodel")).autoencoder
    with torch.inference_mode():
        z_BDHW = model.encode_map(case["x"])
        close(z_BDHW, case["h_prequant"], "before the quantizer")
        quantized = model.quantize_map(z_BDHW)
        close(quantized.z_BDHW, case["z_q"], "codes")
        close(quantized.loss, case["qloss"], "loss")
        close(perplexity(quantized.tokens_BHW, model.config.codes), case["perplexity"], "perplexity", 1e-3)
        for suffix, tokens in (("", "indices_rowmajor"), ("_odd", "indices_odd_rowmajor")):
            if f"x{suffix}" not in case:
                continue
            grid_BHW = model.encode(case[f"x{suffix}"])
            assert torch.equal(grid_BHW.flatten(1), case[tokens]), f"margins: {case['argmin_margin'].min()}"
            close(model.decode(grid_BHW), case[f"xrec{suffix}"], f"xrec{suffix}")
        sequence_BN = sequence_of(model.encode(case["x"]))
    assert torch.equal(sequence_BN, case["indices_colmajor"])
    assert torch.equal(grid_of(sequence_BN).flatten(1), case["indices_rowmajor"])


@golden("specvqgan", ".npz", *cases.TRANSFORMER)
def test_transformer_predicts_the_recorded_logits(path: Path) -> None:
    case, model = tensors(path), sound_model(sound_file(path, "transformer"))
    with torch.inference_mode():
        target_BN = sequence_of(model.autoencoder.encode(case["x"]))
        assert torch.equal(target_BN, case["target"])
        logits_BPK = model.transformer(case["feats_BDT"], target_BN[:, :-1])
    predicted_BNK = logits_BPK[:, model.transformer.config.features - 1 :]
    close(predicted_BNK[:, :8], case["train_logits_first8"], "first logits")
    close(predicted_BNK[:, -8:], case["train_logits_last8"], "last logits")
    close(predicted_BNK.abs().mean(), case["train_logits_mean_abs"], "mean of the logits")
    close(token_loss(logits_BPK, target_BN, model.transformer.config.features), case["ce_loss"], "cross-entropy")


@golden("specvqgan", ".npz", *cases.PREFIX)
def test_cached_reading_gives_the_recorded_logits_and_attention(path: Path) -> None:
    case, network = tensors(path), sound_model(sound_file(path, "transformer")).transformer
    name = next(name for name in case if re.fullmatch(r"prefix\d+", name))
    seen: dict[str, torch.Tensor] = {}
    last = network.blocks[-1].attn
    handles = [part.register_forward_hook(lambda _, __, out, key=key: seen.update({key: out}))
               for key, part in (("q", last.query), ("k", last.key))]  # fmt: skip
    with torch.inference_mode():
        close(network(case["feats_BDT"], case[name]), case[f"logits_{name}"], "logits")
        q, k = (seen[key].unflatten(-1, (last.heads, -1)).transpose(1, 2) for key in "qk")
        for handle in handles:
            handle.remove()
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        close(scores.softmax(-1), case[f"att_lastlayer_{name}"], "attention of the last layer")

        cache, slots_B = KVCache.empty(network.config, len(q)), torch.arange(len(q))
        for at in range(-1, case[name].shape[1]):
            rows = network.embed(case["feats_BDT"], None) if at < 0 else network.embed(None, case[name][:, at : at + 1])
            start = 0 if at < 0 else network.config.features + at
            logits_BK = network.read(rows, cache, slots_B, torch.full_like(slots_B, start))
            close(logits_BK, case[f"logits_{name}"][:, start + rows.shape[1] - 1], f"cached logits at {at}")


@golden("specvqgan", ".npz", *cases.DRAWS)
def test_tokens_of_one_window_are_the_recorded_ones(path: Path) -> None:
    case, network = tensors(path), sound_model(sound_file(path, "transformer")).transformer
    feats_BEF = case["feats_BDT"]
    for name in (name for name in case if re.fullmatch(r"greedy\d+(_after_prefix\d+)?|topk_sample\d+", name)):
        wanted, settings, prime = case[name], {}, None
        if "_after_" in name:
            prime = case[name.partition("_after_")[2]]
        if name.startswith("topk"):
            noise = next(values for key, values in case.items() if key.startswith("exp_noise"))
            settings = {"noise": noise.__getitem__, "top_k": int(case["top_k"]), "temperature": float(case["temperature"])}
        columns = -(-wanted.shape[1] // 5)
        if columns * 5 != wanted.shape[1]:  # noise for the recorded tokens only
            pytest.fail(f"{name} is no whole number of columns")
        made = generate(network, feats_BEF, columns, prime_BN=prime, **settings)
        assert torch.equal(made, wanted), f"{name}: first difference at {int((made != wanted).any(0).int().argmax())}"


@pytest.mark.heavy
@golden("specvqgan", ".npz", *cases.LONG)
def test_tokens_of_a_sliding_window_are_the_recorded_ones(path: Path) -> None:
    case, model = tensors(path), sound_model(sound_file(path, "longsample"))
    total = case["tokens_colmajor"].shape[1] // 5
    window = model.transformer.config.columns
    assert [centered_start(place // 5, 0, window, total) for place in range(5 * total)] == case["window_start_col"].tolist()
    made = generate(model.transformer, case["feats_BDT"], total, noise=case["exp_noise"].__getitem__, top_k=int(case["top_k"]))
    assert torch.equal(made, case["tokens_colmajor"]), f"least gap {case['argmax_gap'].min()}"
    with torch.inference_mode():
        mel_B1HW = model.autoencoder.decode(grid_of(made))
    assert list(mel_B1HW.shape) == case["decoded_shape"].tolist()
    close(mel_B1HW[..., :32], case["decoded_mel_first32"], "first frames")
    close(mel_B1HW[..., -32:], case["decoded_mel_last32"], "last frames")


@golden("specvqgan", ".npz", *cases.LOSSES)
def test_losses_and_gradients_of_a_step_are_the_recorded_ones(path: Path) -> None:
    case = tensors(path)
    autoencoder, discriminator, settings = loss_networks(path)
    made, quantized = autoencoder(case["x"])
    close(made, case["xrec"], "reconstruction")
    bounds = (settings["min_adapt_weight"], settings["max_adapt_weight"])
    last = autoencoder.decoder.conv_out.weight
    loss = autoencoder_loss(case["x"], made, quantized.loss, discriminator(made), last, started=True, bounds=bounds)
    for name, got in (
        ("aeloss", loss.total),
        ("train_rec_loss", loss.reconstruction),
        ("train_p_loss", loss.perceptual),
        ("train_g_loss", loss.generator),
        ("train_quant_loss", loss.codebook),
        ("train_d_weight", loss.weight),
    ):
        close(got.double(), case[name], name)
    loss.total.backward()
    for name, weight in (
        ("gradnorm_conv_out", last),
        ("gradnorm_encoder_conv_in", autoencoder.encoder.conv_in.weight),
        ("gradnorm_codebook", autoencoder.codes_KD),
    ):
        close(weight.grad.norm().double(), case[name], name, 1e-3)
    real, fake = discriminator(case["x"]), discriminator(made.detach())
    close(discriminator_loss(real, fake, started=True).double(), case["discloss"], "discriminator")
    close(real.mean().double(), case["train_logits_real"], "real patches")
    close(fake.mean().double(), case["train_logits_fake"], "made patches")
    assert discriminator_loss(real, fake, started=False) == 0
    early = autoencoder_loss(case["x"], made, quantized.loss, fake, last, started=False)
    assert float(early.weight) == pytest.approx(0.8)
    assert early.total.item() == pytest.approx((loss.reconstruction + loss.codebook).item(), abs=1e-6)


@golden("specvqgan", ".npz", *cases.VOCODER)
def test_vocoder_makes_the_recorded_waveform(path: Path) -> None:
    case, vocoder = tensors(path), load_vocoder(sibling(path, "melgan", "melgan", ".safetensors"))
    with torch.inference_mode():
        close(vocoder(case["mel"]), case["wav"], "samples", 1e-5)


@golden("specvqgan", ".npz", *cases.METRICS)
def test_metrics_are_the_recorded_ones(path: Path) -> None:
    case = tensors(path)
    one, other = case["features_1"], case["features_2"]
    assert frechet_distance(one, other) == pytest.approx(float(case["fid"]), abs=1e-6)
    assert matched_kl(case["logits_2"], case["logits_1"]) == pytest.approx(float(case["kl"]), abs=1e-6)
    wanted = (float(case["kid_mean"]), float(case["kid_std"]))
    assert kernel_distance(one, other, subsets=10, size=32) == pytest.approx(wanted, abs=1e-6)
    wanted = (float(case["isc_mean"]), float(case["isc_std"]))
    assert inception_score(case["logits_1"], splits=5) == pytest.approx(wanted, abs=1e-6)


@golden("specvqgan", ".npz", *cases.ROWS)
def test_windows_pick_the_recorded_rows(path: Path) -> None:
    for name, rows in read_npz(path).items():
        found = re.fullmatch(r"idx_len(\d+)_n(\d+)", name)
        assert found is not None
        assert picked_rows(int(found[1]), int(found[2])) == rows.tolist(), name


@golden("specvqgan", ".npz", *cases.STATS)
def test_band_statistics_fit_the_judges(path: Path) -> None:
    stats = read_npz(path)
    assert stats["mean"].shape == stats["std"].shape == (80,)
    distance = PerceptualDistance(stats["mean"], stats["std"])
    np.testing.assert_allclose(distance.shift.flatten().numpy(), 2 * stats["mean"] - 1, atol=1e-6)
    x_B1HW = torch.from_numpy(2 * stats["mean"] - 1).view(1, 1, 80, 1).expand(2, 1, 80, 32)
    assert distance(x_B1HW, x_B1HW).abs().max() == 0
    assert distance(x_B1HW, x_B1HW + 0.1).min() > 0


@pytest.mark.heavy
@golden("specvqgan", ".json", *cases.KEYS)
def test_published_models_fit_the_networks(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = read_json(path)

    def written(layout: str, wrapped: bool) -> Path:
        # One number for each tensor stands in the file, whatever its shape.
        state = {name: torch.ones((), dtype=getattr(torch, kind)).expand(shape) for name, (shape, kind) in keys[layout].items()}
        grid = torch.arange(265).view(1, 5, 53)
        for name in state:
            if name.endswith("forward_shuffle_idx"):
                state[name] = sequence_of(grid)[0]
            elif name.endswith("backward_shuffle_idx"):
                state[name] = sequence_of(grid)[0].argsort()
        torch.save({"state_dict": state, "global_step": 3} if wrapped else state, tmp_path / f"{layout}.ckpt")
        return tmp_path / f"{layout}.ckpt"

    for layout in keys:
        if layout.startswith("vqmodel"):
            model = load_autoencoder(written(layout, True))
            assert "loss.discriminator" in caplog.text or not any(name.startswith("loss.") for name in keys[layout])
            wanted = keys[layout]["quantize.embedding.weight"][0]
            assert [model.config.codes, model.config.code_width] == wanted
        elif layout.startswith("transformer"):
            sound = load_transformer(written(layout, True))
            assert sound.transformer.config.positions == keys[layout]["transformer.pos_emb"][0][1]
            assert "attn.mask" in caplog.text
        elif layout == "melgan_netG":
            assert load_vocoder(written(layout, False)).config.residual_blocks == 3
        elif layout.startswith("melception"):
            with torch.device("meta"):
                own = Melception(torch.zeros(80), torch.ones(80), keys[layout]["fc.bias"][0][0]).net.state_dict()
            assert {name: list(tensor.shape) for name, tensor in own.items()} == {n: s for n, (s, _) in keys[layout].items()}
        elif layout.startswith("vggishish"):
            with torch.device("meta"):
                own = PerceptualDistance(torch.zeros(80), torch.ones(80)).features.state_dict()
            features = {n.removeprefix("features."): s for n, (s, _) in keys[layout].items() if n.startswith("features.")}
            assert {name: list(tensor.shape) for name, tensor in own.items()} == features


def test_drawing_keeps_ties_and_follows_the_noise() -> None:
    logits_BK = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]])
    noise_BK = torch.tensor([[1e-9, 5.0, 4.0, 1e-9, 3.0]])
    assert choose(logits_BK, noise_BK, top_k=2).tolist() == [4]
    assert choose(logits_BK, None).tolist() == [1]
    assert choose(logits_BK, noise_BK, top_k=99).tolist() == choose(logits_BK, noise_BK).tolist() == [0]
