"""Rendered clips: seeded, what is heard is what is seen, and the ear that judges hears it."""

import functools

import numpy as np
import pytest
import torch

from connectors.errors import ConfigError
from models.films import COLORS, SIDE
from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.bounces import PITCHES_HZ, SHAPES, make_clip
from models.specvqgan.config import RATE, AutoencoderConfig
from models.specvqgan.listening import Heard, Match, listen, match
from models.specvqgan.vision import PixelConfig, PixelFeatures
from models.specvqgan.windows import ROW_RATE, WindowSet, clip_rows_at


def test_the_same_seed_gives_the_same_pixels_and_samples() -> None:
    clip, again = make_clip(4, 2.0), make_clip(4, 2.0)
    np.testing.assert_array_equal(clip.frames(10), np.stack([again.frame(i / 10) for i in range(20)]))
    np.testing.assert_array_equal(clip.samples(), again.samples())
    assert not np.array_equal(clip.samples(), make_clip(5, 2.0).samples())
    assert clip.frames(10).shape == (20, SIDE, SIDE, 3) and clip.samples().shape == (2 * RATE,)
    with pytest.raises(ConfigError, match=r"seconds is 0; more than 0"):
        make_clip(0, 0)


@pytest.mark.parametrize("seed", range(12))
def test_the_ball_is_lowest_when_it_sounds_and_has_the_color_of_its_note(seed: int) -> None:
    clip = make_clip(seed, 4.0)
    gaps = np.diff([one.time_s for one in clip.heard])
    assert len(clip.heard) >= 3 and (gaps > 0.4).all() and gaps.max() - gaps.min() > 0.05
    color = np.array(list(COLORS.values()))[:, None, None]

    def ball(time_s: float) -> tuple[float, str]:
        frame = clip.frame(time_s).astype(int)
        near = (np.abs(frame - color).sum(3) < 60).sum((1, 2))
        rows = np.nonzero((np.abs(frame - color[near.argmax()]).sum(2) < 60).any(1))[0]
        return float(rows.mean()), list(COLORS)[int(near.argmax())]

    for one in clip.heard:
        low, shown = ball(one.time_s)
        assert shown == one.color in PITCHES_HZ
        for away_s in (-0.1, 0.1):
            height, around = ball(max(0.0, one.time_s + away_s))
            assert around == one.color and (one.time_s < 0.1 or height < low - 1)


@pytest.mark.parametrize("seed", range(6))
def test_an_ear_hears_every_bounce_and_nothing_else(seed: int) -> None:
    clip = make_clip(seed, 5.0)
    notes = listen(torch.from_numpy(clip.samples()))
    # A bounce right at the end has no sound yet.
    clear = [one for one in clip.heard if one.time_s < 4.9]
    found = match(clip, notes, seconds=4.9)
    assert (found.bounces, found.found, found.right) == (len(clear), len(clear), len(clear))
    assert len(clear) <= found.heard <= len(clip.heard)


def test_an_onset_counts_once_and_a_wrong_pitch_is_not_right() -> None:
    clip = make_clip(1, 5.0)
    first = clip.heard[0]
    other = next(color for color in PITCHES_HZ if color != first.color)
    notes = [Heard(first.time_s + 0.09, other), Heard(first.time_s + 0.2, first.color)]
    assert match(clip, notes) == Match(len(clip.heard), 1, 0, 2)
    assert match(clip, [Heard(first.time_s - 0.05, first.color)] * 2) == Match(len(clip.heard), 1, 1, 2)
    total = functools.reduce(Match.__add__, [Match(4, 2, 1, 4)] * 3)
    assert total.shares() == {"onsets": 0.5, "pitches": 0.25, "precision": 0.5}
    assert listen(torch.zeros(RATE)) == []


def test_shapes_differ_in_timbre() -> None:
    spectra = {}
    for shape in SHAPES:
        clip = next(clip for clip in (make_clip(seed, 2.0) for seed in range(40)) if clip.shape == shape)
        bounce = clip.heard[0]
        first = round(bounce.time_s * RATE)
        part = clip.samples()[first : first + 2048]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), RATE))
        spectra[shape] = spectrum[round(3 * PITCHES_HZ[bounce.color])] / spectrum[round(PITCHES_HZ[bounce.color])]
    assert spectra["square"] > 0.3 > 0.1 > spectra["circle"]


def test_windows_stand_where_the_operator_looks() -> None:
    clips = [make_clip(seed, 3.0) for seed in range(2)]
    features = PixelFeatures(PixelConfig(side=4))
    small = AutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1, 1), blocks=1, z_channels=8, code_width=8, codes=16)
    windows = WindowSet.of(clips, Autoencoder(small).eval(), features, 4, torch.Generator().manual_seed(0))
    assert windows.tokens_MN.shape == (len(windows.pixels_MRP), 20) and len(windows.tokens_MN) >= 6
    seen = windows.pixels_MRP.float().flatten(0, 1)
    assert float(seen.mean().abs()) < 0.01 and float(seen.std(0).max()) < 1.1
    feats_BEF, tokens_BN = windows.draw(3, torch.Generator().manual_seed(1))
    assert feats_BEF.shape == (3, 48, 16) and tokens_BN.shape == (3, 20)
    # A row shows the newest frame of its slot.
    rows = clip_rows_at(clips[0], 20, features, frame_rate=24.0)
    newest = max(number for number in range(72) if int(number / 24 * ROW_RATE + 0.5) <= 13)
    torch.testing.assert_close(rows[13], features.pixels(torch.from_numpy(clips[0].frame(newest / 24))))
