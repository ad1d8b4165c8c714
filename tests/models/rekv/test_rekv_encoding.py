"""Encoding: equal to the rule taken literally, whatever the cut into calls; state that can be rebuilt."""

import dataclasses

import pytest
import torch
from rekv_models import (
    PREFIX,
    SMALL,
    TOKENS,
    LiteralEncoding,
    encoded,
    features,
    new_stream,
    seen,
    store_of,
    text_model,
    tiny_decoder,
)

from connectors.errors import ConfigError
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.session import StreamState, open_stream, rebuild_window
from models.rekv.store import TensorStore
from operators.frame_features import finite_frames

FRAMES = features(16)
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # float32 sums in another order


def assert_same_blocks(got: StreamState, wanted: StreamState, exact: bool = False) -> None:
    assert got.frames == wanted.frames
    every = torch.arange(got.frames)
    for layer in range(got.prefix.keys_LGSD.shape[0]):
        both = (seen(one).blocks.gather(layer, every) for one in (got, wanted))
        for a, b in zip(*both, strict=True):
            torch.testing.assert_close(a, b, **({"atol": 0, "rtol": 0} if exact else TOLERANCE))


@pytest.mark.parametrize("overlap", ["official", "exact"])
@pytest.mark.parametrize("prefix", [PREFIX, PREFIX[:0]], ids=["with prefix", "without"])
def test_encoding_equals_the_literal_rule(overlap: str, prefix: torch.Tensor) -> None:
    config = dataclasses.replace(SMALL, sink_overlap=overlap)
    decoder = tiny_decoder(config)
    stream = new_stream(decoder, config, prefix)
    (hidden,) = encode_frames(decoder, config, [stream], [FRAMES], outputs=True)
    whole = torch.cat((decoder.embed(prefix), FRAMES.flatten(0, 1)))
    with torch.inference_mode():
        wanted = decoder.run(whole, LiteralEncoding(decoder, config, len(prefix), TOKENS))
    torch.testing.assert_close(hidden, wanted[len(prefix) :], **TOLERANCE)
    torch.testing.assert_close(stream.prefix.hidden_SC, wanted[: len(prefix)], **TOLERANCE)


def test_the_two_sink_rules_differ_only_where_the_edge_crosses_the_prefix() -> None:
    outputs = []
    for overlap in ("official", "exact"):
        config = dataclasses.replace(SMALL, sink_overlap=overlap)
        decoder = tiny_decoder(config, layers=1)
        (hidden,) = encode_frames(decoder, config, [new_stream(decoder, config)], [FRAMES], outputs=True)
        outputs.append(hidden.view(len(FRAMES), TOKENS, -1))
    differs = (outputs[0] - outputs[1]).abs().amax(dim=(1, 2)) > 1e-4
    ends = len(PREFIX) + TOKENS * torch.arange(1, len(FRAMES) + 1)
    crossing = (ends > SMALL.window_tokens) & (ends - TOKENS < SMALL.window_tokens + len(PREFIX) - 1)
    assert differs.tolist() == crossing.tolist()


@pytest.mark.parametrize("sizes", [[1] * 16, [3, 1, 12], [16]])
@pytest.mark.parametrize("encode_frames_", [1, 2, 64])
def test_encoding_does_not_depend_on_how_frames_are_cut_into_calls(sizes: list[int], encode_frames_: int) -> None:
    decoder = tiny_decoder()
    config = dataclasses.replace(SMALL, encode_frames=encode_frames_)
    stream, start = new_stream(decoder, config), 0
    for size in sizes:
        encode_frames(decoder, config, [stream], [FRAMES[start : start + size]])
        start += size
    assert_same_blocks(stream, encoded(decoder, SMALL, FRAMES))


def test_streams_encoded_together_equal_streams_encoded_alone() -> None:
    decoder = tiny_decoder()
    films = [features(n, seed) for n, seed in ((11, 3), (0, 4), (2, 5), (16, 6))]
    streams = [new_stream(decoder) for _ in films]
    encode_frames(decoder, SMALL, streams, films)
    more = [features(2, 7), features(3, 8), features(0, 9), features(9, 10)]
    encode_frames(decoder, SMALL, streams, more)
    for stream, film, rest in zip(streams, films, more, strict=True):
        assert_same_blocks(stream, encoded(decoder, SMALL, torch.cat((film, rest))))


