"""The golden vectors of the methods on a device: how far its results are from the recorded ones, beside what is allowed there.

Cases and their readers are those of ``tests/golden``; allowed is what the tests allow a CPU. Products are computed in float32
here, not in TensorFloat-32. Needs no pytest. Part of ``python -m benchmarks.gpu``.
"""

# B rows, P positions, K codes

from __future__ import annotations

import importlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["check_golden"]

_TESTS = Path(__file__).resolve().parent.parent / "tests"

Found = tuple[str, Tensor, Any, float]
"""What was compared, the result, what is recorded, and the largest difference that is allowed."""


def check_golden(device: torch.device) -> list[dict[str, Any]]:
    """Return a row per method: the comparison that comes nearest to what is allowed, and whether all hold."""
    before, paths = torch.backends.cudnn.allow_tf32, list(sys.path)
    torch.backends.cudnn.allow_tf32 = False
    sys.path[:0] = [str(_TESTS / "support"), *(str(_TESTS / "golden" / name) for name in _METHODS)]
    try:
        return [_row(name, method(device)) for name, method in _METHODS.items()]
    finally:
        torch.backends.cudnn.allow_tf32, sys.path[:] = before, paths


@torch.inference_mode()
def _row(name: str, found: Iterator[Found]) -> dict[str, Any]:
    worst, compared = ("", 0.0, 0.0, -1.0), 0
    for what, got, wanted, allowed in found:
        wanted = torch.as_tensor(wanted).double().squeeze()
        got = got.detach().double().cpu().squeeze()
        if got.shape != wanted.shape:
            raise ValueError(f"{name} {what}: {list(got.shape)} instead of {list(wanted.shape)}")
        off = float((got - wanted).abs().max()) if wanted.numel() else 0.0
        compared += 1
        share = off / allowed if allowed else float(off > 0) * 2
        if not share <= worst[3]:  # not a number is the worst of all
            worst = (what, off, allowed, share)
    if not compared:
        raise ValueError(f"{name}: {_TESTS / 'golden' / name} has no case")
    what, off, allowed, share = worst
    return {"method": name, "comparisons": compared, "worst": what, "off": off, "allowed": allowed, "holds": share <= 1}


def _cases(method: str, *kinds: str) -> Any:
    golden = importlib.import_module("golden_cases")
    return [path for path in golden.cases(method, kinds[0], kinds[1:]) if _TESTS in path.parents]


def _largest(wanted: Any) -> float:
    return max(1.0, float(np.abs(np.asarray(wanted)).max(initial=0.0)))


def _mamba(device: torch.device) -> Iterator[Found]:
    from models.mamba.attention import Attention

    cases = importlib.import_module("mamba_cases")
    layers = {"query": "fc_embed", "key": "ref_fc_embed", "value": "ref_fc", "output": "fc"}
    for path in _cases("mamba", ".npz", *cases.ATTENTION):
        arrays = dict(np.load(path))
        for case in sorted({name.split("_")[0] for name in arrays if name.startswith("agg")}):
            x, keys = (torch.from_numpy(arrays[f"{case}_{name}"])[None].to(device) for name in ("x", "keys"))
            attention = Attention(x.shape[-1], int(arrays[f"{case}_heads"]))
            for ours, theirs in layers.items():
                for part in ("weight", "bias"):
                    getattr(getattr(attention, ours), part).data = torch.from_numpy(arrays[f"{case}_p.{theirs}.{part}"])
            attention = attention.to(device)
            wanted = arrays[f"{case}_out"]
            yield f"{case} attention", attention(x, keys)[0], wanted, cases.ATOL * _largest(wanted)
            exact = attention.double()(x.double(), keys.double())[0]
            yield f"{case} attention in float64", exact, arrays[f"{case}_out_f64"], 1e-10 * _largest(wanted)


def _rekv(device: torch.device) -> Iterator[Found]:
    from models.rekv.answering import Request, read_text, retrieve
    from models.rekv.encoding import encode_frames, encode_prefix
    from models.rekv.loaders import load_model
    from models.rekv.session import StreamView, open_stream
    from models.rekv.store import TensorStore

    cases, golden = importlib.import_module("rekv_cases"), importlib.import_module("golden_cases")
    for path in _cases("rekv", ".json", *cases.STREAM):
        case, io = golden.read_json(path), cases.vectors(path)
        config = cases.rekv_config(case)
        with tempfile.TemporaryDirectory() as folder:
            cases.tiny_model(path, case, Path(folder))  # writes it
            model = load_model(folder, config, device=device, dtype=torch.float32)
        decoder, store = model.decoder, TensorStore(model.decoder.layers)
        prefix = encode_prefix(decoder, io["init_ids"][0])
        stream = open_stream(decoder, config, prefix, decoder.grid(case["rekv"]["tokens_per_frame"]), store)
        for i, event in enumerate(case["events"]):
            where = f"{path.stem} event {i}"
            if event["type"] == "video":
                features = model.frames(io[f"e{i}.frames"])
                (hidden,) = encode_frames(decoder, config, [stream], [features], outputs=True)
                wanted = io[f"e{i}.encode_hidden"][0]
                yield f"{where} encoding", hidden, wanted, cases.ATOL + cases.RTOL * _largest(wanted)
            elif event["external"] is None:
                view, prompt = StreamView(prefix, stream.grid, store.reader()), io[f"e{i}.prompt_ids"]
                requests = [Request(view, io[f"e{i}.question_ids"])]
                context, _ = retrieve(decoder, config, requests, len(prompt) + event["max_new"])
                for layer in range(decoder.layers):
                    wanted = io[f"e{i}.retrieved"][layer]
                    yield f"{where} frames of layer {layer}", context.frames[layer][0], wanted[wanted >= 0], 0.0
                (hidden,) = read_text(decoder, config, context, [prompt])
                wanted = io[f"e{i}.prompt_logits_last"]
                yield f"{where} logits", decoder.logits(hidden[-1:]), wanted, cases.ATOL + cases.RTOL * _largest(wanted)


