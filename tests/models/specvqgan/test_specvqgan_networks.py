"""The networks of SpecVQGAN against slow references: chunks, slots, codes, clocks, checkpoints that are not what they say."""

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from connectors.errors import CheckpointMismatch, ConfigError
from models.specvqgan.autoencoder import Autoencoder, nearest_codes
from models.specvqgan.checkpoint import load_autoencoder, load_own_transformer, load_transformer, load_vocoder, save
from models.specvqgan.config import AutoencoderConfig, TransformerConfig, VocoderConfig
from models.specvqgan.mel import MelStream, clip_mel, mel_basis, mel_of_windows, one_shot_mel
from models.specvqgan.melception import Melception
from models.specvqgan.sampling import choose, generate, hopping_start
from models.specvqgan.tokens import grid_of, sequence_of
from models.specvqgan.transformer import KVCache, SoundTransformer
from models.specvqgan.vision import FrameFeatures, clip_rows, picked_rows, resnet_pixels, slots_of
from models.specvqgan.vocoder import Vocoder, VocoderStream

SMALL = AutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1, 1), blocks=1, z_channels=8, code_width=8, codes=16)


def reference_mel(samples: np.ndarray) -> np.ndarray:
    """The definition, frame by frame."""
    padded = np.pad(samples.astype(np.float64), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = [np.abs(np.fft.rfft(padded[256 * t : 256 * t + 1024] * window)) for t in range(1 + len(samples) // 256)]
    mel = mel_basis().float().double().numpy() @ np.stack(frames, axis=1)
    return np.clip((20 * np.log10(np.maximum(mel, 1e-5)) - 20 + 100) / 100, 0, 1)


def in_chunks(stream: MelStream, samples: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    parts = [stream.push(part) for part in torch.tensor_split(samples, cuts)]
    assert len(stream.tail_N) <= 1279
    return mel_of_windows(torch.cat([*parts, stream.finish()])).T


@pytest.mark.parametrize("count", [513, 514, 1023, 1024, 1535, 1536, 5000, 9999])
def test_mel_in_chunks_equals_the_definition(count: int) -> None:
    random = np.random.default_rng(count)
    samples = random.uniform(-1, 1, count).astype(np.float32)
    whole = one_shot_mel(torch.from_numpy(samples))
    np.testing.assert_allclose(whole.numpy(), reference_mel(samples), atol=1e-6)
    for _ in range(4):
        cuts = sorted(random.integers(0, count + 1, 7).tolist())
        assert torch.equal(in_chunks(MelStream(), torch.from_numpy(samples), cuts), whole)
    one_by_one = in_chunks(MelStream(), torch.from_numpy(samples), list(range(1, min(count, 1500))))
    assert torch.equal(one_by_one, whole)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 512])
def test_sound_too_short_to_be_reflected_is_filled_with_zeros(count: int) -> None:
    samples = torch.rand(count)
    frames = one_shot_mel(samples)
    assert frames.shape == (80, 1 + count // 256 if count else 0)
    if count:
        filled = one_shot_mel(torch.nn.functional.pad(samples, (0, 513 - count)))
        assert torch.equal(frames, filled[:, : frames.shape[1]])


def test_silence_is_zero_and_twice_the_amplitude_adds_six_decibels() -> None:
    assert one_shot_mel(torch.zeros(4000)).abs().max() == 0
    quiet = one_shot_mel(0.05 * torch.rand(8000))
    torch.manual_seed(1)
    samples = 0.05 * torch.rand(8000)
    quiet, loud = one_shot_mel(samples), one_shot_mel(2 * samples)
    inside = (quiet > 0) & (loud < 1)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close((loud - quiet)[inside], torch.full_like(quiet, 0.060206)[inside], atol=1e-5, rtol=0)
    assert clip_mel(samples).shape == (80, 860) and clip_mel(torch.rand(300_000)).shape == (80, 860)


def test_the_nearest_code_is_found_and_the_lowest_of_equal_ones() -> None:
    torch.manual_seed(0)
    codes_KD, z_ND = torch.randn(16, 8), torch.randn(200, 8)
    codes_KD[9] = codes_KD[3]
    wanted = torch.cdist(z_ND.double(), codes_KD.double()).argmin(1)
    found = nearest_codes(z_ND, codes_KD)
    assert torch.equal(found, torch.where(wanted == 9, 3, wanted))
    assert nearest_codes(codes_KD, codes_KD).tolist() == [i if i != 9 else 3 for i in range(16)]


def test_gradients_pass_the_quantizer_unchanged() -> None:
    model = Autoencoder(SMALL)
    z_BDHW = torch.randn(2, 8, 5, 3, requires_grad=True)
    quantized = model.quantize_map(z_BDHW)
    quantized.z_BDHW.sum().backward()
    assert torch.allclose(z_BDHW.grad, torch.ones_like(z_BDHW))
    rows_BDHW = model.codes_KD[torch.arange(15)].T.reshape(1, 8, 5, 3)
    assert model.quantize_map(rows_BDHW).loss == 0
    one, other = (model.quantize_map(z_BDHW.detach(), legacy_beta=legacy).loss for legacy in (True, False))
    assert float(one.detach()) == pytest.approx(float(other.detach()))  # equal values, other gradients


@pytest.mark.parametrize(("frames", "columns"), [(1, 1), (15, 1), (16, 1), (31, 1), (37, 2), (48, 3)])
def test_widths_of_the_autoencoder(frames: int, columns: int) -> None:
    model = Autoencoder(SMALL).eval()
    with torch.inference_mode():
        tokens = model.encode(torch.full((1, 1, 80, frames), -1.0))
        made = model.decode(tokens)
    assert tokens.shape == (1, 5, columns) and made.shape == (1, 1, 80, 16 * columns) and bool(made.isfinite().all())
    with pytest.raises(ValueError, match="tokens are 0 to 16; the codebook has 0 to 15"):
        model.decode(torch.tensor([[[0], [1], [2], [3], [16]]]))


def test_sequence_of_a_grid_goes_column_by_column() -> None:
    grid = torch.arange(10).view(1, 5, 2)
    assert sequence_of(grid).tolist() == [[0, 2, 4, 6, 8, 1, 3, 5, 7, 9]]
    assert torch.equal(grid_of(sequence_of(grid)), grid)
    with pytest.raises(ValueError, match="7 tokens are no whole number of columns"):
        grid_of(torch.zeros(1, 7))


def small_transformer() -> SoundTransformer:
    torch.manual_seed(3)
    config = TransformerConfig(codes=11, layers=2, heads=2, width=16, features=2, feature_width=6, columns=4)
    network = SoundTransformer(config).eval()
    for parameter in network.parameters():  # so that tokens and positions matter
        torch.nn.init.normal_(parameter, 0, 0.4)
    return network


def test_streams_at_other_positions_do_not_change_a_stream() -> None:
    network = small_transformer()
    feats, tokens = torch.randn(3, 6, 2), torch.randint(11, (3, 20))
    with torch.inference_mode():
        wanted = network(feats, tokens)
        cache = KVCache.empty(network.config, slots=5)
        for keys_SHPD, values_SHPD in zip(cache.keys, cache.values, strict=True):  # what was never written is never read
            keys_SHPD.fill_(100.0)
            values_SHPD.fill_(7.0)
        at = [0, 0, 0]
        for joined in ([0], [0, 2], [0, 1, 2], [1], [1, 2], [0, 1, 2], [2]):
            rows, starts, lasts = [], [], []
            for b in joined:
                rows.append(
                    network.embed(feats[b : b + 1], None)[0] if at[b] == 0 else network.tok_emb(tokens[b, at[b] - 2 : at[b]])
                )
                starts.append(at[b])
                lasts.append(1)
                at[b] += 2
            got = network.read(
                torch.stack(rows), cache, torch.tensor([4, 1, 3])[joined], torch.tensor(starts), torch.tensor(lasts)
            )
            for row, b in enumerate(joined):
                torch.testing.assert_close(got[row], wanted[b, at[b] - 1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="23 positions do not fit a window of 22"):
        network.read(torch.zeros(1, 3, 16), cache, torch.tensor([0]), torch.tensor([20]))
    with pytest.raises(ValueError, match=r"features are \[5, 2\]; this network takes \[6, 2\]"):
        network.embed(torch.zeros(1, 5, 2), None)


def brute_force(
    network: SoundTransformer, feats: torch.Tensor, columns: int, noise: torch.Tensor, hop: int | None
) -> list[int]:
    """A full pass over the window for every token."""
    window, tokens, start = network.config.columns, [0] * (5 * columns), 0
    for place in range(5 * columns):
        column = place // 5
        if hop is None:
            start = min(max(0, column - window // 2), columns - window)
        else:
            while column - start >= window:
                start += hop
        seen = torch.tensor([tokens[5 * start : 5 * start + 5 * window]])
        logits = network(feats, seen)[:, network.config.features - 1 + place - 5 * start]
        tokens[place] = int(choose(logits, noise[place], temperature=0.8, top_k=5))
    return tokens


@pytest.mark.parametrize("hop", [None, 1, 2, 3])
def test_a_window_that_slides_gives_the_tokens_of_full_passes(hop: int | None) -> None:
    network, feats = small_transformer(), torch.randn(1, 6, 2)
    noise = torch.empty(45, 1, 11).exponential_(generator=torch.Generator().manual_seed(1))
    rule = {} if hop is None else {"rule": hopping_start(hop)}
    with torch.inference_mode():
        wanted = brute_force(network, feats, 9, noise, hop)
    made = generate(network, feats, 9, noise=noise.__getitem__, temperature=0.8, top_k=5, **rule)
    assert made[0].tolist() == wanted
    primed = generate(network, feats, 9, noise=noise.__getitem__, temperature=0.8, top_k=5, prime_BN=made[:, :27], **rule)
    assert torch.equal(primed, made)
    assert len(set(wanted)) > 3


def test_the_same_noise_gives_the_same_tokens_in_any_batch() -> None:
    network, feats = small_transformer(), torch.randn(3, 6, 2)
    noise = torch.empty(20, 3, 11).exponential_(generator=torch.Generator().manual_seed(1))
    together = generate(network, feats, 4, noise=noise.__getitem__)
    for b in range(3):
        alone = generate(network, feats[b : b + 1], 4, noise=lambda place, b=b: noise[place, b : b + 1])
        assert torch.equal(alone[0], together[b])
    greedy = generate(network, feats, 4)
    assert torch.equal(generate(network, feats, 4, noise=noise.__getitem__, temperature=0), greedy)


@pytest.mark.parametrize("frames", [1, 3, 4, 7, 40])
def test_waveform_in_chunks_equals_the_whole(frames: int) -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(VocoderConfig(channels=2)).double().eval()
    mel = torch.rand(80, frames, dtype=torch.float64)
    random = np.random.default_rng(frames)
    with torch.inference_mode():
        short = torch.nn.functional.pad(mel, (0, max(0, 4 - frames)), mode="replicate")
        whole = vocoder(short[None])[0, : 256 * frames]
        for _ in range(3):
            stream = VocoderStream(torch.zeros(80, 0, dtype=torch.float64))
            chunks = [stream.push(part) for part in torch.tensor_split(mel, sorted(random.integers(0, frames + 1, 5)), dim=1)]
            assert stream.tail_MT.shape[1] <= 12 or frames <= 12
            made = torch.cat([chunk.vocode(vocoder) for chunk in [*chunks, stream.finish()] if chunk is not None])
            torch.testing.assert_close(made, whole, atol=1e-12, rtol=0)
    assert whole.abs().max() <= 1


def test_slots_of_the_feature_clock_hold_the_last_frame_in_time() -> None:
    for fps in (Fraction(30), Fraction(30000, 1001), Fraction(15), Fraction(60), Fraction(8)):
        times = [n / fps for n in range(100)]
        slots = [math.floor(Fraction(43, 2) * time + Fraction(1, 2)) for time in times]
        wanted = [max(i for i, slot in enumerate(slots) if slot <= n) for n in range(slots[-1] + 1)]
        assert slots_of(float(time) for time in times) == wanted
    assert slots_of([0.2, 0.21])[:4] == [0, 0, 0, 0] and slots_of([]) == []
    with pytest.raises(ValueError, match=r"frame 1 at 0\.1 s is earlier"):
        slots_of([0.5, 0.1])


def test_rows_of_a_clip_are_repeated_and_cropped() -> None:
    rows = torch.arange(100.0)[:, None]
    assert clip_rows(rows).flatten().tolist() == [float((i + 1) % 100) for i in range(212)]
    assert picked_rows(212, 5) == [35, 77, 119, 162, 204]
    with pytest.raises(ValueError, match="no features"):
        clip_rows(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="213 features of 212 rows"):
        picked_rows(212, 213)


def test_frames_are_prepared_as_torchvision_prepares_images() -> None:
    from torchvision.models import ResNet50_Weights

    prepare = ResNet50_Weights.IMAGENET1K_V1.transforms()
    for rows, columns in ((256, 256), (120, 300), (400, 224)):
        frame = torch.randint(256, (rows, columns, 3), dtype=torch.uint8)
        wanted = prepare(frame.permute(2, 0, 1))
        got = resnet_pixels(frame)
        assert got.shape == (3, 224, 224) and (got - wanted).abs().max() < 0.02, (rows, columns)


@pytest.mark.heavy
def test_visual_features_are_those_of_torchvision() -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    wanted = resnet50(weights=None).eval()
    mine = FrameFeatures().eval()
    assert mine.fill(wanted.state_dict()) == ["fc.bias", "fc.weight"]
    wanted.fc = torch.nn.Identity()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(mine(pixels), wanted(pixels)) and mine(pixels).min() >= 0
    with pytest.raises(RuntimeError, match="Missing key"):
        mine.fill({"conv1.weight": torch.zeros(64, 3, 7, 7)})


def test_the_judge_reads_spectrograms() -> None:
    torch.manual_seed(0)
    judge = Melception(torch.zeros(80), torch.ones(80), labels=7)
    judge.train()
    assert not judge.net.training
    with torch.inference_mode():
        read = judge(torch.rand(1, 80, 80))
    assert read.features_BE.shape == (1, 2048) and read.logits_BL.shape == (1, 7)
    wanted = read.features_BE @ judge.net.fc.weight.detach().T
    torch.testing.assert_close(read.unbiased_BL, wanted, atol=1e-4, rtol=1e-4)


def official(model: Autoencoder) -> dict[str, object]:
    return {"state_dict": {**model.state_dict(), "loss.discriminator.main.0.bias": torch.zeros(3)}, "global_step": 7}


class Callback:
    """A class that the reader does not have."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"__import__('pathlib').Path({str(self.path)!r}).write_text('ran')",)


def test_an_official_file_with_foreign_objects_loads_and_runs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Autoencoder(SMALL).eval()
    torch.save(official(model) | {"callbacks": {"best": Callback(tmp_path / "ran")}}, tmp_path / "codebook.ckpt")
    loaded = load_autoencoder(tmp_path / "codebook.ckpt")
    assert not (tmp_path / "ran").exists()
    assert loaded.config == SMALL and "ignored=1 (loss.discriminator.main.0.bias)" in caplog.text
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


class Shell:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_file_runs_nothing(tmp_path: Path) -> None:
    torch.save(official(Autoencoder(SMALL)) | {"callbacks": Shell(tmp_path / "ran")}, tmp_path / "codebook.ckpt")
    with pytest.raises(CheckpointMismatch, match="nothing of it was executed"):
        load_autoencoder(tmp_path / "codebook.ckpt")
    assert not (tmp_path / "ran").exists()


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = Autoencoder(SMALL)
    state = model.state_dict()
    for change, message in (
        ({"decoder.conv_out.bias": torch.zeros(2)}, r"decoder.conv_out.bias is \[2\] instead of \[1\]"),
        ({"decoder.more": torch.zeros(2)}, "not known decoder.more"),
        ({"decoder.conv_out.bias": torch.full((1,), math.nan)}, "hold NaN or infinity"),
        ({"decoder.conv_out.bias": None}, "missing decoder.conv_out.bias"),
        ({"encoder.conv_in.weight": None}, "is no codebook of SpecVQGAN"),
    ):
        changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        torch.save(changed, tmp_path / "changed.ckpt")
        with pytest.raises(CheckpointMismatch, match=message):
            load_autoencoder(tmp_path / "changed.ckpt")
    with pytest.raises(CheckpointMismatch, match="is no transformer of SpecVQGAN"):
        load_transformer(tmp_path / "changed.ckpt")
    (tmp_path / "text.ckpt").write_text("not weights")
    for load in (load_autoencoder, load_transformer, load_vocoder):
        with pytest.raises(CheckpointMismatch):
            load(tmp_path / "text.ckpt")
    with pytest.raises(ConfigError, match=r"no setting 'chanels' .did you mean"):
        AutoencoderConfig.from_json({"chanels": 32})


def test_own_files_give_the_same_networks(tmp_path: Path) -> None:
    vocoder = Vocoder(VocoderConfig(channels=2, residual_blocks=2))
    for name, model, load in (
        ("a", Autoencoder(SMALL), load_autoencoder),
        ("t", small_transformer(), load_own_transformer),
        ("v", vocoder, load_vocoder),
    ):
        save(model, tmp_path / name)
        loaded = load(tmp_path / name)
        assert loaded.config == model.config
        assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(CheckpointMismatch, match=r"holds a 'specvqgan\.\w+' model, not 'specvqgan\.vocoder'"):
        load_vocoder(tmp_path / "a")


def test_new_names_of_weight_normalization_load(tmp_path: Path) -> None:
    vocoder = Vocoder(VocoderConfig(channels=2))
    state = {}
    for name, tensor in vocoder.state_dict().items():
        if name.endswith(".weight"):
            stem = name.removesuffix("weight") + "parametrizations.weight.original"
            norm = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.dim() - 1))
            state |= {f"{stem}0": norm, f"{stem}1": 3 * tensor}
        else:
            state[name] = tensor
    torch.save(state, tmp_path / "netG.pt")
    loaded = load_vocoder(tmp_path / "netG.pt")
    for name, tensor in vocoder.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)
    del state["model.1.parametrizations.weight.original0"]
    torch.save(state, tmp_path / "netG.pt")
    with pytest.raises(CheckpointMismatch, match=r"has model\.1\.parametrizations.weight.original1 without"):
        load_vocoder(tmp_path / "netG.pt")
