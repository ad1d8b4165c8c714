"""What a memory depends on and what not: causality, propagation, batches, short clips, the prefix mask, settings."""

import dataclasses
import re

import pytest
import torch
from videostreaming_models import CONFIG, PHI, TOKENS, encoded, features, ids, tiny_model

from connectors.errors import ConfigError
from models.videostreaming.config import VideoStreamingConfig
from models.videostreaming.encoding import Clip, encode_clips, encode_questions, prefix_hidden
from models.videostreaming.prompts import clip_time_text, time_prompt
from models.videostreaming.tokens import check_grid, merge_patches, pool_summaries


def test_later_clips_change_no_earlier_memory() -> None:
    model, before, after = tiny_model(), features(4), features(4)
    after[3] += 1
    first, second = encoded(model, before), encoded(model, after)
    for k in range(3):
        assert torch.equal(first[k].memory_MD, second[k].memory_MD)
        assert torch.equal(first[k].indicator_D, second[k].indicator_D)
    assert not torch.equal(first[3].memory_MD, second[3].memory_MD)


def test_memories_depend_on_the_past_only_where_they_are_propagated() -> None:
    clips = features(4)
    swapped = clips[[1, 0, 2, 3]]
    with_past = tiny_model()
    without = tiny_model(config=dataclasses.replace(CONFIG, propagate=False))
    assert not torch.equal(encoded(with_past, clips)[3].memory_MD, encoded(with_past, swapped)[3].memory_MD)
    assert torch.equal(encoded(without, clips)[3].memory_MD, encoded(without, swapped)[3].memory_MD)


def test_a_short_clip_has_as_many_summaries_as_its_frames() -> None:
    model = tiny_model()
    for frames in (1, 2, 3):
        (one,) = encode_clips(model, [Clip(features(1, frames=frames)[0], ids(3), None)])
        assert one.memory_MD.shape == (4 * frames, PHI["hidden_size"])


def test_clips_of_different_lengths_are_encoded_together_as_alone() -> None:
    model = tiny_model()
    memory = encoded(model, features(1))[0].memory_MD
    clips = [
        Clip(features(1, frames=1)[0], ids(9), None),
        Clip(features(1, seed=2)[0], ids(2), memory),
        Clip(features(1, seed=3, frames=2)[0], ids(0), memory[:4]),
    ]
    together = encode_clips(model, clips)
    for clip, got in zip(clips, together, strict=True):
        (alone,) = encode_clips(model, [clip])
        torch.testing.assert_close(got.memory_MD, alone.memory_MD, atol=1e-5, rtol=0)
        torch.testing.assert_close(got.indicator_D, alone.indicator_D, atol=1e-5, rtol=0)


def test_questions_of_different_lengths_are_encoded_together_as_alone() -> None:
    model = tiny_model()
    memories = [None, *(one.memory_MD for one in encoded(model, features(2)))]
    asked = [ids(7), ids(1), ids(4)]
    for row, got in enumerate(encode_questions(model, memories, asked)):
        (alone,) = encode_questions(model, [memories[row]], [asked[row]])
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


def test_text_of_the_prefix_task_gets_the_clip_through_the_summaries_only() -> None:
    """Where the summaries' hidden states are held fixed, other frames change nothing of the text."""
    model, text = tiny_model(head=True), ids(5)[None]
    clips, others = features(1), features(1, seed=9)
    frames, summaries = 3 * TOKENS, 3 * 4
    first = prefix_hidden(model, clips, text)
    changed = prefix_hidden(model, others, text)
    assert not torch.allclose(first[:, -5:], changed[:, -5:])
    inputs: list[torch.Tensor] = []

    def keep(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        inputs.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])  # type: ignore[index]

    def hold(module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> object:
        given = kwargs.get("hidden_states", args[0] if args else None)
        assert given is not None
        own = given.clone()
        own[:, frames : frames + summaries] = inputs[hold.count][:, frames : frames + summaries]  # type: ignore[attr-defined]
        hold.count += 1  # type: ignore[attr-defined]
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": own}
        return (own, *args[1:]), kwargs

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.streaming_encoder.layers]
    prefix_hidden(model, clips, text)
    for handle in handles:
        handle.remove()
    hold.count = 0  # type: ignore[attr-defined]
    handles = [layer.register_forward_pre_hook(hold, with_kwargs=True) for layer in model.streaming_encoder.layers]
    held = prefix_hidden(model, others, text)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(held[:, -5:], first[:, -5:], atol=1e-5, rtol=0)


def test_times_of_days_only_get_longer_by_their_digits() -> None:
    first, later = (re.sub(r"\d+\.\d", "T", time_prompt(at, at + 8, first=False)) for at in (8.0, 1e6))
    assert first == later and "1000000.0 to 1000008.0 seconds" in time_prompt(1e6, 1e6 + 8, first=False)
    assert clip_time_text(1e6, 1e6 + 8) == "clip 1000000.0-1000008.0 s"


def test_learned_summaries_take_the_place_of_pooled_ones() -> None:
    model = tiny_model(config=dataclasses.replace(CONFIG, summary_init="learned"))
    assert model.summary_table is not None
    before = encoded(model, features(1))[0].memory_MD
    model.summary_table += 1
    assert not torch.equal(encoded(model, features(1))[0].memory_MD, before)


def test_blocks_of_patches_are_joined_in_reading_order() -> None:
    grid = torch.arange(16.0).reshape(1, 16, 1)
    assert merge_patches(grid)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert pool_summaries(torch.arange(16.0).reshape(1, 16, 1), 4)[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize(("tokens", "summaries"), [(15, 1), (16, 2), (4, 9)])
def test_grids_that_do_not_fit_are_refused(tokens: int, summaries: int) -> None:
    with pytest.raises(ConfigError, match="square numbers"):
        check_grid(tokens, summaries)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"frame_summaries": 3}, "square"),
        ({"select_clips": 0}, "at least 1"),
        ({"similarity": "euclid"}, "cosine"),
        ({"clip_seconds": 0.0}, "above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        VideoStreamingConfig(**changed)  # type: ignore[arg-type]