def _videostreaming(device: torch.device) -> Iterator[Found]:
    from models.videostreaming.encoding import Clip, encode_clips, encode_questions

    cases = importlib.import_module("videostreaming_cases")
    for path in _cases("videostreaming", ".npz", *cases.CASE):
        sizes, weights, case = cases.read_case(path)
        model, memory, memories, indicators = cases.model_of(sizes, weights).to(device), None, [], []
        for features, time_ids in zip(case["clip_features"], case["time_ids"], strict=True):
            (encoded,) = encode_clips(model, [Clip(features, cases.real(time_ids), memory)])
            memory = encoded.memory_MD
            memories.append(memory)
            indicators.append(encoded.indicator_D)
        yield "memories", torch.stack(memories), case["memory"], cases.ATOL
        yield "indicators", torch.stack(indicators), case["clip_indicator"], cases.ATOL
        (asked_D,) = encode_questions(model, [memory], [case["question_ids"]])
        yield "the question's indicator", asked_D, case["question_indicator"], cases.ATOL


def _memprompttss(device: torch.device) -> Iterator[Found]:
    cases = importlib.import_module("memprompttss_cases")
    for path in _cases("memprompttss", ".npz", *cases.PERSEUS):
        case = cases.read_case(path)
        x_BTC = case.windows()[:, 0].to(device)
        for reading in case.readings:
            wanted = case.arrays[f"w0_ts_tokens_{reading}"]
            tokens = case.network(reading).to(device).ts_encoder(x_BTC)
            yield f"{path.stem} {reading} tokens", tokens, wanted, 2 * cases.TOLERANCE * _largest(wanted)


def _prompttpp(device: torch.device) -> Iterator[Found]:
    from models.prompttpp.integral import shares

    cases = importlib.import_module("prompttpp_cases")
    for path in _cases("prompttpp", ".npz", *cases.CAUSAL):
        case = cases.PromptCase(path, torch.float64)
        model = case.model.to(device)
        for row, (time, kind) in enumerate(case.sequences()):
            lag = (time.diff(dim=1)[:, :, None] * shares(case.samples, "trapezoid")).to(device)
            run = model.run(time[:, :-1].to(device), kind[:, :-1].to(device), lag)
            wanted = case.arrays[f"causal.{row}.lambda"]
            yield f"{path.stem} rates of row {row}", run.rate_BLGK[0], wanted, 1e-9 * _largest(wanted)


def _reloop2(device: torch.device) -> Iterator[Found]:
    cases, golden = importlib.import_module("reloop2_model_cases"), importlib.import_module("golden_cases")
    for path in _cases("reloop2", ".npz", *cases.NETWORK):
        arrays = golden.read_npz(path)
        columns = {name: column.to(device) for name, column in cases.inputs(arrays).items()}
        hidden_BD, logit_B = cases.network(arrays).to(device)(columns)
        scale = float(np.abs(arrays["out/h"]).max())
        yield f"{path.stem} hidden vectors", hidden_BD, arrays["out/h"], cases.TOLERANCE * scale
        yield f"{path.stem} probabilities", logit_B.sigmoid(), arrays["out/y_base"].reshape(-1), cases.TOLERANCE


