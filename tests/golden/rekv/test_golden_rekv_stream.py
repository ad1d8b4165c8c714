"""Golden: a recorded stream with its questions, replayed: features, encoding, scores, picks, logits, tokens, final bank."""

# L layers, G key/value heads, R heads per group, N blocks, T tokens per block, D head dim

from pathlib import Path

import pytest
import torch
from golden_cases import assert_complete, golden, read_json
from rekv_cases import END_TOKEN, KINDS, STREAM, assert_close, rekv_config, tiny_model, vectors

from models.rekv.answering import Request, read_text, retrieve
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenQuestion, answer_questions, read_answers
from models.rekv.session import StreamState, StreamView, open_stream
from models.rekv.store import TensorReader, TensorStore


@pytest.mark.golden
def test_every_folder_has_cases_and_every_file_is_checked() -> None:
    assert_complete("rekv", KINDS)


@golden("rekv", ".json", *STREAM)
@pytest.mark.heavy
def test_recorded_stream_and_questions_are_reproduced(path: Path, tmp_path: Path) -> None:
    case, io = read_json(path), vectors(path)
    config, model = rekv_config(case), tiny_model(path, case, tmp_path)
    decoder, tokens = model.decoder, case["rekv"]["tokens_per_frame"]
    assert model.frames is not None

    prefix = encode_prefix(decoder, io["init_ids"][0])
    assert prefix.tokens == case["rekv"]["n_init"]
    assert_close(prefix.hidden_SC, io["init_hidden"][0], "prefix")
    store = TensorStore(decoder.layers)
    stream = open_stream(decoder, config, prefix, decoder.grid(tokens), store)
    for i, event in enumerate(case["events"]):
        if event["type"] == "video":
            features = model.frames(io[f"e{i}.frames"])
            assert_close(features.flatten(0, 1), io[f"e{i}.video_features"][0], f"e{i} features")
            (hidden,) = encode_frames(decoder, config, [stream], [features], outputs=True)
            assert_close(hidden, io[f"e{i}.encode_hidden"][0], f"e{i} encoding")
            assert (stream.frames, stream.tokens) == (event["frames_seen"], event["length"])
            continue
        view = StreamView(prefix, stream.grid, store.reader())
        question, prompt = io[f"e{i}.question_ids"], io[f"e{i}.prompt_ids"]
        external = None if event["external"] is None else torch.tensor(event["external"])
        room = len(prompt) + event["max_new"]
        context, (question_hidden,) = retrieve(decoder, config, [Request(view, question, external)], room)
        for layer in range(decoder.layers):
            wanted = io[f"e{i}.retrieved"][layer]
            assert context.frames[layer][0].tolist() == wanted[wanted >= 0].tolist(), f"e{i} layer {layer}"
            assert context.lengths[layer][0] == int(io[f"e{i}.retrieved_len"][layer])
            if f"e{i}.similarity" in io:
                assert_close(context.scores[layer][0], io[f"e{i}.similarity"][layer], f"e{i} scores of layer {layer}")
        if external is not None:  # given frames need no retrieval pass; the question reads the same context as a text
            (question_hidden,) = read_text(decoder, config, context, [question])
            context.text = [0]
        assert_close(question_hidden, io[f"e{i}.question_hidden"][0], f"e{i} question")
        _assert_first_layer_context(view, context.frames[0][0], io, i)

        (prompt_hidden,) = read_text(decoder, config, context, [prompt])
        assert_close(prompt_hidden, io[f"e{i}.prompt_hidden"][0], f"e{i} prompt")
        assert_close(decoder.logits(prompt_hidden[-1:]), io[f"e{i}.prompt_logits_last"], f"e{i} logits of the prompt")
        context.text = [0]
        steps: list[torch.Tensor] = []
        (answer,), _ = read_answers(decoder, config, context, [prompt], [event["max_new"]], {END_TOKEN}, steps)
        assert answer == io[f"e{i}.answer_ids"].tolist()
        assert_close(torch.cat(steps), io[f"e{i}.decode_logits"], f"e{i} logits")

        (whole,) = answer_questions(
            decoder,
            config,
            [
                TokenQuestion(
                    stream=view,
                    question_ids_n=question,
                    prompt_ids_n=prompt,
                    max_new_tokens=event["max_new"],
                    frames=event["external"],
                )
            ],
            {END_TOKEN},
        )
        assert (whole.status, whole.tokens) == ("ok", answer)
    _assert_final_state(stream, store.reader(), io, decoder.heads // decoder.groups)


def _assert_first_layer_context(stream: StreamView, frames: torch.Tensor, io: dict[str, torch.Tensor], i: int) -> None:
    for name, sinks, row in (("k", stream.prefix.keys_LGSD, 0), ("v", stream.prefix.values_LGSD, 1)):
        blocks = stream.blocks.gather(0, frames)[row].transpose(0, 1).flatten(1, 2)
        assert_close(torch.cat((sinks[0], blocks), dim=1), io[f"e{i}.l0_retrieved_{name}"][0], f"e{i} context {name}")


def _assert_final_state(stream: StreamState, bank: TensorReader, io: dict[str, torch.Tensor], heads_per_group: int) -> None:
    """Blocks, sinks and the (un-rotated) window: the window's values, and its keys through the blocks they came from."""
    layers = range(stream.prefix.keys_LGSD.shape[0])
    every = torch.arange(stream.frames)
    for layer in layers:
        if io["final.block_k"].numel():
            blocks_ND = bank.representatives(layer).repeat_interleave(heads_per_group, dim=1).flatten(1)
            assert_close(blocks_ND, io["final.block_k"][layer], f"representatives of layer {layer}")
        for name, sinks, row in (("k", stream.prefix.keys_LGSD, 0), ("v", stream.prefix.values_LGSD, 1)):
            if io[f"final.init_{name}"].numel():
                assert_close(sinks[layer], io[f"final.init_{name}"][layer, 0], f"sinks {name} of layer {layer}")
            blocks = bank.gather(layer, every)[row].transpose(0, 1).flatten(1, 2)
            seen = torch.cat((sinks[layer], blocks), dim=1)
            local = io[f"final.local_{name}"][layer, 0]
            assert_close(seen[:, seen.shape[1] - local.shape[1] :], local, f"window {name} of layer {layer}")
        window = stream.window.values_LGCD[layer, :, : stream.window.filled]
        local = io["final.local_v"][layer, 0]
        kept = min(window.shape[1], local.shape[1])
        assert_close(window[:, -kept:], local[:, -kept:], f"window buffer of layer {layer}")
