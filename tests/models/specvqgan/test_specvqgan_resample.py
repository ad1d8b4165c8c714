"""Resampling against its definition, in any chunks; mels of real clips within the measured table."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from real_data import REAL_DATA

from connectors.sources.audio import AudioOptions, AudioSource
from models.specvqgan.mel import clip_mel
from models.specvqgan.resample import ResampleStream, mono, resample

CLIPS = sorted((REAL_DATA / "av").glob("*.mp4"))


def reference(samples: np.ndarray, rate: int) -> np.ndarray:
    """Sample by sample, from the definition."""
    side = math.ceil(64 * max(1.0, rate / 44100))
    edge = 0.97 * min(1.0, 22050 / rate)
    out = []
    for m in range(math.ceil(Fraction(len(samples) * 22050, rate))):
        at = Fraction(m * rate, 22050)
        first = math.floor(at) - side + 1
        away = np.array([float(first + i - at) for i in range(2 * side)])
        weights = np.sinc(edge * away) * np.i0(8.6 * np.sqrt(np.maximum(0, 1 - (away / side) ** 2)))
        inputs = np.array([samples[first + i] if 0 <= first + i < len(samples) else 0.0 for i in range(2 * side)])
        out.append(float((weights * inputs).sum() / weights.sum()))
    return np.array(out)


@pytest.mark.heavy
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 96000])
def test_resampling_in_chunks_equals_its_definition(rate: int) -> None:
    random = np.random.default_rng(rate)
    samples = random.uniform(-1, 1, 700)
    whole = resample(torch.from_numpy(samples), rate)
    if rate != 22050:
        np.testing.assert_allclose(whole.numpy(), reference(samples, rate), atol=1e-6)
    for _ in range(4):
        stream = ResampleStream(rate)
        cuts = sorted(random.integers(0, 701, 6).tolist())
        parts = [stream.push(part) for part in torch.tensor_split(torch.from_numpy(samples), cuts)]
        assert len(stream.tail_N) <= 700
        assert torch.equal(torch.cat([*parts, stream.finish()]), whole)


def test_memory_does_not_grow_and_a_tone_stays_a_tone() -> None:
    stream, parts = ResampleStream(48000), []
    t = torch.arange(96000, dtype=torch.float64) / 48000
    for part in torch.split(torch.sin(2 * math.pi * 1000 * t), 1000):
        parts.append(stream.push(part))
        assert len(stream.tail_N) < 2 * 70 + 4
    made = torch.cat([*parts, stream.finish()])
    wanted = torch.sin(2 * math.pi * 1000 * torch.arange(len(made), dtype=torch.float64) / 22050)
    assert len(made) == 44100 and (made - wanted)[200:-200].abs().max() < 1e-3
    high = resample(torch.sin(2 * math.pi * 15000 * t), 48000)  # beyond what 22,050 Hz can hold
    assert high[200:-200].abs().max() < 1e-3


def test_opposite_channels_are_silence_and_one_sided_sound_is_half() -> None:
    left = torch.randint(-32767, 32768, (500, 1), dtype=torch.int16)
    assert mono(torch.cat([left, -left], 1)).abs().max() == 0
    assert torch.equal(mono(torch.cat([left, torch.zeros_like(left)], 1)), mono(left) / 2)
    assert mono(torch.full((3, 2), -32768, dtype=torch.int16)).tolist() == [-1.0] * 3


@pytest.mark.heavy
@pytest.mark.skipif(not CLIPS, reason="the shared folder with real clips is not there")
@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_mels_of_real_clips_are_within_the_table(path) -> None:
    source = AudioSource(AudioOptions(path=str(path)))
    reader, rows = source.open(source.splits()[0], None), []
    while not reader.exhausted:
        batch = reader.read(8, 1 << 20)
        rows += [] if batch is None else batch.to_pylist()
    assert not any(row["error"] for row in rows)
    channels = rows[0]["channels"]
    stream, parts = ResampleStream(rows[0]["sample_rate"]), []
    for row in rows:
        parts.append(stream.push(mono(torch.tensor(row["samples"], dtype=torch.int16).view(-1, channels))))
    sound = torch.cat([*parts, stream.finish()])
    assert len(sound) == 220500
    apart = np.abs(clip_mel(sound).numpy() - np.load(path.with_suffix(".npz"))["mel01"]).mean()
    assert apart < (0.004 if channels == 1 else 0.025)
