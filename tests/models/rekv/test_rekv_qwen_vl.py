"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the same numbers as the library's own model, however the video comes in."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from qwen_models import (
    QWEN,
    film,
    model_folder,
    published_positions,
    qwen_model,
    stock_inputs,
    tokenizer_of,
    watched,
    wrapped,
)
from rekv_models import seen, store_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from connectors.errors import ConfigError
from models.rekv.answering import Request, read_text, retrieve
from models.rekv.config import ReKVConfig
from models.rekv.loaders import VideoLanguageModel, load_model
from models.rekv.qwen_vision import cells
from models.rekv.session import StreamState, open_stream, rebuild_window
from models.rekv.store import TensorStore
from models.tokenizers import FolderTokenizer

WIDE = ReKVConfig(window_tokens=400, retrieve_frames=8)
NARROW = ReKVConfig(window_tokens=70, retrieve_frames=2)
COLOR = "what color is this"
FEW = [pytest.param("qwen2_vl", marks=pytest.mark.slow), "qwen2_5_vl", "qwen3_vl"]
ONE = [*(pytest.param(family, marks=pytest.mark.slow) for family in QWEN[:2]), "qwen3_vl"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> FolderTokenizer:
    return tokenizer_of(tmp_path_factory.mktemp("tokenizer"))


def logits(model: VideoLanguageModel, config: ReKVConfig, stream: StreamState, below: int | None = None) -> Tensor:
    """Return the logits [n, V] of the prompt of a question."""
    prompt = model.ids(model.prompts.open_ended(COLOR))
    context, _ = retrieve(model.decoder, config, [Request(seen(stream, below), model.ids(COLOR))], len(prompt))
    return model.decoder.logits(read_text(model.decoder, config, context, [prompt])[0])


def close(got: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the largest: logits of these models reach far beyond 1."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * max(float(wanted.abs().max()), 1.0))


@pytest.mark.parametrize("family", QWEN)
def test_a_bank_that_holds_everything_gives_the_logits_of_the_stock_model(family: str, tokenizer: FolderTokenizer) -> None:
    """By its own processor, its own positions and its full cache; where time runs on further, by the published positions."""
    model = wrapped(family, WIDE, tokenizer)
    stock, prompt = qwen_model(family), model.prompts.open_ended(COLOR)
    for count, fps in ((5, 2.0), (14, 0.5)):
        frames = film(count)
        got = logits(model, WIDE, watched(model, WIDE, frames, fps=fps))
        inputs = stock_inputs(family, tokenizer, frames, prompt, fps)
        positions = published_positions(family, inputs, fps)
        own, _ = stock.model.get_rope_index(**{k: v for k, v in inputs.items() if "pixel" not in k})
        if count == 5:
            assert torch.equal(positions, own)
        video = inputs["mm_token_type_ids"][0] == 2
        assert torch.equal(positions[:, 0, video], own[:, 0, video])
        if count > 5:
            inputs["position_ids"] = positions
        close(got, stock(**inputs).logits[0, -len(got) :])


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("config", [pytest.param(WIDE, id="wide", marks=pytest.mark.slow), pytest.param(NARROW, id="narrow")])
def test_streaming_gives_the_blocks_of_one_call(family: str, config: ReKVConfig, tokenizer: FolderTokenizer) -> None:
    """With frames that change their size, and a window that is left behind."""
    model = wrapped(family, config, tokenizer)
    frames = [*film(4), *film(6, rows=3, columns=5), *film(5, rows=2, columns=6)]
    whole = watched(model, config, frames)
    stepwise = watched(model, config, frames, cuts=(1, 2, 4, 5, 6))
    assert whole.tokens == stepwise.tokens > NARROW.window_tokens
    for layer in range(3):
        for one, other in zip(*(store_of(s).reader().gather(layer, torch.arange(8)) for s in (whole, stepwise)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    close(logits(model, config, whole), logits(model, config, stepwise))


@pytest.mark.parametrize("family", FEW)
def test_frames_of_other_sizes_equal_the_stock_model_with_their_places(family: str, tokenizer: FolderTokenizer) -> None:
    model = wrapped(family, WIDE, tokenizer)
    stock = qwen_model(family)
    frames = [*film(2), *film(4, rows=3, columns=5), *film(1, rows=2, columns=6)]
    stream = watched(model, WIDE, frames)
    laid = stream.grid.lay(stream.grid.written(0, stream.frames), stream.prefix.tokens)
    prompt = model.ids(model.prompts.open_ended(COLOR))
    embeds, deep = [stock.model.get_input_embeddings()(model.ids(model.prompts.prefix))], []
    for i in range(0, len(frames), 2):
        pair = torch.from_numpy(np.stack(frames[i : i + 2]))[None]
        flat, grid = model.frames.patches(pair)
        features = stock.model.get_video_features(flat, grid, return_dict=True)
        block, shape = model.video.block(model.frames(pair)[0], *pair.shape[2:4], (i + min(i + 1, len(frames) - 1)) / 4)
        close(block[shape.lead : shape.lead + len(features.pooler_output[0]), :32], features.pooler_output[0])
        embeds.append(block[:, :32])
        deep.append(block[:, 32:])
    embeds.append(stock.model.get_input_embeddings()(prompt))
    line = torch.arange(stream.prefix.tokens).expand(3, -1)
    text = (laid.end + torch.arange(len(prompt))).expand(3, -1)
    places = torch.cat((line, laid.positions_AM, text), dim=1)[:, None]
    extra = {}
    if family == "qwen3_vl":
        mask = torch.zeros(places.shape[2], dtype=torch.bool)
        mask[stream.prefix.tokens : -len(prompt)] = True
        extra = {"visual_pos_masks": mask[None], "deepstack_visual_embeds": list(torch.cat(deep).split(32, dim=1))}
    hidden = stock.model.language_model(inputs_embeds=torch.cat(embeds)[None], position_ids=places, **extra).last_hidden_state
    close(logits(model, WIDE, stream), stock.lm_head(hidden[0, -len(prompt) :]))


@pytest.mark.parametrize("family", ONE)
def test_positions_moved_by_a_constant_give_the_same_answer(family: str, tokenizer: FolderTokenizer) -> None:
    """The whole context, prefix and text with it."""
    model = wrapped(family, WIDE, tokenizer)
    stream = watched(model, WIDE, film(9))
    turn = model.decoder.rotary.turn
    wanted = logits(model, WIDE, stream)
    model.decoder.rotary.turn = lambda positions: turn(positions + 5000)  # type: ignore[method-assign]
    moved = watched(model, WIDE, film(9))
    close(logits(model, WIDE, moved), wanted)


def test_retrieved_blocks_follow_each_other_or_keep_the_time_between_them(tokenizer: FolderTokenizer) -> None:
    config = dataclasses.replace(NARROW, rope_mode="elapsed")
    kept = watched(wrapped("qwen2_5_vl", config, tokenizer), config, film(12)).grid
    near = dataclasses.replace(kept, elapsed=False)
    chosen = torch.tensor([1, 2, 5])
    times = [[spot[-1] for spot in grid.chosen(chosen)] for grid in (near, kept)]
    assert times == [[0, 2, 4], [0, 2, 8]]  # two positions a second, a block a second
    line = wrapped("qwen2_5_vl", dataclasses.replace(NARROW, rope_mode="1d"), tokenizer)
    laid = watched(line, NARROW, film(12)).grid.lay(watched(line, NARROW, film(12)).grid.chosen(chosen), 3)
    assert laid.positions_AM.tolist() == [list(range(3, 63))]


@pytest.mark.parametrize("family", ONE)
def test_a_question_about_a_past_time_is_answered_as_if_asked_then(family: str, tokenizer: FolderTokenizer) -> None:
    model = wrapped(family, NARROW, tokenizer)
    frames = [*film(6), *film(8, rows=3, columns=5)]
    close(
        logits(model, NARROW, watched(model, NARROW, frames), below=4),
        logits(model, NARROW, watched(model, NARROW, frames[:8])),
    )


@pytest.mark.parametrize("family", ONE)
def test_a_window_is_made_of_the_blocks_bit_for_bit(family: str, tokenizer: FolderTokenizer) -> None:
    model = wrapped(family, NARROW, tokenizer)
    frames = [*film(6), *film(8, rows=3, columns=5)]
    stream = watched(model, NARROW, frames)
    again = open_stream(model.decoder, NARROW, stream.prefix, stream.grid, TensorStore(3))
    rebuild_window(model.decoder, NARROW, again, store_of(stream).reader())
    last = NARROW.window_tokens
    for part in ("keys_LGCD", "values_LGCD"):
        one, other = (getattr(s.window, part)[:, :, s.window.filled - last : s.window.filled] for s in (stream, again))
        assert torch.equal(one, other)
    assert (again.tokens, again.window.base) == (stream.tokens, stream.tokens - last)


@pytest.mark.parametrize("family", ONE)
def test_half_precision_is_near(family: str, tokenizer: FolderTokenizer) -> None:
    wide = logits(wrapped(family, WIDE, tokenizer), WIDE, watched(wrapped(family, WIDE, tokenizer), WIDE, film(6)))
    half = wrapped(family, WIDE, tokenizer, model=qwen_model(family).to(torch.bfloat16))
    stream = watched(half, WIDE, film(6))
    assert store_of(stream).reader().gather(0, torch.arange(3))[0].dtype == torch.bfloat16
    assert float((logits(half, WIDE, stream) - wide).abs().max() / wide.abs().max()) < 0.1


@pytest.mark.parametrize("family", QWEN)
def test_official_names_of_tensors_and_settings_load_with_none_missing(family: str, tmp_path: Path) -> None:
    """As Qwen, TimeChat-Online, StreamingVLM and LiveCC published them, with the head tied or its own."""
    import json

    folder = Path(model_folder(tmp_path, family))
    wanted = load_model(folder, WIDE)
    config, weights = folder / "config.json", folder / "model.safetensors"
    said = json.loads(config.read_text())
    if family != "qwen3_vl":  # one level of settings, and names from before the library nested its models
        tensors = {
            name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
            for name, tensor in load_file(weights).items()
        }
        assert {name.split(".")[0] for name in tensors} == {"model", "visual", "lm_head"}
        save_file(tensors, weights, {"format": "pt"})
        text = said.pop("text_config")
        rope = text.pop("rope_parameters")
        said |= {k: v for k, v in text.items() if k not in ("model_type", "dtype", "architectures")}
        said |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
        said["vision_config"]["model_type"] = family
        config.write_text(json.dumps(said))
    got = load_model(folder, WIDE)
    ids = torch.arange(9)
    assert torch.equal(got.decoder.logits(got.decoder.embed(ids)), wanted.decoder.logits(wanted.decoder.embed(ids)))
    assert torch.equal(got.decoder.rotary.axis_F, wanted.decoder.rotary.axis_F)
    pair = torch.from_numpy(np.stack(film(2)))[None]
    assert torch.equal(got.frames(pair), wanted.frames(pair))
    assert got.end_tokens == {1}


def test_a_frame_is_scaled_to_whole_cells_within_its_tokens() -> None:
    assert cells(720, 1280, 28, 196) == (10, 18)
    for height, width in ((720, 1280), (16, 16), (1080, 1920), (5, 4000), (4000, 5), (28, 28), (3000, 2000), (1, 1)):
        for most in (1, 2, 7, 16, 196, 768):
            rows, columns = cells(height, width, 28, most)
            assert max(most // 2, 1) <= rows * columns <= most, (height, width, most)
    assert cells(10 * 28, 14 * 28 + 9, 28, 196) == (10, 14)  # between the bounds the nearest number of cells


@pytest.mark.parametrize(
    ("family", "settings", "given", "message"),
    [
        ("qwen3_vl", {"rope_mode": "elapsed"}, {}, "reads times as words"),
        ("qwen2_5_vl", {}, {"frames_per_block": 3}, "1 to 2 frames"),
    ],
)
def test_what_does_not_fit_a_family_is_refused(
    family: str, settings: dict[str, str], given: dict[str, int], message: str, tokenizer: FolderTokenizer
) -> None:
    with pytest.raises(ConfigError, match=message):
        wrapped(family, dataclasses.replace(WIDE, **settings), tokenizer, **given)  # type: ignore[arg-type]
