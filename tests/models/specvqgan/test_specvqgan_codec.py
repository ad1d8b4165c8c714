"""Sound as tokens: bits, blocks in any chunks, the whole way to sound and back."""

import math

import numpy as np
import pytest
import torch

from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.codec import (
    BlockStream,
    bit_rate,
    bits_of,
    decode_blocks,
    encode_blocks,
    pack_tokens,
    sound_of_mels,
    unpack_tokens,
)
from models.specvqgan.config import AutoencoderConfig, VocoderConfig
from models.specvqgan.mel import one_shot_mel
from models.specvqgan.vocoder import Vocoder

SMALL = AutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1, 1), blocks=1, z_channels=8, code_width=8, codes=16)


@pytest.mark.parametrize("codes", [2, 16, 17, 128, 1000, 1024])
def test_tokens_are_packed_without_loss(codes: int) -> None:
    random = np.random.default_rng(codes)
    for columns in (1, 7, 53):
        tokens = torch.from_numpy(random.integers(0, codes, 5 * columns))
        payload = pack_tokens(tokens, codes)
        assert len(payload) == math.ceil(5 * columns * math.ceil(math.log2(codes)) / 8)
        as_text = "".join(f"{int(token):0{bits_of(codes)}b}" for token in tokens)
        assert "".join(f"{byte:08b}" for byte in payload).startswith(as_text)
        assert torch.equal(unpack_tokens(payload, columns, codes), tokens)
    assert bit_rate(1024) == pytest.approx(269.2, abs=0.05)


def test_payloads_that_are_not_those_of_the_codebook_are_refused() -> None:
    payload = pack_tokens(torch.tensor([999, 1, 2, 3, 4]), 1000)
    with pytest.raises(ValueError, match="token 999 is not in a codebook of 900"):
        unpack_tokens(payload, 1, 900)
    with pytest.raises(ValueError, match="7 bytes of tokens for 2 columns of 5 x 10 bits; 13 are needed"):
        unpack_tokens(payload, 2, 1000)
    with pytest.raises(ValueError, match="0 bytes of tokens for 0 columns"):
        unpack_tokens(b"", 0, 1000)


@pytest.mark.parametrize("count", [1, 300, 4096, 3 * 4096 - 1, 3 * 4096, 8 * 4096 + 100])
def test_blocks_do_not_depend_on_chunks_and_hold_every_sample(count: int) -> None:
    random = np.random.default_rng(count)
    samples = torch.from_numpy(random.uniform(-1, 1, count).astype(np.float32))
    mel = one_shot_mel(samples)
    for _ in range(3):
        stream, blocks = BlockStream(columns=3), []
        for part in torch.tensor_split(samples, sorted(random.integers(0, count + 1, 5).tolist())):
            blocks += stream.push(part)
            assert len(stream.waiting_TM) < 48
        blocks += stream.finish()
        assert [block.start for block in blocks] == [i * 3 * 4096 for i in range(len(blocks))]
        assert sum(block.samples for block in blocks) == count and all(block.samples > 0 for block in blocks)
        joined = torch.cat([block.mel_MT for block in blocks], dim=1)
        assert torch.equal(joined, mel[:, : joined.shape[1]]) and mel.shape[1] - joined.shape[1] <= 1
    assert BlockStream().finish() == []


def test_sound_goes_through_tokens_and_back_at_its_length() -> None:
    torch.manual_seed(0)
    model, vocoder = Autoencoder(SMALL).eval(), Vocoder(VocoderConfig(channels=2)).eval()
    samples = 0.3 * torch.sin(torch.arange(20_000) / 9)
    stream = BlockStream(columns=2)
    blocks = stream.push(samples) + stream.finish()
    mels = [block.mel_MT for block in blocks]
    tokens = encode_blocks(model, mels)
    assert [len(each) for each in tokens] == [10, 10, 5]
    for mel, each in zip(mels, tokens, strict=True):  # a block stands for itself
        assert torch.equal(encode_blocks(model, [mel])[0], each)
    stored = [(pack_tokens(each, 16), len(each) // 5) for each in tokens]
    made = decode_blocks(model, [unpack_tokens(payload, columns, 16) for payload, columns in stored])
    assert all(mel.shape == (80, 16 * columns) for mel, (_, columns) in zip(made, stored, strict=True))
    assert all(float(mel.min()) >= 0 and float(mel.max()) <= 1 for mel in made)
    sound = sound_of_mels(vocoder, made, stream.mel.samples)
    with torch.inference_mode():
        whole = vocoder(torch.cat(made, dim=1)[None])[0, :20_000]
    assert len(sound) == 20_000
    torch.testing.assert_close(sound, whole, atol=1e-5, rtol=0)
