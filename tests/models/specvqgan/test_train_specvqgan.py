"""Training: each network learns with the paper's losses, a short recipe is a function of its seed, own sound is learned."""

from __future__ import annotations

import dataclasses
import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from training_previews import check_previews

from connectors.errors import ConfigError
from connectors.records import PCM
from models.specvqgan import recipe as recipes
from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.bounces import make_clip
from models.specvqgan.config import RATE, AutoencoderConfig, TransformerConfig, VocoderConfig
from models.specvqgan.discriminator import Discriminator
from models.specvqgan.evaluate import codec_quality, made_mels, made_tokens
from models.specvqgan.loaders import load_networks
from models.specvqgan.losses import (
    feature_matching,
    spectral_distance,
    token_loss,
    wave_discriminator_loss,
    wave_generator_loss,
)
from models.specvqgan.parts import PARTS, SMALL_WEIGHTS
from models.specvqgan.sounds import SoundSet
from models.specvqgan.stages import (
    AutoencoderSchedule,
    TransformerSchedule,
    VocoderSchedule,
    autoencoder_stage,
    fold_weights,
    start_codebook,
    start_in_time,
    transformer_stage,
    vocoder_stage,
    with_weight_norm,
)
from models.specvqgan.train import BouncesSchedule, read_sounds, train
from models.specvqgan.transformer import SoundTransformer
from models.specvqgan.vocoder import Vocoder
from models.specvqgan.wave_discriminator import WaveDiscriminator
from models.training import Progress, Training
from pipelines.commands.train import train_method

TINY = AutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1, 1), blocks=1, z_channels=8, code_width=8, codes=16)
SHORT = BouncesSchedule(
    clips=2,
    seen_clips=2,
    autoencoder=AutoencoderSchedule(plain_steps=1, steps=2, disc_start=1, columns=2),
    transformer=TransformerSchedule(steps=2, batch=2),
    vocoder=VocoderSchedule(steps=2, disc_start=1, batch=1, samples=2048, disc_channels=1),
    measured=1,
    clip_s=2.0,
)


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "AUTOENCODER", TINY)
    monkeypatch.setattr(recipes, "TRANSFORMER", dataclasses.replace(recipes.TRANSFORMER, codes=16, layers=1, width=16))
    monkeypatch.setattr(recipes, "VOCODER", VocoderConfig(channels=2, residual_blocks=1))


def bounces(count: int, seconds: float = 2.0) -> SoundSet:
    return SoundSet.of((torch.from_numpy(make_clip(seed, seconds).samples()) for seed in range(count)), 32)


def test_the_discriminator_changes_nothing_before_its_start_and_both_sides_behind_it() -> None:
    sounds, generator = bounces(1), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, judge = Autoencoder(TINY), Discriminator(8)
    start_codebook(model, lambda: sounds.draw_mels(4, 32, generator), generator)
    schedule = AutoencoderSchedule(steps=2, disc_start=1, batch=1, columns=2, adaptive=True)
    stage = autoencoder_stage(model, judge, lambda: sounds.draw_mels(1, 32, generator), schedule, generator, model, coded=True)
    before = {name: tensor.clone() for name, tensor in judge.state_dict().items()}
    one = dataclasses.replace(stage, steps=1)
    Training().run(one)
    assert all(torch.equal(tensor, before[name]) for name, tensor in judge.state_dict().items())
    parts = list(stage.losses(1))
    assert [list(part) for part in parts] == [["autoencoder"], ["discriminator"]]
    for part in parts:
        judge.zero_grad()
        model.zero_grad()
        next(iter(part.values())).backward()
        theirs, own = judge.main[0].weight.grad, model.encoder.conv_in.weight.grad
        # Each side gets the gradient of its own loss only.
        assert (theirs is not None and theirs.abs().sum() > 0) == ("discriminator" in part)
        assert (own is not None and own.abs().sum() > 0) == ("autoencoder" in part)


def test_codes_begin_as_encoded_sound() -> None:
    sounds, generator = bounces(2), torch.Generator().manual_seed(0)
    model = Autoencoder(TINY)
    start_codebook(model, lambda: sounds.draw_mels(4, 32, generator), generator)
    with torch.no_grad():
        quantized = model.quantize_map(model.encode_map(sounds.draw_mels(8, 32, generator)))
    assert len(quantized.tokens_BHW.unique()) > 4
    assert len(model.codes_KD.unique(dim=0)) > 8


