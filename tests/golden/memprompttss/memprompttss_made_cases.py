"""Cases of the documented form in other sizes, made by the released modules written again with PyTorch's own layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.memprompttss_released import Perseus, run_released


def make_case(folder: Path, seed: int, *, batch: int, context: int, activation: str, patch: tuple[int, int]) -> Path:
    """Write one case; return its ``_io.npz``."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    length, step = patch
    window, stride, windows, rounds, each = length + 5 * step, int(rng.integers(step, 3 * step)), 3, 2, 3
    sizes = {"channels": int(rng.integers(1, 5)), "classes": int(rng.integers(2, 7)), "width": 8 * int(rng.integers(1, 4))}
    sizes |= {"heads": int(rng.choice([1, 2, 4])), "encoder_layers": int(rng.integers(1, 4)), "memory_layers": 2}
    sizes |= {"decoder_blocks": int(rng.integers(1, 4)), "patch": length, "patch_stride": step}
    total = max((windows - 1) * stride + window, context)
    windows = (total - window) // stride + 1
    K = sizes["classes"]
    x = torch.randn(batch, total, sizes["channels"]).cumsum(1)
    y = torch.randint(0, K, (batch, total))
    center = torch.randint(context // 2, total - context + context // 2 + 1, (rounds, batch, each))
    kind, aspect, bit = (torch.randint(0, 2, (rounds, batch, each)) for _ in range(3))
    state = torch.randint(0, K, (rounds, batch, each))
    label = torch.nn.functional.one_hot(state + K * aspect, 2 * K).float() * (kind == 0)[..., None]
    out: dict[str, Any] = {"subseq_x": x, "subseq_y": y, "prompt_idx": center, "prompt_types": kind, "aspect_bits": aspect}
    out |= {"label_vec": label, "boundary_bits": bit * kind}
    state_dict = None
    for axis in ("batch", "time"):
        model = Perseus(sizes, activation=activation, axis=axis, dropout=0.0)
        if state_dict is None:
            state_dict = {
                name: t + 0.1 * torch.randn_like(t) * (not name.endswith("pe")) for name, t in model.state_dict().items()
            }
        model.load_state_dict(state_dict)
        model.eval().requires_grad_(True)
        tokens, logits = [], []
        with torch.no_grad():
            first = x[:, :window]
            out["w0_revin"] = (first - first.mean(1, keepdim=True)) / (first.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            count = (window - length) // step + 1
            pieces = [out["w0_revin"][:, j * step : j * step + length].transpose(1, 2).flatten(1) for j in range(count)]
            out["w0_patches"] = torch.stack(pieces, 1)
            given = model.ts_encoder.input_layer
            out["w0_embedded"] = given.token_embedding(out["w0_patches"]) + given.position_embedding.pe[:, :count]
            out[f"w0_ts_tokens_{axis}"] = model.ts_encoder(first)
            if axis == "batch":
                out["w0_ts_tokens_batch_B1"] = torch.cat([model.ts_encoder(first[b : b + 1]) for b in range(batch)])
            for r in range(rounds):
                tokens.append(_remember(model, out, r, context))
                logits.append(run_released(model, x, torch.cat(tokens, 1), window, stride))
            out["prompt_tokens"] = torch.stack(
                [model.prompt_encoder(kind[r], label[r], out["boundary_bits"][r], aspect[r])[:, :, None] for r in range(rounds)]
            )
            out[f"memory_tokens_{axis}"], out[f"logits_{axis}"] = torch.stack(tokens), torch.stack(logits)
            out[f"w0_logits_empty_bank_{axis}"] = run_released(model, x, tokens[0][:, :0], window, stride)[:, 0]
        _train(model, out, axis, context, window, stride)
    assert state_dict is not None
    file = folder / f"made_{seed}_io.npz"
    np.savez(file, **{name: t.detach().numpy() for name, t in out.items()})
    save_file(state_dict, folder / f"made_{seed}_state_dict.safetensors")
    config = {"C": sizes["channels"], "K": K, "d_model": sizes["width"], "n_heads": sizes["heads"], "activation": activation}
    config |= {"patch_len": length, "patch_stride": step, "encoder_arch": "transformer_encoder_pytorch"}
    geometry = {"window_len": window, "window_stride": stride, "num_windows": windows, "context_len": context, "P": each}
    geometry |= {"R": rounds, "B": batch}
    text = json.dumps({"config": config, "geometry": geometry, "seed": seed})
    (folder / f"made_{seed}_config.json").write_text(text)
    return file


def _remember(model: Perseus, out: dict[str, Any], r: int, context: int) -> torch.Tensor:
    x, center = out["subseq_x"], out["prompt_idx"][r]
    around = [x[b, i - context // 2 : i - context // 2 + context] for b in range(len(x)) for i in center[b].tolist()]
    parts = [out[name][r].flatten(0, 1) for name in ("prompt_types", "label_vec", "boundary_bits", "aspect_bits")]
    return model.remember(*parts, torch.stack(around)).view(*center.shape, -1)


def _train(model: Perseus, out: dict[str, Any], axis: str, context: int, window: int, stride: int) -> None:
    """One step of AdamW on the first iteration."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    logits = run_released(model, out["subseq_x"], _remember(model, out, 0, context), window, stride)
    y = out["subseq_y"].unfold(1, window, stride)
    losses = [torch.nn.functional.cross_entropy(logits[:, w].flatten(0, 1), y[:, w].flatten()) for w in range(y.shape[1])]
    out[f"train_window_losses_{axis}"] = torch.stack(losses)
    out[f"train_loss_{axis}"] = torch.stack(losses).mean()
    out[f"train_loss_{axis}"].backward()
    out[f"train_grad_norm_{axis}"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    named = dict(model.named_parameters())
    for name in ("state_decoder.head.weight", "ts_encoder.input_layer.token_embedding.weight"):
        grad = named[name].grad
        assert grad is not None
        out[f"grad_{axis}/{name}"] = grad.clone()
    optimizer.step()
    out[f"step1_{axis}/state_decoder.head.weight"] = named["state_decoder.head.weight"].detach().clone()
