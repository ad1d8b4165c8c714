"""ReLoop2's error memory and the networks below it, written out slowly in float64 NumPy, row by row.

Written from the description of the vectors (README.md beside this file) and of the method; it shares nothing with ``models`` or
``operators``. Its own test compares it with the recorded vectors, so that cases of other sizes made with it can judge the
product. Of SDIM only the long interest: the recorded outputs of its short window follow a quirk of the published port.
"""

# d hidden width, K arrays, n rows, q queries

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Arrays = dict[str, Array]
GAMMAS, LAMBDAS = (0.0, 0.5, 1.0), (0.0, 0.4, 0.9, 3.0)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


# The error memory


def bucket(weights: Array, row: Array) -> list[int]:
    """Return the bucket of a row in each array; bit l is worth 2^l."""
    return [sum(2**bit for bit, w in enumerate(array) if float(w @ row) > 0) for array in weights.astype(float)]


def corrections(gamma: float, strength: float, base: float, label_mean: float, base_mean: float) -> tuple[float, float]:
    """Return error and prediction."""
    error = gamma * (label_mean - base) + (1 - gamma) * (label_mean - base_mean)
    return error, min(max(base + strength * error, 0.0), 1.0)


def sketch(cfg: Mapping[str, Any], inputs: Mapping[str, Array]) -> Arrays:
    """Return the buckets, what is read after each block of writes, and the final table."""
    K, queries = cfg["K"], len(inputs["Q"])
    out: Arrays = {
        "bucket_H": np.array([bucket(inputs["W"], h.astype(float)) for h in inputs["H"]]),
        "bucket_Q": np.array([bucket(inputs["W"], h.astype(float)) for h in inputs["Q"]]),
    }
    table, written = np.zeros((K, 2 ** cfg["L"], 3)), 0
    for c, (start, stop) in enumerate(itertools.pairwise(cfg["writes_cut_at"])):
        for i in range(start, stop):
            for k in range(K):
                table[k, out["bucket_H"][i, k]] += (1, inputs["y"][i], inputs["y_base"][i])
            written += 1
        read = {name: np.zeros((queries, K)) for name in ("count", "s", "y", "y_base", "a")}
        means = {name: np.zeros(queries) for name in ("ybar", "ybase_bar")}
        results = {f"g{g}_l{s}/{what}": np.zeros(queries) for g in GAMMAS for s in LAMBDAS for what in ("y_err", "y_pred")}
        hit = np.zeros(queries, bool)
        for q in range(queries):
            rows = table[range(K), out["bucket_Q"][q]]
            held = rows[:, 0] > 0
            hit[q] = held.any()
            read["count"][q], read["s"][q] = rows[:, 0], rows[:, 0] / written
            for column, name in ((1, "y"), (2, "y_base")):
                read[name][q, held] = rows[held, column] / rows[held, 0]
            base = float(inputs["q_y_base"][q])
            if hit[q]:
                read["a"][q, held] = softmax(read["s"][q, held] / cfg["tau"])
                means["ybar"][q] = read["a"][q] @ read["y"][q]
                means["ybase_bar"][q] = read["a"][q] @ read["y_base"][q]
            for g, s in itertools.product(GAMMAS, LAMBDAS):
                found = corrections(g, s, base, means["ybar"][q], means["ybase_bar"][q]) if hit[q] else (0.0, base)
                results[f"g{g}_l{s}/y_err"][q], results[f"g{g}_l{s}/y_pred"][q] = found
        read["count"] = read["count"].astype(np.int64)
        out |= {f"sk{c}/{name}": array for name, array in (read | means | results | {"hit": hit}).items()}
    out["sk_final"] = table
    return out