@pytest.mark.slow
def test_a_transformer_learns_the_tokens_of_a_clip_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SoundTransformer(
            TransformerConfig(codes=16, layers=2, heads=2, width=32, features=4, feature_width=6, columns=4)
        )
    feats_BEF, tokens_BN = torch.randn(2, 6, 4, generator=generator), torch.randint(16, (2, 20), generator=generator)
    schedule = TransformerSchedule(steps=150, rate=5e-3)
    training = Training()
    training.run(transformer_stage(model, lambda: (feats_BEF, tokens_BN), schedule, generator, model))
    assert training.first_loss > 2 and training.last_loss < 0.05
    # Row r of the features is pixel row r: all 16 of a window of 4 columns, of which 4 are picked.
    rows_BRE = torch.zeros(2, 16, 6)
    rows_BRE[:, [3, 7, 11, 15]] = feats_BEF.transpose(1, 2)
    assert torch.equal(made_tokens(model.eval(), rows_BRE, temperature=0), tokens_BN)


def test_training_ends_where_held_out_windows_get_worse_and_the_best_weights_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SoundTransformer(
            TransformerConfig(codes=16, layers=1, heads=1, width=16, features=2, feature_width=3, columns=2)
        )
    learned = torch.randn(2, 3, 2, generator=generator), torch.randint(16, (2, 10), generator=generator)
    held = torch.randn(2, 3, 2, generator=generator), torch.randint(16, (2, 10), generator=generator)
    schedule = TransformerSchedule(steps=400, rate=1e-2, check_every=5, patience=2)
    stage = transformer_stage(model, lambda: learned, schedule, generator, model, held_out=lambda: held)
    notes: list[Progress] = []
    Training(progress=notes.append).run(stage)
    best = stage.state["best"]
    assert notes[-1].step == best["step"] + 10 < 400
    model.load_state_dict(best["weights"])
    with torch.no_grad():
        assert float(token_loss(model(held[0], held[1][:, :-1]), held[1], 2)) == best["score"]


