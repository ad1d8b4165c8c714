"""Claim: one frame and one answer each take at most a fifth of the time of the published procedure taken literally.

8 layers, hidden 256, 196 tokens per frame, window 5,000, 16 retrieved frames, one thread, random weights; the same decoder and
the same rules on both sides, so both give the same numbers (checked first). The plain side (spec: sections 3 and 4) keeps
un-rotated keys, puts window and frame together again for every frame, repeats the shared heads, rotates all of it, attends in
the stages of the published PyTorch attention (logits of window and of sinks, each masked and scaled; one softmax; masked again
and summed up), runs the vocabulary head on every token, and loads blocks one by one for the question and again for the prompt.
Both sides take turns, so that a busy machine slows both, and the processor's time counts.

    python -m benchmarks.rekv_speed [--frames 40] [--repeats 5]
"""

# H query heads, G key/value heads, S prefix tokens, T tokens per frame, M keys, n queries, D head dim, C hidden size

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import machine
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames, encode_prefix
from models.rekv.generate import TokenQuestion, answer_questions
from models.rekv.session import StreamView, open_stream
from models.rekv.store import TensorStore

NEEDED = 5.0
TOKENS, HIDDEN, LAYERS = 196, 256, 8
VOCABULARY = 12_000  # a head of 0.4 of the decoder's linear layers, as that of the 0.5B model is
CONFIG = ReKVConfig(window_tokens=5000, retrieve_frames=16, encode_frames=1)
QUESTION, PROMPT, NEW_TOKENS = 64, 64, 128  # the paper's measuring rule