def _specvqgan(device: torch.device) -> Iterator[Found]:
    from models.specvqgan.checkpoint import load_transformer, load_vocoder
    from models.specvqgan.sampling import generate
    from models.specvqgan.tokens import sequence_of

    cases, golden = importlib.import_module("specvqgan_cases"), importlib.import_module("golden_cases")
    for path in _cases("specvqgan", ".npz", *cases.TRANSFORMER):
        case, file = cases.tensors(path), cases.sound_file(path, "transformer")
        model = load_transformer(file, heads=cases.header(file)["gpt"]["n_head"])
        autoencoder, transformer = model.autoencoder.to(device), model.transformer.to(device)
        target_BN = sequence_of(autoencoder.encode(case["x"].to(device)))
        yield "tokens of the autoencoder", target_BN, case["target"], 0.0
        logits_BPK = transformer(case["feats_BDT"].to(device), target_BN[:, :-1])[:, transformer.config.features - 1 :]
        yield "first logits", logits_BPK[:, :8], case["train_logits_first8"], 1e-4
        yield "last logits", logits_BPK[:, -8:], case["train_logits_last8"], 1e-4
    for path in _cases("specvqgan", ".npz", *cases.LONG):
        case, file = cases.tensors(path), cases.sound_file(path, "longsample")
        network = load_transformer(file, heads=cases.header(file)["gpt"]["n_head"]).transformer.to(device)
        wanted, noise = case["tokens_colmajor"], case["exp_noise"].to(device)
        made = generate(
            network, case["feats_BDT"].to(device), wanted.shape[1] // 5, noise=noise.__getitem__, top_k=int(case["top_k"])
        )
        yield "tokens of a sliding window", made, wanted, 0.0
    for path in _cases("specvqgan", ".npz", *cases.VOCODER):
        case = cases.tensors(path)
        vocoder = load_vocoder(golden.sibling(path, "melgan", "melgan", ".safetensors")).to(device)
        yield "samples of the vocoder", vocoder(case["mel"].to(device)), case["wav"], 1e-5


def _fourd_vla(device: torch.device) -> Iterator[Found]:
    from models.fourd_vla.geometry import depth_meters, unproject
    from models.fourd_vla.losses import action_losses
    from models.fourd_vla.sampling import likeness, window

    cases, golden = importlib.import_module("fourd_vla_cases"), importlib.import_module("golden_cases")
    for path in _cases("fourd_vla", ".npz", *cases.GEOMETRY):
        arrays, config = golden.read_npz(path), golden.read_json(golden.sibling(path, "case", "config", ".json"))
        name = next(name for name in arrays if re.fullmatch(r"depth_stride\d+", name))
        stride = int(name.removeprefix("depth_stride"))
        camera_B33, pose_B44 = (torch.from_numpy(arrays[matrix])[None].to(device) for matrix in ("K", "T_wc"))
        camera_B33[:, :2] /= stride  # pixel (u, v) of what is given is pixel (stride u, stride v)
        depth_BHW = torch.from_numpy(arrays[name].astype(np.int32))[None].to(device)
        scale_B = torch.tensor([float(config["depth_scale"])], device=device)
        depth_BHW, valid_BHW = depth_meters(depth_BHW, scale_B, config["depth_trunc"])
        points_BHW3 = unproject(depth_BHW, camera_B33, pose_B44)
        yield f"{path.stem} points", points_BHW3[valid_BHW], arrays[f"points_stride{stride}"], 1e-5
    for path in _cases("fourd_vla", ".npz", *cases.SAMPLING):
        arrays = golden.read_npz(path)
        for mode, name, n, k in cases.traces(arrays):
            if mode != "window":  # those go step by step by the same function
                continue
            alike_TT = likeness(torch.from_numpy(arrays[f"feat_{name}"])[None].to(device))[0]
            at_TN = (torch.arange(len(alike_TT))[:, None] - torch.arange(min(n, len(alike_TT)))).clamp_min(0)
            there_TN = at_TN.to(device)
            alike_TNN, count_T = alike_TT[there_TN[:, :, None], there_TN[:, None, :]], torch.arange(1, len(alike_TT) + 1)
            kept_TN = window(alike_TNN, count_T.clamp_max(n).to(device), k).cpu()
            wanted = arrays[f"{mode}_{name}_n{n}_k{k}"]
            kept_TT = torch.zeros(len(alike_TT), len(alike_TT) + 1)  # the last column stands for what is no frame
            wanted_TT = kept_TT.clone()
            kept_TT.scatter_(1, torch.where(kept_TN, at_TN, len(alike_TT)), 1.0)
            wanted_TT.scatter_(1, torch.from_numpy(np.where(wanted < 0, len(alike_TT), wanted)).long(), 1.0)
            yield f"{path.stem} frames kept of {name}, n={n}, k={k}", kept_TT[:, :-1], wanted_TT[:, :-1], 0.0
    for path in _cases("fourd_vla", ".npz", *cases.LOSSES):
        arrays = golden.read_npz(path)
        names = ("dx_pred", "dr_pred", "grip_logit", "dx", "dr", "grip")
        terms = action_losses(*(torch.from_numpy(arrays[f"loss_{name}"]).to(device) for name in names))
        found = torch.stack([terms[name] for name in ("translation", "rotation", "gripper", "direction")])
        wanted = arrays["loss_terms"]
        yield f"{path.stem} losses", found, wanted, 1e-9 + 1e-7 * float(np.abs(wanted).min())


_METHODS: dict[str, Callable[[torch.device], Iterator[Found]]] = {
    "mamba": _mamba,
    "rekv": _rekv,
    "videostreaming": _videostreaming,
    "memprompttss": _memprompttss,
    "prompttpp": _prompttpp,
    "reloop2": _reloop2,
    "specvqgan": _specvqgan,
    "fourd_vla": _fourd_vla,
}