def test_what_is_seen_and_heard_at_one_moment_begins_with_like_positions() -> None:
    config = TransformerConfig(codes=16, layers=1, heads=1, width=64, features=16, feature_width=3, columns=4)
    model = SoundTransformer(config)
    start_in_time(model, torch.Generator().manual_seed(0))
    seen_FC, heard_NC = model.pos_emb[0, :16, :32].detach(), model.pos_emb[0, 16:, :32].detach()
    nearest_N = (heard_NC @ seen_FC.T).argmax(1)
    # Four rows stand beside each column of five tokens; its middle lies between the second and the third.
    assert all(4 * (n // 5) + 1 <= int(row) <= 4 * (n // 5) + 2 for n, row in enumerate(nearest_N))
    query = model.blocks[0].attn.query.weight  # type: ignore[union-attr]
    assert float(model.head.weight.detach().std()) < 0.03 < 0.1 < float(query.detach().std())


def test_only_weights_of_linear_layers_decay() -> None:
    model = SoundTransformer(TransformerConfig(codes=8, layers=1, heads=1, width=8, features=2, feature_width=3, columns=2))
    stage = transformer_stage(model, lambda: (torch.zeros(0), torch.zeros(0)), TransformerSchedule(), torch.Generator(), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ([names[id(one)] for one in group["params"]] for group in stage.optimizer.param_groups)
    linear = [f"blocks.0.{name}.weight" for name in ("attn.key", "attn.query", "attn.value", "attn.proj", "mlp.0", "mlp.2")]
    assert sorted(decayed) == sorted([*linear, "head.weight"])
    assert len(decayed) + len(plain) == len(names)


def test_wave_losses_equal_their_definitions_scale_by_scale() -> None:
    torch.manual_seed(0)
    judge = WaveDiscriminator(4)
    real_BN, made_BN = torch.randn(2, 2048), torch.randn(2, 2048)
    with torch.no_grad():
        real, made = judge(real_BN), judge(made_BN)
    assert [len(scale) for scale in real] == [7, 7, 7] and [scale[-1].shape[-1] for scale in real] == [8, 4, 2]
    discriminator = generator = matching = 0.0
    for r, m in zip(real, made, strict=True):
        discriminator += float((1 - r[6]).clamp_min(0).mean() + (1 + m[6]).clamp_min(0).mean())
        generator -= float(m[6].mean())
        for layer in range(6):
            matching += float((r[layer] - m[layer]).abs().mean()) * 4 / (4 + 1) / 3
    assert float(wave_discriminator_loss(real, made)) == pytest.approx(discriminator, rel=1e-5)
    assert float(wave_generator_loss(made)) == pytest.approx(generator, rel=1e-5)
    assert float(feature_matching(real, made)) == pytest.approx(matching, rel=1e-5)
    assert float(spectral_distance(real_BN, real_BN)) == 0 < float(spectral_distance(real_BN, made_BN))


def test_a_vocoder_comes_nearer_in_spectrum_and_its_weights_fold_to_the_same_sound() -> None:
    sounds, generator = bounces(2), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, judge = with_weight_norm(Vocoder(VocoderConfig(channels=2, residual_blocks=1))), WaveDiscriminator(2)
    schedule = VocoderSchedule(steps=14, disc_start=12, batch=2, samples=2048, rate=5e-3)
    training = Training()
    stage = vocoder_stage(model, judge, lambda: sounds.draw_waves(2, 2048, generator), schedule, generator, model)
    mel_BHT, real_BN = sounds.draw_waves(4, 2048, torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = float(spectral_distance(real_BN, model(mel_BHT)))
    training.run(stage)
    with torch.no_grad():
        made_BN = model(mel_BHT)
        assert float(spectral_distance(real_BN, made_BN)) < before
        assert set(fold_weights(model).state_dict()) == set(Vocoder(model.config).state_dict())
        torch.testing.assert_close(model(mel_BHT), made_BN)


@pytest.mark.slow  # own files are learned beside it
def test_a_short_recipe_is_a_function_of_its_seed_and_writes_what_operators_load(tiny_recipe: None, tmp_path: Path) -> None:
    seen: list[Progress] = []
    first = train(tmp_path / "a", recipe="bounces", seed=3, schedule=SHORT, progress=seen.append)
    train(tmp_path / "b", recipe="bounces", seed=3, schedule=SHORT)
    assert [one.stage for one in seen if one.step == one.steps] == ["spectrograms", "codebook", "tokens", "waveforms"]
    check_previews(first, {one.stage: one.steps for one in seen})  # four at most, and they have fewer updates
    for name in PARTS:
        one, other = (load_file(tmp_path / folder / "bounces" / f"{name}.safetensors") for folder in "ab")
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    networks = load_networks(first.weights, PARTS)
    assert networks.features is not None and networks.transformer is not None
    assert networks.features.width == networks.transformer.config.feature_width == 192
    assert {"codec_error", "mean_error", "onsets_frames", "pitches_none", "precision_other"} <= set(first.metrics)
    assert first.metrics["codec_bits_per_s"] == pytest.approx(4 * 5 * RATE / 4096, rel=0.02)


def test_own_sound_files_are_learned_from_the_command_line(tmp_path: Path) -> None:
    for number, rate in enumerate((RATE, 44100)):
        time_N = np.arange(rate * 2) / rate
        samples = (9000 * np.sin(2 * np.pi * (300 + 200 * number) * time_N) * (time_N % 0.5 < 0.2)).astype("<i2")
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(np.repeat(samples, 2).tobytes())
    sizes = "--code_width 8 --codes 16 --z_channels 8 --columns 2 --batch 1 --plain_steps 2 --steps 2 --disc_start 1"
    vocoder = "--vocoder_steps 2 --vocoder_disc_start 1 --vocoder_channels 1 --vocoder_batch 1 --device cpu"
    said = train_method(
        "specvqgan",
        [
            *("--data", str(tmp_path), "--out", str(tmp_path / "run"), "--multipliers", "[1, 1, 1, 1, 1]"),
            *sizes.split(),
            *vocoder.split(),
        ],
        live=False,
    )
    assert "seconds_of_sound  3.576" in said and "sounds  2" in said, said
    assert f"previews {tmp_path / 'run' / 'previews'} (6)" in said, said
    networks = load_networks(tmp_path / "run" / "model", ("autoencoder", "vocoder"))
    assert networks.autoencoder is not None and networks.autoencoder.config.codes == 16
    again = ["--data", str(tmp_path / "0.wav"), "--start", str(tmp_path / "run" / "model"), "--columns", "2", "--steps", "1"]
    again += ["--vocoder_steps", "0", "--batch", "1", "--out", str(tmp_path / "more"), "--device", "cpu"]
    train_method("specvqgan", again, live=False)
    assert not (tmp_path / "more" / "model" / "vocoder.safetensors").exists()
    with pytest.raises(ConfigError, match="data is a name only"):
        train(tmp_path / "x", data="somewhere")


def test_sounds_begin_anew_behind_gaps_and_errors() -> None:
    def rows(*given: tuple[str, int, list[int] | None, str | None]) -> pa.RecordBatch:
        columns = list(zip(*given, strict=True))
        time = pa.array([0] * len(given)).cast(PCM.field("event_time").type)
        values = [columns[0], columns[1], time, [RATE] * len(given), [2] * len(given), columns[2], columns[3]]
        return pa.record_batch([pa.array(value, field.type) for value, field in zip(values, PCM, strict=True)], schema=PCM)

    piece = [16384, 0] * 4  # left and right are averaged
    batch = rows(("a", 0, piece, None), ("b", 0, piece, None), ("a", 4, piece, None), ("a", 9, piece, None))
    sounds = read_sounds([batch, rows(("b", 4, None, "damaged"), ("b", 8, piece, None))])
    assert sorted(len(sound_N) for sound_N in sounds) == [4, 4, 4, 8]
    assert all(torch.equal(sound_N, torch.full_like(sound_N, 0.25)) for sound_N in sounds)
    with pytest.raises(ConfigError, match="no end of one can be held out"):
        bounces(1, 0.5).split(0.1, 32)
    with pytest.raises(ConfigError, match="everything is silent or empty"):
        SoundSet.of([torch.zeros(9000), torch.zeros(0)], 16)


def test_pieces_hold_the_samples_of_their_frames_and_every_place_is_drawn() -> None:
    sounds = bounces(2, 1.0)
    mel_BHT, real_BN = sounds.draw_waves(64, 8192, torch.Generator().manual_seed(0))
    held = torch.cat([sound_N.unfold(0, 8192, 256) for sound_N in sounds.samples])
    mels = torch.cat([mel.unfold(1, 32, 1).transpose(0, 1) for mel in sounds.mels])
    places = [int((held == real_N).all(1).nonzero()[0]) for real_N in real_BN]
    assert all(torch.equal(mels[place], mel) for place, mel in zip(places, mel_BHT, strict=True) if real_BN.abs().sum() > 0)
    assert max(places) > len(held) * 0.8 and min(places) < len(held) * 0.2
    quiet, _ = sounds.draw_waves(8, 2048, torch.Generator().manual_seed(0), gain=True)
    assert quiet.shape == (8, 80, 8)


def test_windows_overlap_where_long_sound_is_made_and_decoded() -> None:
    torch.manual_seed(0)
    model = SoundTransformer(TransformerConfig(codes=16, layers=1, heads=1, width=8, features=2, feature_width=3, columns=4))
    rows_BRE = torch.randn(2, 4 * 11, 3)
    tokens_BN = made_tokens(model.eval(), rows_BRE, seed=1)
    assert tokens_BN.shape == (2, 55)
    assert torch.equal(made_tokens(model, rows_BRE[:1], seed=1), tokens_BN[:1]), "each clip has its own draws"
    autoencoder = Autoencoder(TINY).eval()
    assert made_mels(autoencoder, tokens_BN, 4).shape == (2, 80, 16 * 11)
    found = codec_quality(autoencoder, [torch.rand(80, 40)], torch.full((80,), 0.5), 4)
    assert found["mean_error"] == pytest.approx(0.5, abs=0.05) and found["silence_error"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.skipif(not (SMALL_WEIGHTS / "transformer.safetensors").is_file(), reason="not trained yet")
def test_the_networks_of_the_package_fit_together_and_stay_small() -> None:
    networks = load_networks(SMALL_WEIGHTS, PARTS)
    assert networks.transformer is not None and networks.transformer.config == recipes.TRANSFORMER
    assert networks.autoencoder is not None and networks.autoencoder.config == recipes.AUTOENCODER
    assert sum(path.stat().st_size for path in SMALL_WEIGHTS.glob("*.safetensors")) < 10e6
