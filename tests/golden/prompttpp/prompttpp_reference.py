"""PromptAttNHP, causal, one number after the other in float64: shares nothing with the product but names of weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


def phi(t: float, dim: int) -> np.ndarray:
    out = np.zeros(dim)
    for m in range(dim // 2):
        # Frequencies of the official code: float32, by PyTorch's exponential, which rounds otherwise than NumPy's.
        w = float(torch.exp(torch.tensor(2.0 * m) * -(math.log(10000.0) / dim)))
        out[2 * m], out[2 * m + 1] = math.sin(w * t), math.cos(w * t)
    return out


def unit(x: np.ndarray) -> np.ndarray:
    return x / math.sqrt(max(float(x @ x), 1e-12))


class Causal:
    """States and rates for one sequence; ``weights`` have the official names."""

    def __init__(self, weights: Arrays, config: dict[str, Any], times: np.ndarray, types: np.ndarray) -> None:
        self.w = {name: array.astype(np.float64) for name, array in weights.items()}
        self.heads, self.layers, self.top = config["num_heads"], config["num_layers"], config["top_k"]
        self.dt, self.t = config["time_emb_size"], times
        n = len(times)
        x = [np.concatenate([np.tanh(self.w["layer_type_emb.weight"][types[j]]), phi(times[j], self.dt)]) for j in range(n)]
        self.inputs: dict[tuple[int, int], list[np.ndarray]] = {}
        self.prompts: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
        self.index: dict[tuple[str, int, int], list[list[int]]] = {}
        self.out: dict[tuple[int, int], list[np.ndarray]] = {}
        self.estimate = [times[i] + (float(np.mean(np.diff(times[: i + 1]))) if i else 0.0) for i in range(n)]
        for h in range(self.heads):
            for layer in range(self.layers):
                self.inputs[h, layer] = x
                after = []
                for i in range(n):
                    query = np.mean(x[: i + 1], axis=0)
                    tokens = [self.choose(side, h, layer, query, self.estimate[i]) for side in "kv"]
                    self.prompts.setdefault((h, layer), []).append((tokens[0], tokens[1]))
                    mixed = self.attend(h, layer, x[i], tokens[0], tokens[1], x[: i + 1])
                    self.out.setdefault((h, layer), []).append(mixed)
                    after.append(np.concatenate([mixed, phi(times[i], self.dt)]))
                x = after

    def linear(self, h: int, layer: int, i: int, x: np.ndarray) -> np.ndarray:
        name = f"heads.{h}.{layer}.self_attn.linears.{i}."
        return self.w[name + "weight"] @ x + self.w[name + "bias"]

    def choose(self, side: str, h: int, layer: int, query: np.ndarray, when: float) -> np.ndarray:
        name = f"heads.{h}.{layer}.self_attn.prompt_pool_{side}."
        cosines = [float(unit(query) @ unit(key)) for key in self.w[name + "prompt_key"]]
        best = sorted(range(len(cosines)), key=lambda m: (-cosines[m], m))[: self.top]
        self.index.setdefault((side, h, layer), []).append(best)
        tau = phi(when, self.dt)
        return np.array([np.concatenate([token, tau]) for m in best for token in self.w[name + "type_prompt"][m]])

    def attend(self, h: int, layer: int, x: np.ndarray, kp: np.ndarray, vp: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
        q = self.linear(h, layer, 0, x)
        keys = [self.linear(h, layer, 1, token) for token in [*kp, *others]]
        values = [self.linear(h, layer, 2, token) for token in [*vp, *others]]
        score = np.array([float(q @ key) / math.sqrt(len(q)) for key in keys])
        weight = np.exp(score - score.max())
        return (weight / weight.sum()) @ np.array(values)

    def state(self, i: int, t: float) -> np.ndarray:
        """Return the state at time t given events 0..i."""
        parts = []
        for h in range(self.heads):
            c = np.zeros(self.w["layer_type_emb.weight"].shape[1])
            for layer in range(self.layers):
                probe = np.concatenate([c, phi(t, self.dt)])
                kp, vp = self.prompts[h, layer][i]
                c = c + np.tanh(self.attend(h, layer, probe, kp, vp, [*self.inputs[h, layer][: i + 1], probe]))
            parts.append(c)
        return np.concatenate(parts)

    def rate(self, state: np.ndarray) -> np.ndarray:
        x = self.w["layer_intensity.0.weight"] @ state + self.w["layer_intensity.0.bias"]
        return np.log1p(np.exp(x))


def causal_vectors(weights: Arrays, config: dict[str, Any], times: np.ndarray, types: np.ndarray, row: int) -> Arrays:
    """Return the entries ``causal.<row>.*`` of a sequence."""
    model = Causal(weights, config, times[:-1], types[:-1])
    share = np.linspace(0, 1, config["loss_integral_num_sample_per_step"])
    gaps = np.diff(times)
    state = np.array([[model.state(i, times[i] + gap * s) for s in share] for i, gap in enumerate(gaps)])
    rate = np.array([[model.rate(one) for one in row_] for row_ in state])
    total = rate.sum(2)
    found = {
        "states": state,
        "lambda": rate,
        "event_ll": np.log([rate[i, -1, types[i + 1]] for i in range(len(gaps))]),
        "integral_trapezoid": np.array([np.trapezoid(total[i], share * gap) for i, gap in enumerate(gaps)]),
        "integral_mean": total.mean(1) * gaps,
        "t_est": np.array(model.estimate),
    }
    for (side, h, layer), index in model.index.items():
        found[f"idx_{side}.{h}.{layer}"] = np.array(index)
    for (h, layer), out in model.out.items():
        found[f"event_out.{h}.{layer}"] = np.array(out)
    return {f"causal.{row}.{name}": array for name, array in found.items()}
