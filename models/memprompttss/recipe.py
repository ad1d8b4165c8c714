"""The small recipes: two frequencies, made here and learned in a minute; USC-HAD, read from its files and learned in minutes.

What is measured at the end is what the memory is for: the accuracy without prompts, with them, and at places that no prompt's
context has seen. Everything is a function of the seed.
"""

# B sequences, L samples, W windows, P prompts

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from models.memprompttss.checkpoint import save_network
from models.memprompttss.config import MemPromptTSSConfig
from models.memprompttss.learning import Episodes, LoopSettings, remember
from models.memprompttss.model import LABEL, MemPromptTSS, Prompts
from models.memprompttss.preview import show_states
from models.memprompttss.sampling import PromptMix
from models.memprompttss.two_frequencies import two_frequencies
from models.training import Stage, Training, TrainResult, cosine, warm_up

__all__ = ["FREQUENCY_CONFIG", "RECIPES", "SmallSchedule", "fresh_network", "measure_frequencies", "run_recipe"]

RECIPES = ("two_frequencies", "usc_had")
"""Ready recipes by name."""

_GRADIENT_NORM = 1.0
_WARMUP, _LAST_FACTOR = 20, 0.05
_REPORTS = 10
_FRESH = 1 << 20
"""Seed of fresh sequences."""
_SHOWN = 512  # samples

FREQUENCY_CONFIG = MemPromptTSSConfig(
    channels=1,
    classes=2,
    width=32,
    heads=2,
    encoder_layers=1,
    memory_layers=2,
    decoder_blocks=2,
    patch=8,
    patch_stride=4,
    window=64,
    context=32,
    stride=64,
    dropout=0.0,
    channel_names=("wave",),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallSchedule:
    """Updates, batch and learning rate of ``two_frequencies``: AdamW, warm-up, cosine decay."""

    steps: int = 1500
    batch: int = 16
    rate: float = 1e-3
    fresh: int = 128
    """Fresh sequences that the outcome is measured on."""


def fresh_network(config: MemPromptTSSConfig, seed: int) -> MemPromptTSS:
    """Return a network with random weights; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MemPromptTSS(config)


def run_recipe(training: Training, seed: int, schedule: SmallSchedule | None = None) -> TrainResult:
    """Train on two frequencies and measure on fresh ones; write ``two_frequencies.safetensors``."""
    schedule = schedule or SmallSchedule()
    settings = {"method": "memprompttss", "recipe": "two_frequencies", "seed": seed, "schedule": dataclasses.asdict(schedule)}
    if (complete := training.open(settings)) is not None:
        return complete
    model = fresh_network(FREQUENCY_CONFIG, seed)
    generator = torch.Generator().manual_seed(seed)
    # Ids are drawn for each sequence as it is, so nothing is permuted, and without a prompt there is nothing to learn.
    loop = LoopSettings(iterations=2, few=0.25, mix=PromptMix(labels=1.0, near_boundaries=0.0))
    state: dict[str, object] = {}
    episodes = Episodes(model, lambda g: two_frequencies(schedule.batch, 128, g), loop, generator, state)
    x_1LC, state_1L = two_frequencies(1, _SHOWN, torch.Generator().manual_seed(_FRESH))
    training.run(
        Stage(
            name="two_frequencies",
            steps=schedule.steps,
            trained=model.train(),
            optimizer=torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=0.01),
            losses=episodes.losses,
            rate=lambda step: schedule.rate * warm_up(step, _WARMUP) * cosine(step, schedule.steps, _LAST_FACTOR),
            gradient_norm=_GRADIENT_NORM,
            report_every=max(1, schedule.steps // _REPORTS),
            generators=(generator,),
            state=state,
            preview=lambda: show_states(model, x_1LC[0], state_1L[0], FREQUENCY_CONFIG.channel_names),
        )
    )
    model.eval().requires_grad_(False)
    weights = training.path / "two_frequencies.safetensors"
    save_network(model, weights)
    return training.finish(weights, measure_frequencies(model, schedule.fresh))


@torch.no_grad()
def measure_frequencies(model: MemPromptTSS, count: int) -> dict[str, float]:
    """Return the accuracy at places that no context has seen, by number and kind of prompts.

    Prompts stand in the first quarter of fresh sequences of 256 samples, the accuracy is that of the last half.
    """
    generator = torch.Generator().manual_seed(_FRESH)
    x_BLC, state_BL = two_frequencies(count, 256, generator)
    center_BP = torch.randint(16, 49, (count, 8), generator=generator)
    found = {}
    for kind, incorrect in (("prompts", False), ("not_prompts", True)):
        here_BP = state_BL.gather(1, center_BP)
        prompts = Prompts(
            torch.full_like(center_BP, LABEL),
            1 - here_BP if incorrect else here_BP,
            torch.zeros_like(center_BP),
            torch.full_like(center_BP, int(incorrect)),
        )
        m_BND = remember(model, x_BLC, center_BP, prompts)
        for number in (0, 1, 2, 4, 8) if not incorrect else (1, 2, 4, 8):
            found[f"remote_{number}_{kind}"] = _accuracy(model, x_BLC[:, 128:], state_BL[:, 128:], m_BND[:, :number])
    return found


def _accuracy(model: MemPromptTSS, x_BLC: Tensor, state_BL: Tensor, m_BND: Tensor) -> float:
    window = model.config.window
    x_WTC, state_WT = x_BLC.unfold(1, window, window).transpose(2, 3).flatten(0, 1), state_BL.unfold(1, window, window)
    of_W = torch.arange(len(x_BLC)).repeat_interleave(len(x_WTC) // len(x_BLC))
    return float((model(x_WTC, m_BND, None, of_W).argmax(2) == state_WT.flatten(0, 1)).float().mean())
