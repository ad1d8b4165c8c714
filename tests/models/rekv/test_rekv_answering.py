"""Answers: equal to the stock model while everything fits, independent of batching, and without a trace in the stream."""

# B questions, L layers, T tokens per frame, N frames, G key/value heads, D head dim

import dataclasses
import math
from typing import Any

import pytest
import torch
from rekv_models import (
    PREFIX,
    SMALL,
    TOKENS,
    YARN,
    encoded,
    features,
    new_stream,
    seen,
    text_model,
    tiny_decoder,
)
from torch import Tensor

from models.rekv.answering import Request, _Text, read_text, retrieve
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenAnswer, TokenQuestion, answer_questions, read_answers
from models.rekv.layouts import Grid
from models.rekv.session import StreamState, open_stream
from models.rekv.store import TensorReader, TensorStore

FRAMES = features(16)
QUESTION, PROMPT = torch.tensor([21, 22, 23]), torch.tensor([31, 21, 22, 23, 33, 34])
WIDE = ReKVConfig(window_tokens=200, retrieve_frames=16)
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}  # float32 sums in another order, over all layers
NO_END: set[int] = set()


def ask(stream: StreamState, number: int = 0, below: int | None = None, **changes: Any) -> TokenQuestion:
    """Return a question; different numbers have different tokens and lengths."""
    question = (QUESTION + number).repeat(1 + number % 2)
    values: dict[str, Any] = {
        "stream": seen(stream, below),
        "question_ids_n": question,
        "prompt_ids_n": (PROMPT + number)[: 6 - number % 3],
    }
    return TokenQuestion(**(values | {"max_new_tokens": 6} | changes))


def answer(decoder: TextDecoder, config: ReKVConfig, question: TokenQuestion) -> TokenAnswer:
    return answer_questions(decoder, config, [question], NO_END)[0]