class PlainRun:
    """The published procedure, literally: a stream and its questions."""

    def __init__(self, decoder: TextDecoder, head: nn.Module) -> None:
        self.decoder, self.head = decoder, head
        empty = torch.empty(decoder.groups, 0, decoder.dim)
        self.window = [(empty, empty) for _ in range(decoder.layers)]
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.blocks: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(decoder.layers)]
        self.means: list[list[Tensor]] = [[] for _ in range(decoder.layers)]
        self.context: list[tuple[Tensor, Tensor]] = []
        self.mode, self.seen = "prefix", 0
        # As the published rotation does: cosines of all positions are worked out once.
        self.table = decoder.rotary.turn(torch.arange(2 * CONFIG.window_tokens)[None])

    @torch.inference_mode()
    def encode(self, embeds_nC: Tensor, mode: str = "frame") -> None:
        self.mode = mode
        self.head(self.decoder.run(embeds_nC, self))  # the published code runs the head on every token
        self.seen += len(embeds_nC)

    @torch.inference_mode()
    def answer(self, question: Tensor, prompt: Tensor, new_tokens: int) -> list[int]:
        self.mode, self.context = "question", []
        self.decoder.run(self.decoder.embed(question), self)
        # The question's tokens leave the context; the chosen blocks are loaded again.
        self.context = [self._load(layer, chosen) for layer, chosen in enumerate(self.chosen)]
        self.mode, text, answer = "text", prompt, []
        for _ in range(new_tokens):
            logits = self.head(self.decoder.run(self.decoder.embed(text), self))
            answer.append(int(logits[-1].argmax()))
            text = torch.tensor(answer[-1:])
        return answer

    def layer(self, index: int, query_HnD: Tensor, key_GnD: Tensor, value_GnD: Tensor, scale: float) -> Tensor:
        if self.mode in ("prefix", "frame"):
            past = self.window[index]
            keys, values = torch.cat((past[0], key_GnD), dim=1), torch.cat((past[1], value_GnD), dim=1)
            if self.mode == "prefix":
                self.prefix.append((key_GnD, value_GnD))
            else:
                self.blocks[index].append((key_GnD.clone(), value_GnD.clone()))
                self.means[index].append(self._repeat(key_GnD).mean(dim=1).flatten())
            output = self._attend(index, query_HnD, keys, values, scale, self.seen + key_GnD.shape[1])
            window = CONFIG.window_tokens
            self.window[index] = keys[:, -window:].clone(), values[:, -window:].clone()
            return output
        if self.mode == "question":
            if index == 0:
                self.chosen: list[list[int]] = []
            scores = torch.stack(self.means[index]) @ query_HnD.mean(dim=1).flatten()
            self.chosen.append(sorted(scores.topk(min(CONFIG.retrieve_frames, len(scores))).indices.tolist()))
            self.context.append(self._load(index, self.chosen[-1]))
        past = self.context[index]
        keys, values = torch.cat((past[0], key_GnD), dim=1), torch.cat((past[1], value_GnD), dim=1)
        self.context[index] = keys, values
        return self._attend(index, query_HnD, keys, values, scale, keys.shape[1])

    def _load(self, index: int, chosen: list[int]) -> tuple[Tensor, Tensor]:
        rows = []
        for part in (0, 1):
            context = self.prefix[index][part]
            length, width = context.shape[1], TOKENS
            buffer = torch.empty(len(context), length + width * len(chosen), context.shape[2])
            buffer[:, :length] = context
            for place, block in enumerate(chosen):
                start = length + place * width
                buffer[:, start : start + width].copy_(self.blocks[index][block][part])
            rows.append(buffer)
        return rows[0], rows[1]

    def _repeat(self, x_GnD: Tensor) -> Tensor:
        return x_GnD.repeat_interleave(self.decoder.heads // len(x_GnD), dim=0)

    def _attend(self, index: int, query_HnD: Tensor, keys: Tensor, values: Tensor, scale: float, total: int) -> Tensor:
        keys_HMD, values_HMD = self._repeat(keys), self._repeat(values)
        n, many, window = query_HnD.shape[1], keys_HMD.shape[1], CONFIG.window_tokens
        turn = self.table[:many]
        distance = torch.arange(many - n, many)[:, None] - torch.arange(many)
        stages = [self._stage(turn[many - n :](query_HnD), turn(keys_HMD), (distance >= 0) & (distance < window), scale)]
        values = [values_HMD]
        sinks = min(max(total - window, 0), self.prefix[index][0].shape[1]) if self.mode != "prefix" else 0
        if sinks and self.mode == "frame":
            sink_keys, sink_values = (self._repeat(x[:, :sinks]) for x in self.prefix[index])
            everything = torch.ones(n, sinks, dtype=torch.bool)
            stages.append(self._stage(self.table[window - 1 : window](query_HnD), sink_keys, everything, scale))
            values.append(sink_values)
        weights = torch.cat([logits for logits, _ in stages], dim=-1).softmax(dim=-1)
        output, start = torch.zeros_like(query_HnD), 0
        for (logits, seen), part in zip(stages, values, strict=True):
            stop = start + logits.shape[-1]
            output += weights[:, :, start:stop].masked_fill(~seen, 0) @ part
            start = stop
        return output

    def _stage(self, query_HnD: Tensor, keys_HMD: Tensor, seen_nM: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        logits_HnM = (query_HnD @ keys_HMD.transpose(1, 2)).masked_fill(~seen_nM, -torch.inf)
        return logits_HnM.mul_(scale), seen_nM


def build() -> tuple[TextDecoder, nn.Module]:
    """Return a random decoder of the claim's size and its model."""
    import transformers

    torch.manual_seed(0)
    settings = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    model = transformers.Qwen2ForCausalLM(settings).eval().requires_grad_(False)
    return TextDecoder.of(model.model, model.lm_head, CONFIG), model


def main() -> int:
    """Fill both windows, check that both sides agree, measure in turns, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (decoder, _), (plain_decoder, plain_model) = build(), build()
    decoder.pack()  # as the operator does
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(0, VOCABULARY, (14,), generator=generator)
    frames = torch.randn(arguments.frames + arguments.repeats, TOKENS, HIDDEN, generator=generator)
    question, prompt = (torch.randint(0, VOCABULARY, (n,), generator=generator) for n in (QUESTION, PROMPT))

    store = TensorStore(LAYERS)
    ours = open_stream(decoder, CONFIG, encode_prefix(decoder, prefix), decoder.grid(TOKENS), store)
    plain = PlainRun(plain_decoder, plain_model.lm_head)
    plain.encode(decoder.embed(prefix), "prefix")
    times: dict[str, list[float]] = {name: [] for name in ("frame", "frame_plain", "answer", "answer_plain")}

    def ask() -> list[int]:
        view = StreamView(ours.prefix, ours.grid, store.reader())
        asked = TokenQuestion(stream=view, question_ids_n=question, prompt_ids_n=prompt, max_new_tokens=NEW_TOKENS)
        return answer_questions(decoder, CONFIG, [asked], ())[0].tokens

    for number, frame_TC in enumerate(frames):
        measured = number >= arguments.frames
        spent = _timed(partial(encode_frames, decoder, CONFIG, [ours], [frame_TC[None]]))
        spent_plain = _timed(partial(plain.encode, frame_TC))
        if measured:
            times["frame"].append(spent)
            times["frame_plain"].append(spent_plain)
    keys = torch.stack([store.reader().gather(layer, torch.tensor([number]))[0][0] for layer in range(LAYERS)])
    wanted = torch.stack([plain.blocks[layer][number][0] for layer in range(LAYERS)])
    difference = float((keys - wanted).abs().max())
    same = ask() == plain.answer(question, prompt, NEW_TOKENS)
    for _ in range(arguments.repeats):
        times["answer"].append(_timed(ask))
        times["answer_plain"].append(_timed(lambda: plain.answer(question, prompt, NEW_TOKENS)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: medians[f"{name}_plain"] / medians[name] for name in ("frame", "answer")}
    for name, ratio in ratios.items():
        print(f"{name}: {medians[name]:.3f} s, plain {medians[f'{name}_plain']:.3f} s, {ratio:.1f} times (needed {NEEDED})")
    print(f"same tokens: {same}; largest difference of the last frame's keys: {difference:.1e}")
    holds = same and difference < 1e-3 and min(ratios.values()) >= NEEDED
    document = {"seconds": medians, "ratio": ratios, "needed": NEEDED, "same_tokens": same, "key_difference": difference}
    document |= {"frames_before": arguments.frames, "repeats": arguments.repeats, "times": times, "holds": holds}
    print("written:", machine.write("rekv_speed", document))
    return int(not holds)


def _timed(run: Callable[[], object]) -> float:
    """Return the processor seconds of this thread, which does all the work: others on the machine count less."""
    began = time.thread_time()
    run()
    return time.thread_time() - began


if __name__ == "__main__":
    sys.exit(main())