def neighbors(cfg: Mapping[str, Any], inputs: Mapping[str, Array], sigmas: Sequence[float]) -> Arrays:
    """Return the nearest rows of all, of the last ``cap``, and of those with an error above each sigma."""
    number = len(inputs["H"])
    error = np.abs(inputs["y"].astype(float) - inputs["y_base"])
    kinds = {"knn_all": range(number), "knn_fifo": range(max(number - cfg["cap"], 0), number)}
    kinds |= {f"knn_sigma{sigma}": np.flatnonzero(error > sigma) for sigma in sigmas}
    H, Q = (inputs[name] / np.linalg.norm(inputs[name].astype(float), axis=1, keepdims=True) for name in ("H", "Q"))
    out: Arrays = {}
    for kind, rows in kinds.items():
        columns: dict[str, list[Any]] = {name: [] for name in ("idx", "s", "a", "ybar", "ybase_bar")}
        columns |= {f"g{g}_l0.4/y_pred": [] for g in GAMMAS}
        for q, query in enumerate(Q):
            ranked = sorted(((float(H[i] @ query), int(i)) for i in rows), reverse=True)[: cfg["k"]]
            index, s = [i for _, i in ranked], np.array([value for value, _ in ranked])
            a = softmax(s / cfg["tau"])
            label, base = float(a @ inputs["y"][index]), float(a @ inputs["y_base"][index])
            for name, value in (("idx", index), ("s", s), ("a", a), ("ybar", label), ("ybase_bar", base)):
                columns[name].append(value)
            for g in GAMMAS:
                columns[f"g{g}_l0.4/y_pred"].append(corrections(g, 0.4, float(inputs["q_y_base"][q]), label, base)[1])
        out |= {f"{kind}/{name}": np.array(values) for name, values in columns.items()}
    return out


# The networks


class Weights:
    """A state dict under FuxiCTR's names, in float64."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = {
            name.removeprefix("sd/"): array.astype(float) for name, array in arrays.items() if name.startswith("sd/")
        }

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def linear(self, name: str, x: Array) -> Array:
        y = x @ self[name + ".weight"].T
        return y + self[name + ".bias"] if name + ".bias" in self else y

    def table(self, feature: str, prefix: str = "") -> Array:
        (name,) = (n for n in self.arrays if n.startswith(prefix + "embedding_layer.") and n.endswith(f".{feature}.weight"))
        return self[name]

    def mlp(self, prefix: str, x: Array) -> tuple[Array, Array]:
        """Return the last hidden activation and the output of an MLP; without an output layer the activation twice."""
        numbers = sorted({int(name.removeprefix(prefix).split(".")[0]) for name in self.arrays if name.startswith(prefix)})
        linears = [i for i in numbers if self.arrays.get(f"{prefix}{i}.weight", np.zeros(1)).ndim == 2]
        hidden = x
        for i in linears:
            hidden, x = x, self.linear(f"{prefix}{i}", x)
            if len(self[f"{prefix}{i}.weight"]) == 1:  # the output
                return hidden, x[..., 0]
            if f"{prefix}{i + 1}.running_mean" in self:
                x = self.norm(f"{prefix}{i + 1}", x, 1e-5) * self[f"{prefix}{i + 1}.weight"] + self[f"{prefix}{i + 1}.bias"]
                i += 1
            if f"{prefix}{i + 1}.alpha" in self:
                p = sigmoid(self.norm(f"{prefix}{i + 1}.bn", x, 1e-9))
                x = p * x + self[f"{prefix}{i + 1}.alpha"] * (1 - p) * x
            else:
                x = np.maximum(x, 0)
        return x, x

    def norm(self, name: str, x: Array, eps: float) -> Array:
        return (x - self[name + ".running_mean"]) / np.sqrt(self[name + ".running_var"] + eps)


def columns_of(arrays: Mapping[str, Array]) -> Arrays:
    return {name.removeprefix("in/"): array for name, array in arrays.items() if name.startswith("in/")}


def pooled(ids: Array, rows: Array) -> Array:
    """Return the mean of the rows [B, T, D] whose id is not the padding; zeros where all are."""
    held = (ids != 0)[..., None]
    return (rows * held).sum(1) / np.maximum(held.sum(1), 1)


def network(cfg: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return hidden vector and probability."""
    weights, columns = Weights(arrays), columns_of(arrays)
    rows = {name: weights.table(name)[ids] for name, ids in columns.items()}
    if cfg["model"] == "DIN":
        targets, histories = cfg["din_target_field"], cfg["din_sequence_field"]
        target = np.concatenate([rows[name] for name in targets], axis=-1)[:, None]
        history = np.concatenate([rows[name] for name in histories], axis=-1)
        both = np.concatenate([np.broadcast_to(target, history.shape), history, target - history, target * history], axis=-1)
        _, score = weights.mlp("attention_layers.0.attention_layer.mlp.", both)
        held = columns[histories[0]] != 0
        score = np.where(held, score, -1e9)
        share = np.exp(score - score.max(1, keepdims=True)) * held
        share = share / np.maximum(share.sum(1, keepdims=True), 1e-300)
        interest = (share[..., None] * history).sum(1)
        rows |= dict(zip(histories, np.split(interest, len(histories), axis=1), strict=True))
    fields = np.stack([row if row.ndim == 2 else pooled(columns[name], row) for name, row in rows.items()], axis=1)
    flat = fields.reshape(len(fields), -1)
    if cfg["model"] == "DCNv2":
        x = flat
        for i in range(cfg["num_cross_layers"]):
            x = x + flat * weights.linear(f"crossnet.cross_layers.{i}", x)
        hidden = np.concatenate([x, weights.mlp("parallel_dnn.mlp.", flat)[0]], axis=1)
        return hidden, sigmoid(weights.linear("fc", hidden)[:, 0])
    if cfg["model"] == "DIN":
        hidden, logit = weights.mlp("dnn.mlp.", flat)
        return hidden, sigmoid(logit)
    prefix = "fm.lr_layer." if cfg["model"] == "DeepFM" else "lr_layer."
    first = sum(weights.table(name, prefix)[ids][:, 0] for name, ids in columns.items())
    if cfg["model"] == "DeepFM":
        first = first + weights[prefix + "bias"]
    pairs = list(itertools.combinations(range(fields.shape[1]), 2))
    if cfg["model"] == "DeepFM":
        hidden, logit = weights.mlp("mlp.mlp.", flat)
        second = sum((fields[:, i] * fields[:, j]).sum(1) for i, j in pairs)
        return hidden, sigmoid(logit + first + second)
    excited = fields.mean(2)
    for i in (0, 2):
        excited = np.maximum(excited @ weights[f"senet_layer.excitation.{i}.weight"].T, 0)
    products = []
    for number, x in ((1, fields), (2, fields * excited[..., None])):
        kernel = weights[f"bilinear_interaction{number}.bilinear_W"]
        products += [(x[:, i] @ kernel[p]) * x[:, j] for p, (i, j) in enumerate(pairs)]
    hidden, logit = weights.mlp("dnn.mlp.", np.concatenate(products, axis=1))
    return hidden, sigmoid(logit + first)


