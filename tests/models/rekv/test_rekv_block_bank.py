"""Over BlockBank instead of the plain store: the same answers from any tiers, while encoding goes on, with old frames gone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rekv_models import PREFIX, SMALL, TOKENS, encoded, features, seen, tiny_decoder
from torch import Tensor

from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenAnswer, TokenQuestion, answer_questions
from models.rekv.session import StreamState, StreamView, open_stream, rebuild_window
from models.rekv.store import ReadableBlocks
from operators.banks.block_bank import BlockBank
from operators.banks.blocks.spec import BlockSpec

FRAMES = features(20)
QUESTION, PROMPT = torch.tensor([21, 22, 23]), torch.tensor([31, 21, 22, 23, 33, 34])
PLENTY = 64 << 20


class SlotWriter:
    """One slot of a bank as encoding writes to it."""

    def __init__(self, bank: BlockBank, slot: int) -> None:
        self.bank, self.slot = bank, slot

    def append(self, layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, representatives_NGD: Tensor) -> None:
        self.bank.append_layer(layer, [self.slot], keys_NGTD[None], values_NGTD[None], representatives_NGD[None])


def bank_of(decoder: TextDecoder, **budgets: Any) -> BlockBank:
    spec = BlockSpec(layers=decoder.layers, groups=decoder.groups, tokens=TOKENS, dim=decoder.dim)
    bank = BlockBank(spec, slots=2, **({"device_bytes": PLENTY} | budgets))
    bank.open([0, 1], [11, 12])
    return bank


def stream_in(decoder: TextDecoder, bank: BlockBank, slot: int) -> StreamState:
    prefix, grid = encode_prefix(decoder, PREFIX), decoder.grid(TOKENS)
    return open_stream(decoder, SMALL, prefix, grid, SlotWriter(bank, slot))


def ask(decoder: TextDecoder, stream: StreamState, blocks: ReadableBlocks) -> TokenAnswer:
    view = StreamView(stream.prefix, stream.grid, blocks)
    question = TokenQuestion(stream=view, question_ids_n=QUESTION, prompt_ids_n=PROMPT, max_new_tokens=6)
    return answer_questions(decoder, SMALL, [question], set())[0]


def plain(decoder: TextDecoder, frames: Tensor) -> TokenAnswer:
    stream = encoded(decoder, SMALL, frames)
    return ask(decoder, stream, seen(stream).blocks)


@pytest.mark.parametrize("tiers", ["device", "host", "disk", "device and host", "all"])
def test_tiers_change_no_bit_of_scores_and_answers(tiers: str, tmp_path: Path) -> None:
    decoder = tiny_decoder()
    block = bank_of(decoder).block_bytes
    few, many = 12 * block, 60 * block  # few: representatives of all blocks, and some blocks
    budgets: dict[str, dict[str, Any]] = {
        "device": {},
        "host": {"device_bytes": few, "host_bytes": many},
        "disk": {"device_bytes": few, "disk_bytes": 2 * many, "disk_folder": tmp_path},
        "device and host": {"device_bytes": 2 * few, "host_bytes": many},
        "all": {"device_bytes": few, "host_bytes": 2 * few, "disk_bytes": 2 * many, "disk_folder": tmp_path},
    }
    bank = bank_of(decoder, **budgets[tiers])
    stream, wanted = stream_in(decoder, bank, 1), plain(decoder, FRAMES)
    encode_frames(decoder, SMALL, [stream], [FRAMES])
    for _ in range(2):
        with bank.reader(1) as blocks:
            got = ask(decoder, stream, blocks)
        assert got.tokens == wanted.tokens
        assert all(torch.equal(a, b) for a, b in zip(got.retrieved, wanted.retrieved, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(got.scores, wanted.scores, strict=True))
    bank.close()


def test_a_question_sees_what_was_there_when_it_came_while_encoding_goes_on() -> None:
    decoder = tiny_decoder()
    bank = bank_of(decoder)
    stream = stream_in(decoder, bank, 0)
    encode_frames(decoder, SMALL, [stream], [FRAMES[:9]])
    with bank.reader(0) as blocks:
        encode_frames(decoder, SMALL, [stream], [FRAMES[9:]])
        got = ask(decoder, stream, blocks)
    wanted = plain(decoder, FRAMES[:9])
    assert (got.tokens, got.frames_seen) == (wanted.tokens, 9)
    with bank.reader(0) as blocks:
        assert ask(decoder, stream, blocks).tokens == plain(decoder, FRAMES).tokens


def test_encoding_goes_on_bit_for_bit_from_the_bank_alone() -> None:
    decoder = tiny_decoder()
    bank = bank_of(decoder)
    stream = stream_in(decoder, bank, 0)
    encode_frames(decoder, SMALL, [stream], [FRAMES[:11]])
    again = stream_in(decoder, bank, 0)
    with bank.reader(0) as blocks:
        rebuild_window(decoder, SMALL, again, blocks)
    encode_frames(decoder, SMALL, [again], [FRAMES[11:]])
    with bank.reader(0) as blocks:
        got = ask(decoder, again, blocks)
    wanted = plain(decoder, FRAMES)
    assert all(torch.equal(a, b) for a, b in zip(got.scores, wanted.scores, strict=True))
    assert got.tokens == wanted.tokens


def test_frames_keep_their_numbers_when_the_oldest_are_gone() -> None:
    decoder = tiny_decoder()
    bank = bank_of(decoder, blocks_per_stream=12, on_full="drop_oldest")
    stream = stream_in(decoder, bank, 0)
    encode_frames(decoder, SMALL, [stream], [FRAMES])
    with bank.reader(0) as blocks:
        got = ask(decoder, stream, blocks)
        assert (blocks.first, blocks.below) == (8, 20)
    wanted = plain(decoder, FRAMES)
    assert got.frames_seen == 20
    assert all(len(scores) == 12 for scores in got.scores)
    assert torch.equal(got.scores[0], wanted.scores[0][8:])
    best = got.scores[0].topk(SMALL.retrieve_frames).indices + 8
    assert got.retrieved[0].tolist() == sorted(best.tolist())