def test_frames_without_tokens_change_nothing() -> None:
    decoder = tiny_decoder()
    stream = encoded(decoder, SMALL, FRAMES)
    before = (stream.tokens, stream.window.filled, stream.window.base)
    encode_frames(decoder, SMALL, [stream], [FRAMES[:0]])
    assert (stream.tokens, stream.window.filled, stream.window.base) == before


def test_window_buffer_does_not_grow_and_blocks_are_as_large_as_computed() -> None:
    decoder = tiny_decoder()
    stream = encoded(decoder, SMALL, FRAMES[:2])
    size = stream.bytes()
    for seed in range(6):
        encode_frames(decoder, SMALL, [stream], [features(20, seed)])
    assert stream.bytes() == size
    block = 2 * decoder.layers * TOKENS * decoder.groups * decoder.dim * 4
    representative = decoder.layers * decoder.groups * decoder.dim * 4
    assert store_of(stream).bytes() == stream.frames * (block + representative)


@pytest.mark.parametrize("frames", [0, 1, 5, 6, 7, 16])
def test_window_rebuilt_from_the_blocks_goes_on_bit_for_bit(frames: int) -> None:
    decoder = tiny_decoder()
    stream = encoded(decoder, SMALL, FRAMES[:frames])
    copy = open_stream(decoder, SMALL, stream.prefix, stream.grid, TensorStore(decoder.layers))
    for layer in range(decoder.layers):
        if frames:
            blocks = seen(stream).blocks
            copy.blocks.append(layer, *blocks.gather(layer, torch.arange(frames)), blocks.representatives(layer))
    rebuild_window(decoder, SMALL, copy, seen(copy).blocks)
    more = features(9, 11)
    for one in (stream, copy):
        encode_frames(decoder, SMALL, [one], [more])
    assert_same_blocks(copy, stream, exact=True)


def test_a_frame_with_not_a_number_is_found() -> None:
    bad = FRAMES.clone()
    bad[2, 3, 4], bad[5, 0, 0] = torch.nan, torch.inf
    assert (~finite_frames(bad)).nonzero().flatten().tolist() == [2, 5]


def test_number_of_sinks_is_the_length_of_the_prefix() -> None:
    decoder = tiny_decoder()
    assert encode_prefix(decoder, PREFIX).tokens == len(PREFIX)
    assert new_stream(decoder).tokens == len(PREFIX)


def test_settings_that_cannot_work_are_refused_when_a_stream_is_opened() -> None:
    decoder = tiny_decoder()
    prefix = encode_prefix(decoder, PREFIX)
    with pytest.raises(ConfigError, match=r"8 retrieved frames of 6 tokens exceed window_tokens=40; set .* at most 6"):
        open_stream(decoder, ReKVConfig(window_tokens=40, retrieve_frames=8), prefix, decoder.grid(6), TensorStore(3))
    with pytest.raises(ConfigError, match="prompt prefix has 5 tokens, more than window_tokens=4"):
        open_stream(decoder, ReKVConfig(window_tokens=4, retrieve_frames=1), prefix, decoder.grid(2), TensorStore(3))
    with pytest.raises(ConfigError, match="no multiple of chunk_frames=3"):
        ReKVConfig(retrieve_frames=4, chunk_frames=3)
    with pytest.raises(ConfigError, match="score is 'cos'"):
        ReKVConfig(score="cos")


def test_decoders_whose_keys_cannot_be_stored_once_are_refused() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ConfigError, match="rope_type 'dynamic' changes its frequencies"):
        TextDecoder.of(*text_model("Llama", rope_parameters=dynamic), SMALL)
    with pytest.raises(ConfigError, match="attends to 16 tokens only"):
        TextDecoder.of(*text_model("Mistral", sliding_window=16), SMALL)


def test_decoder_called_without_a_session_says_how_to_call_it() -> None:
    decoder = tiny_decoder()
    with pytest.raises(ConfigError, match="called without rekv_session"):
        decoder.module(input_ids=PREFIX[None])
