"""What ReKV asks of a GPU: kernels per frame, layer and token, and that the host never waits. Bounds, not exact numbers."""

import pytest
import torch
from launches import DEVICE, Launches, on_device, on_host
from rekv_models import PREFIX, TOKENS, encoded, features, seen, text_model, tiny_decoder

from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenQuestion, answer_questions
from models.rekv.session import StreamState, StreamView, open_stream
from models.rekv.store import TensorStore
from operators.banks import BlockBank
from operators.banks.blocks.spec import BlockSpec

LAYERS, FRAMES = 4, 16
WIDE = ReKVConfig(window_tokens=400, retrieve_frames=4)
"""A step of 16 frames of 6 tokens fits into its buffer, as one of 16 frames of 196 into that of 15,000 tokens."""


class Slots:
    """Slots of a bank as encoding writes to them."""

    def __init__(self, decoder: TextDecoder, streams: int, dtype: torch.dtype) -> None:
        spec = BlockSpec(layers=LAYERS, groups=decoder.groups, tokens=TOKENS, dim=decoder.dim, dtype=dtype)
        self.bank = BlockBank(spec, slots=streams, device=decoder.device, device_bytes=16 << 20)
        self.bank.open(list(range(streams)), list(range(10, 10 + streams)))

    def begin(self, streams: list[tuple[int, int]]):
        slots, blocks = [number for number, _ in streams], [frames for _, frames in streams]
        return lambda layer, *rows: self.bank.append_rows(layer, slots, blocks, *rows)


DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16", marks=pytest.mark.slow)]


def on_the_device(dtype: torch.dtype, streams: int, config: ReKVConfig) -> tuple[TextDecoder, Slots, list[StreamState]]:
    module, head = (part.to(device=DEVICE, dtype=dtype) for part in text_model(layers=LAYERS))
    decoder = TextDecoder.of(module, head, config)
    decoder.pack()
    slots, prefix = Slots(decoder, streams, dtype), encode_prefix(decoder, PREFIX)
    grid = decoder.grid(TOKENS)
    return decoder, slots, [open_stream(decoder, config, prefix, grid, slots) for _ in range(streams)]


def require(launches: Launches, kernels: float, bound: float) -> None:
    assert kernels <= bound, f"{kernels:.1f} kernels, at most {bound}:\n{launches.places('kernel')}"
    waiting = [event for event in launches.events if event.kind == "read" or event.waits]
    assert not waiting, waiting


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("streams", "frames", "window"),
    [(1, 16, 400), (1, 16, 40), (16, 1, 40)],
    ids=["one stream", "a window smaller than the step", "16 streams"],
)
def test_encoding_16_frames_takes_at_most_20_kernels_per_frame_and_layer(
    dtype: torch.dtype, streams: int, frames: int, window: int
) -> None:
    config = ReKVConfig(window_tokens=window, retrieve_frames=4)
    with on_device() as launches, torch.inference_mode():
        decoder, slots, opened = on_the_device(dtype, streams, config)
        films = [features(frames, seed).to(DEVICE, dtype) for seed in range(streams)]
        for _ in range(2 + window // (TOKENS * frames)):  # the last ones with a full window
            launches.clear()
            encode_frames(decoder, config, opened, films, together=slots)
            require(launches, launches.kernels / FRAMES / LAYERS, 20)


def test_frames_of_a_step_that_is_larger_than_the_window_are_encoded_as_on_the_cpu() -> None:
    config = ReKVConfig(window_tokens=40, retrieve_frames=4)
    films = [features(FRAMES, seed) for seed in range(3)]
    with on_device(), torch.inference_mode():
        decoder, slots, (stream,) = on_the_device(torch.float32, 1, config)
        got = [encode_frames(decoder, config, [stream], [film.to(DEVICE)], outputs=True, together=slots)[0] for film in films]
        rows = stream.window.rows
    here = TextDecoder.of(*text_model(layers=LAYERS), config)
    store = TensorStore(LAYERS)
    other = open_stream(here, config, encode_prefix(here, PREFIX), here.grid(TOKENS), store)
    wanted = [encode_frames(here, config, [other], [film], outputs=True)[0] for film in films]
    assert rows == 40 + FRAMES * TOKENS > other.window.rows  # all frames of a step share an attention there, one or two here
    torch.testing.assert_close(on_host(torch.cat(got)), torch.cat(wanted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_answer_takes_at_most_25_kernels_per_layer_and_token(dtype: torch.dtype) -> None:
    with on_device() as launches, torch.inference_mode():
        decoder, slots, (stream,) = on_the_device(dtype, 1, WIDE)
        encode_frames(decoder, WIDE, [stream], [features(FRAMES).to(DEVICE, dtype)], together=slots)
        kernels, reads = [], []
        for tokens in (2, 34):
            launches.clear()
            with slots.bank.reader(0) as blocks:
                ids = torch.tensor([21, 22, 23])
                view = StreamView(stream.prefix, stream.grid, blocks)
                asked = TokenQuestion(stream=view, question_ids_n=ids, prompt_ids_n=ids, max_new_tokens=tokens)
                answer_questions(decoder, WIDE, [asked], ())
            kernels.append(launches.kernels)
            reads.append(len(launches.of("read")))
            assert not [event for event in launches.events if event.waits]
    per_token = (kernels[1] - kernels[0]) / 32 / LAYERS
    assert per_token <= 25, launches.places("kernel")
    assert reads[1] - reads[0] <= 4, launches.places("read")  # one look at 8 tokens


def test_a_device_gives_the_numbers_of_the_cpu() -> None:
    film = features(70)
    decoder = tiny_decoder(WIDE, layers=LAYERS)
    stream = encoded(decoder, WIDE, film)
    with on_device(), torch.inference_mode():
        there, slots, (copy,) = on_the_device(torch.float32, 1, WIDE)
        encode_frames(there, WIDE, [copy], [film.to(DEVICE)], together=slots)
        ids = torch.tensor([21, 22, 23])
        with slots.bank.reader(0) as blocks:
            asked = [
                TokenQuestion(stream=view, question_ids_n=ids, prompt_ids_n=ids, max_new_tokens=11)
                for view in (seen(stream), StreamView(copy.prefix, copy.grid, blocks))
            ]
            answer = answer_questions(there, WIDE, asked[1:], ())[0]
            means = [on_host(blocks.representatives(layer)) for layer in range(LAYERS)]
    wanted = answer_questions(decoder, WIDE, asked[:1], ())[0]
    assert answer.tokens == wanted.tokens
    for layer in range(LAYERS):
        torch.testing.assert_close(means[layer], seen(stream).blocks.representatives(layer), atol=1e-5, rtol=1e-4)
        assert torch.equal(on_host(answer.retrieved[layer]), wanted.retrieved[layer])