def long_interest(cfg: Mapping[str, Any], arrays: Mapping[str, Array]) -> Arrays:
    """Return the embeddings, buckets and long interest of SDIM; the last column of a sequence is the target."""
    weights, columns = Weights(arrays), columns_of(arrays)
    mask = columns.pop("mask")
    rows = [weights.table(name)[ids] for name, ids in columns.items() if ids.ndim == 2]
    embedded = np.concatenate(rows, axis=-1)
    target, history = embedded[:, -1], embedded[:, :-1]
    planes = arrays["sd/random_rotations"][0].transpose(1, 2, 0)  # [d, K, L] to [K, L, d]
    buckets = np.array([[bucket(planes, row) for row in user] for user in embedded])
    interest = np.zeros_like(target)
    for b, (own, others) in enumerate(zip(buckets[:, -1], buckets[:, :-1], strict=True)):
        for k in range(len(own)):
            total = sum((history[b, t] for t in range(len(others)) if mask[b, t] > 0 and others[t, k] == own[k]), np.zeros(1))
            length = float(np.linalg.norm(total)) if cfg["l2_norm"] else 1.0
            interest[b] += total / max(length, 1e-12) / len(own)
    return {
        "out/target_emb": target,
        "out/seq_emb": history,
        "out/target_bucket": buckets[:, -1:],
        "out/seq_bucket": buckets[:, :-1],
        "out/lsh_attention": interest,
    }