def everything(stream: StreamState) -> list[Tensor]:
    """Return copies of all that a stream is made of."""
    window, frames, view = stream.window, stream.frames, seen(stream).blocks
    blocks = [t.clone() for layer in range(len(window.keys_LGCD)) for t in view.gather(layer, torch.arange(frames))]
    reps = [view.representatives(layer).clone() for layer in range(len(window.keys_LGCD))]
    counters = torch.tensor([frames, window.base, window.filled])
    return [window.keys_LGCD.clone(), window.values_LGCD.clone(), counters, *blocks, *reps]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Qwen2", {}),
        ("Llama", {}),
        ("Mistral", {}),
        ("Qwen3", {}),
        ("Llama", {"num_key_value_heads": 4}),
        ("Qwen2", {"rope_parameters": YARN}),
        ("Qwen2VL", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}),
        ("Qwen2_5_VL", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}),
        (
            "Qwen3VL",
            {
                "rope_parameters": {
                    "rope_theta": 1e4,
                    "rope_type": "default",
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                }
            },
        ),
    ],
)
def test_while_everything_fits_the_answer_pass_equals_the_stock_model(family: str, settings: dict[str, Any]) -> None:
    stock, _ = text_model(family, **settings)
    decoder = TextDecoder.of(*text_model(family, **settings), WIDE)
    grid = decoder.grid(TOKENS, (1, 2, 3)) if "VL" in family else decoder.grid(TOKENS)
    stream = open_stream(decoder, WIDE, encode_prefix(decoder, PREFIX), grid, TensorStore(decoder.layers))
    encode_frames(decoder, WIDE, [stream], [FRAMES])
    context, _ = retrieve(decoder, WIDE, [Request(seen(stream), QUESTION)], len(PROMPT))
    (got,) = read_text(decoder, WIDE, context, [PROMPT])

    embed = stock.get_input_embeddings()
    whole = torch.cat((embed(PREFIX), FRAMES.flatten(0, 1), embed(PROMPT)))[None]
    positions = _stock_positions(grid, len(PREFIX), len(FRAMES), len(PROMPT))
    wanted = stock(inputs_embeds=whole, position_ids=positions, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(got, wanted[-len(PROMPT) :], **TOLERANCE)


def _stock_positions(grid: Grid, prefix: int, frames: int, text: int) -> Tensor:
    """Number tokens as the library does: text on one line, frame f on its volume from where frame f - 1 ended."""
    axes, span = grid.offsets_AT.shape[0], int(grid.offsets_AT.max()) + 1
    parts = [torch.arange(prefix).expand(axes, -1)]
    parts += [prefix + f * span + grid.offsets_AT for f in range(frames)]
    parts.append((prefix + frames * span + torch.arange(text)).expand(axes, -1))
    positions = torch.cat(parts, dim=1)[:, None]
    return positions[0] if axes == 1 else positions


def test_answers_of_the_stock_model_by_its_own_generate_are_reproduced() -> None:
    import transformers

    settings = transformers.Qwen2Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        stock = transformers.Qwen2ForCausalLM(settings).eval()
        for parameter in stock.parameters():
            parameter.data = torch.randn_like(parameter) * 0.25 + (parameter.dim() == 1)
    embed = stock.get_input_embeddings()
    whole = torch.cat((embed(PREFIX), FRAMES.flatten(0, 1), embed(PROMPT)))[None]
    mask = torch.ones(whole.shape[:2], dtype=torch.long)
    wanted = stock.generate(inputs_embeds=whole, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    decoder = TextDecoder.of(stock.model, stock.lm_head, WIDE)
    assert answer(decoder, WIDE, ask(encoded(decoder, WIDE, FRAMES))).tokens == wanted[0].tolist()


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_questions_change_nothing_and_the_same_question_gives_the_same_bits(chunk: int, score: str) -> None:
    config = dataclasses.replace(SMALL, chunk_frames=chunk, score=score)
    decoder = tiny_decoder(config)
    stream = encoded(decoder, config, FRAMES[:9])
    before = everything(stream)
    first = answer(decoder, config, ask(stream))
    second = answer(decoder, config, ask(stream))
    assert first.tokens == second.tokens
    assert all(torch.equal(a, b) for a, b in zip(first.scores, second.scores, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, everything(stream), strict=True))
    encode_frames(decoder, config, [stream], [FRAMES[9:]])
    undisturbed = encoded(decoder, config, FRAMES[:9])
    encode_frames(decoder, config, [undisturbed], [FRAMES[9:]])
    assert all(torch.equal(a, b) for a, b in zip(everything(stream), everything(undisturbed), strict=True))


@pytest.mark.parametrize(
    "config", [SMALL, dataclasses.replace(SMALL, chunk_frames=2, window_tokens=30)], ids=["fits", "overflows"]
)
def test_questions_asked_together_equal_questions_asked_alone(config: ReKVConfig) -> None:
    """Of several streams, with different lengths, numbers of frames, limits, external frames and none at all."""
    decoder = tiny_decoder(config)
    streams = [encoded(decoder, config, features(n, seed)) for n, seed in ((16, 2), (3, 3), (13, 4), (0, 5))]
    questions = [
        ask(streams[0]),
        ask(streams[1], 1, max_new_tokens=2),
        ask(streams[0], 2),
        ask(streams[2], 3, frames=[1, 4, 12]),
        ask(streams[3], 4),
        ask(streams[3], 5, allow_blind=True, max_new_tokens=9),
        ask(streams[2], 6, below=7),
    ]
    together = answer_questions(decoder, config, questions, {3})
    for question, got in zip(questions, together, strict=True):
        (alone,) = answer_questions(decoder, config, [question], {3})
        assert (got.status, got.tokens, got.context_truncated) == (alone.status, alone.tokens, alone.context_truncated)
        assert [f.tolist() for f in got.retrieved] == [f.tolist() for f in alone.retrieved]
        for a, b in zip(got.scores, alone.scores, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE)


def test_one_token_at_a_time_equals_reading_the_text_at_once() -> None:
    decoder = tiny_decoder()
    stream = encoded(decoder, SMALL, FRAMES)
    texts = [torch.arange(3, 15), torch.arange(20, 32)]  # long enough to leave the window
    requests = [Request(seen(stream), QUESTION), Request(seen(stream), QUESTION + 1)]
    context, _ = retrieve(decoder, SMALL, requests, 12)
    wanted = read_text(decoder, SMALL, context, texts)
    context.text = [0, 0]
    got = [read_text(decoder, SMALL, context, [text[i : i + 1] for text in texts]) for i in range(12)]
    for row in range(2):
        torch.testing.assert_close(torch.cat([step[row] for step in got]), wanted[row], **TOLERANCE)


def test_given_frames_that_are_the_chosen_ones_give_the_same_answer() -> None:
    decoder = tiny_decoder()
    stream = encoded(decoder, SMALL, FRAMES[:4])
    inner, given = answer(decoder, SMALL, ask(stream)), answer(decoder, SMALL, ask(stream, frames=[0, 1, 2, 3]))
    assert inner.tokens == given.tokens
    assert given.scores == [None] * decoder.layers


def test_later_frames_change_nothing_for_a_question_about_an_earlier_time() -> None:
    decoder = tiny_decoder()
    now = encoded(decoder, SMALL, FRAMES[:10])
    later = encoded(decoder, SMALL, FRAMES[:10])
    encode_frames(decoder, SMALL, [later], [features(6, 99)])
    a, b = answer(decoder, SMALL, ask(now)), answer(decoder, SMALL, ask(later, below=10))
    assert (a.tokens, a.frames_seen) == (b.tokens, b.frames_seen)
    assert all(torch.equal(x, y) for x, y in zip(a.scores, b.scores, strict=True))


def test_with_given_frames_only_their_blocks_count_not_what_lies_between() -> None:
    """Context is re-indexed: the same blocks at other places of the stream give the same answer."""
    decoder = tiny_decoder()
    near, far = encoded(decoder, SMALL, FRAMES[:3]), new_stream(decoder)
    for layer in range(decoder.layers):
        keys, values = seen(near).blocks.gather(layer, torch.arange(3))
        order = torch.tensor([0, 2, 2, 2, 1, 0, 2])  # blocks 0, 1, 2 are at 0, 4, 6 now
        reps = seen(near).blocks.representatives(layer)
        far.blocks.append(layer, keys[order], values[order], reps[order])
    far.frames = 7
    a = answer(decoder, SMALL, ask(near, frames=[0, 1, 2]))
    b = answer(decoder, SMALL, ask(far, frames=[0, 4, 6]))
    assert a.tokens == b.tokens


def test_layers_choose_by_themselves() -> None:
    decoder = tiny_decoder()
    got = answer(decoder, SMALL, ask(encoded(decoder, SMALL, FRAMES)))
    assert len({tuple(frames.tolist()) for frames in got.retrieved}) > 1
    for frames, scores in zip(got.retrieved, got.scores, strict=True):
        assert frames.tolist() == sorted(scores.topk(4).indices.tolist())


def test_generation_stops_with_the_end_token_or_at_the_limit() -> None:
    decoder = tiny_decoder()
    stream = encoded(decoder, SMALL, FRAMES)
    free = answer(decoder, SMALL, ask(stream)).tokens
    assert len(free) == 6
    end = free[2]
    (stopped,) = answer_questions(decoder, SMALL, [ask(stream)], {end})
    assert stopped.tokens == free[: free.index(end) + 1]


def test_logits_of_every_step_are_handed_out() -> None:
    decoder = tiny_decoder()
    context, _ = retrieve(decoder, SMALL, [Request(seen(encoded(decoder, SMALL, FRAMES)), QUESTION)], 20)
    steps: list[Tensor] = []
    (tokens,), _ = read_answers(decoder, SMALL, context, [PROMPT], [4], NO_END, steps)
    assert torch.cat(steps).argmax(dim=1).tolist() == tokens


def test_confidence_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    decoder = tiny_decoder()
    context, _ = retrieve(decoder, SMALL, [Request(seen(encoded(decoder, SMALL, FRAMES)), QUESTION)] * 2, 20)
    steps: list[Tensor] = []
    tokens, confidences = read_answers(decoder, SMALL, context, [PROMPT, PROMPT[:2]], [4, 2], NO_END, steps)
    for row, answer in enumerate(tokens):
        probabilities = [float(steps[n][row].double().softmax(0)[token]) for n, token in enumerate(answer)]
        assert confidences[row] == pytest.approx(math.prod(probabilities) ** (1 / len(answer)), rel=1e-5)
    assert math.isnan(answer_questions(decoder, SMALL, [ask(new_stream(decoder))], NO_END)[0].confidence)


# What the published code does wrong (spec: section 11), and the answer here.


def test_question_before_the_first_frame_gets_a_status_or_a_blind_answer() -> None:
    decoder = tiny_decoder()
    stream = new_stream(decoder)
    none = answer(decoder, SMALL, ask(stream))
    assert (none.status, none.tokens, none.retrieved) == ("no_frames", [], [])
    blind = answer(decoder, SMALL, ask(stream, allow_blind=True))
    assert (blind.status, len(blind.tokens), blind.frames_seen) == ("ok", 6, 0)


@pytest.mark.parametrize("frames", [5, 6, 7])
def test_question_while_sinks_are_partly_exposed_is_answered(frames: int) -> None:
    config = dataclasses.replace(SMALL, window_tokens=len(PREFIX) + 6 * TOKENS - 3, retrieve_frames=3)
    decoder = tiny_decoder(config)
    stream = encoded(decoder, config, FRAMES[:frames])
    assert answer(decoder, config, ask(stream)).status == "ok"


@pytest.mark.parametrize("changes", [{"question_ids_n": QUESTION[:0]}, {"prompt_ids_n": PROMPT[:0]}, {"max_new_tokens": 0}])
def test_empty_question_gets_a_status(changes: dict[str, Any]) -> None:
    decoder = tiny_decoder()
    stream = encoded(decoder, SMALL, FRAMES)
    good, bad = answer_questions(decoder, SMALL, [ask(stream), ask(stream, 1, **changes)], NO_END)
    assert (good.status, bad.status, bad.tokens) == ("ok", "bad_question", [])


@pytest.mark.parametrize("frames", [[2, 1], [1, 1], [-1], [16], [0, 1, 2, 3, 4, 5, 6]])
def test_frames_that_cannot_be_used_get_a_status(frames: list[int]) -> None:
    decoder = tiny_decoder()
    assert answer(decoder, SMALL, ask(encoded(decoder, SMALL, FRAMES), frames=frames)).status == "bad_frames"


def test_text_that_outgrows_the_window_is_answered_and_flagged() -> None:
    decoder = tiny_decoder()
    stream = encoded(decoder, SMALL, FRAMES)
    room = SMALL.window_tokens - len(PREFIX) - 4 * TOKENS - len(PROMPT)
    fits = answer(decoder, SMALL, ask(stream, max_new_tokens=room + 1))  # the last token is not read
    grown = answer(decoder, SMALL, ask(stream, max_new_tokens=room + 2))
    assert (fits.context_truncated, grown.context_truncated) == (False, True)
    assert grown.tokens[: len(fits.tokens)] == fits.tokens
    endless = answer(decoder, SMALL, ask(stream, max_new_tokens=3 * SMALL.window_tokens))
    assert (endless.status, len(endless.tokens)) == ("ok", 3 * SMALL.window_tokens)


@torch.inference_mode()
def test_questions_that_attend_together_do_so_as_one_by_one() -> None:
    """Contexts and texts of several lengths, some of them alike; with text that fits the window and text that outgrows it."""
    decoder = tiny_decoder()
    streams = [encoded(decoder, SMALL, features(n, seed)) for n, seed in ((16, 2), (9, 3))]
    views = [seen(stream) for stream in streams]
    numbers, counts = [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [2, 5], [2, 5], [0, 8]], [3, 3, 3, 3, 3, 12]
    requests = [Request(views[row // 4], QUESTION, torch.tensor(frames)) for row, frames in enumerate(numbers)]
    contexts = [retrieve(decoder, SMALL, requests, 60)[0] for _ in range(2)]
    rng = torch.Generator().manual_seed(3)
    for step in range(4):
        together, *alone = [
            _Text(decoder, SMALL, context, rows, [counts[row] for row in rows])
            for context, rows in ((contexts[0], list(range(6))), *((contexts[1], [row]) for row in range(6)))
        ]
        for layer in range(decoder.layers):
            total = sum(counts)
            query, key, value = (torch.randn(heads, total, 8, generator=rng) for heads in (4, 2, 2))
            starts = [contexts[0].lengths[layer][row] + contexts[0].text[row] for row in range(6)]
            runs = [list(run) for run in together._runs(layer, starts)]
            assert runs == ([[0, 1, 2], [3, 4], [5]] if step < 3 else [[0], [1], [2], [3, 4], [5]])
            got = together.layer(layer, query, key, value, 0.4)
            parts = [torch.split(x, counts, dim=1) for x in (query, key, value)]
            one_by_one = [one.layer(layer, *(part[row].contiguous() for part in parts), 0.4) for row, one in enumerate(alone)]
            # The last bit of an exponential depends on its place in a vector of the processor.
            torch.testing.assert_close(got, torch.cat(one_by_one, dim=1), atol=1e-6, rtol=1e-6)
            for name in ("keys", "values"):
                for row in range(6):
                    stop = starts[row] + counts[row]
                    written = [getattr(context, name)[layer][row][:, :stop] for context in contexts]
                    assert torch.equal(*written)
        for context in contexts:
            context.text = [text + count for text, count in zip(context.text, counts, strict=True)]


def test_questions_that_were_given_the_same_frames_of_one_reader_load_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder()
    view, other = seen(encoded(decoder, SMALL, FRAMES)), seen(encoded(decoder, SMALL, features(16, 9)))
    given = [(view, [1, 4, 12]), (other, [1, 4, 12]), (view, [1, 4, 12]), (view, [2, 5])]
    loads: list[list[int]] = []
    gather = TensorReader.gather

    def counted(reader: TensorReader, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        loads.append(blocks.tolist())
        return gather(reader, layer, blocks)

    monkeypatch.setattr(TensorReader, "gather", counted)
    requests = [Request(stream, QUESTION + n, torch.tensor(frames)) for n, (stream, frames) in enumerate(given)]
    together, _ = retrieve(decoder, SMALL, requests, 10)
    assert loads == [[1, 4, 12], [1, 4, 12], [2, 5]] * decoder.layers
    for row, request in enumerate(requests):
        alone, _ = retrieve(decoder, SMALL, [request], 10)
        for layer in range(decoder.layers):
            length = alone.lengths[layer][0]
            assert (together.lengths[layer][row], together.ends[layer][row]) == (length, alone.ends[layer][0])
            assert together.frames[layer][row].tolist() == alone.frames[layer][0].tolist()
            for got, wanted in ((together.keys, alone.keys), (together.values, alone.values)):
                assert torch.equal(got[layer][row, :, :length], wanted[layer][0, :, :length])
