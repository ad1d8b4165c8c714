"""Proves that a network gives finite numbers for every input of a size, so that nobody has to look at its results on a device.

The network runs once on an example. Every tensor that depends on the input carries an upper bound of its absolute values, of
which the next one follows: a product with weights by their absolute row sums, a norm by its length, an activation by its
input's. What no rule covers has no bound, and what has none is not proved: then results are looked at as without a proof.
Rounding is allowed for by a twentieth per step, which also covers every order in which a sum is taken.
"""

# n numbers of a row

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["AlwaysFinite", "Bounds", "largest_of"]

_SLACK = 1.05
_NAME = "_streambank_bound"
_SHARED = "_streambank_shared"
"""On tensors of which there is a view, and on views."""

_AT_MOST_INPUT = {
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "transpose", "t", "permute", "expand", "slice", "select",
    "squeeze", "unsqueeze", "clone", "detach", "alias", "contiguous", "_to_copy", "to", "float", "split",
    "split_with_sizes", "chunk", "unbind", "narrow", "flip", "roll", "repeat", "repeat_interleave", "neg", "abs",
    "relu", "gelu", "silu", "max_pool2d_with_indices", "mean", "amax", "amin", "lift_fresh", "dropout",
    "native_dropout", "round", "floor", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_nearest2d", "cat", "stack", "where", "expand_as",
    "view_as", "movedim", "unfold", "pixel_unshuffle", "nan_to_num", "tril", "triu", "pin_memory", "_pin_memory",
}  # fmt: skip
"""The largest of the tensors that they are given; an average and a chosen row are no larger."""
_AT_MOST_ONE = {"sigmoid", "tanh", "sin", "cos", "_softmax", "softmax", "sign"}


class Bounds(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows bounds through all that is computed from tensors that were given one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()
        """Operations that no rule covers."""
        self._sums: dict[tuple[int, int | None], tuple[Tensor, float]] = {}

    def give(self, tensor: Tensor, bound: float) -> Tensor:
        """Note the bound of an input; return a view of it, that carries it."""
        given = tensor.view(tensor.shape)
        setattr(given, _NAME, bound)
        return given

    def of(self, tensor: Tensor) -> float:
        """Return the bound of a tensor; of one that depends on no input what it holds."""
        known: float | None = getattr(tensor, _NAME, None)
        return self._largest(tensor) if known is None else known

    def depends(self, value: Any) -> bool:
        """Tell whether a tensor depends on an input."""
        return isinstance(value, Tensor) and hasattr(value, _NAME)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name not in _RULES and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        result = func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        if not any(self.depends(x) for x in leaves):
            return result
        written = func._schema.is_mutable
        if written and not self._may_write(name, args, kwargs):
            self.unknown.add(name)
            raise _NotProvedError(name)  # whoever sees the same memory would not know of it
        name = name.removesuffix("_") if written else name
        bound = self._bound(name, args, kwargs)
        if any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns):
            for x in (*leaves, *tree_leaves(result)):
                if isinstance(x, Tensor):
                    setattr(x, _SHARED, True)
        for number, made in enumerate(tree_leaves(result)):
            if isinstance(made, Tensor):
                setattr(made, _NAME, self._fitting(bound if number == 0 or name in _ALIKE else math.inf, made))
        self._note_steps(name, args, result)
        return result

    def _may_write(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Tell whether an operation changes one whole tensor of which there is no view."""
        target = args[0] if args else None
        return self.depends(target) and not hasattr(target, _SHARED) and name.endswith("_") and "out" not in kwargs

    def _bound(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> float:
        rule = _RULES.get(name)
        if rule is None:
            self.unknown.add(name)
            return math.inf
        found: float = rule(self, *args, **kwargs)
        return found

    def _note_steps(self, name: str, args: Sequence[Any], result: Any) -> None:
        """Note shares, least values, and norms that are written out: x / sqrt(mean(x²) + a little)."""
        step, of, _ = getattr(args[0], _STEP, (None, args[0], 0.0))
        match name:
            case "pow" if args[1] == 2:
                setattr(result, _STEP, ("square", args[0], 0.0))
            case "mean" if step == "square" and list(args[1]) in ([-1], [of.dim() - 1]):
                setattr(result, _STEP, ("mean", of, 0.0))
            case "add" if step == "mean" and not isinstance(args[1], Tensor) and args[1] > 0:
                setattr(result, _STEP, ("added", of, float(args[1])))
            case "rsqrt" if step == "added":
                setattr(result, _STEP, ("inverse", of, 0.0))
            case "_softmax" | "softmax" if args[1] in (-1, args[0].dim() - 1):
                setattr(result, _STEP, ("shares", args[0], 0.0))
            case "_to_copy" | "clone" | "detach" | "expand" if step == "shares":
                setattr(result, _STEP, ("shares", of, 0.0))
            case "clamp_min" | "clamp" if isinstance(args[1], int | float) and args[1] > 0:
                setattr(result, _STEP, ("at least", args[0], float(args[1])))
            case _:
                pass

    def _fitting(self, bound: float, result: Tensor) -> float:
        """Return the bound with what rounding may add; infinite where the result's type does not hold it."""
        if result.dtype == torch.bool:
            return 1.0
        if not (result.is_floating_point() or result.is_complex()):
            return min(bound, 2.0**63)
        bound = math.inf if result.is_complex() else bound * _SLACK
        return bound if math.isfinite(bound) and bound < torch.finfo(result.dtype).max / 4 else math.inf

    def _largest(self, tensor: Tensor) -> float:
        return self._cached(tensor, None, lambda x: x.abs().max() if x.numel() else x.new_zeros(()))

    def sums(self, tensor: Tensor, dim: int) -> float:
        """Return the largest absolute sum of constants along a dimension."""
        return self._cached(tensor, dim, lambda x: x.abs().sum(dim).max())

    def _cached(self, tensor: Tensor, dim: int | None, compute: Callable[[Tensor], Tensor]) -> float:
        key = (id(tensor), dim)
        if key not in self._sums:
            values = tensor if tensor.is_floating_point() else tensor.float()
            with torch.no_grad():
                largest = float(compute(values.double() if values.dtype == torch.float64 else values.float()))
            self._sums[key] = tensor, largest if math.isfinite(largest) else math.inf
        return self._sums[key][1]


class _NotProvedError(Exception):
    """Something was computed of which no bound can follow."""


def largest_of(network: Callable[..., Any], *inputs: tuple[Tensor, float]) -> float:
    """Return what no result of ``network`` exceeds for inputs of the shapes of these examples with values up to their bounds.

    Infinite: no bound was found. Integers may be any that the network takes. Every result must depend on an input.
    """
    bounds = Bounds()
    try:
        with torch.no_grad(), bounds:
            results = network(*(bounds.give(example, bound) for example, bound in inputs))
    except _NotProvedError:
        return math.inf
    found = [x for x in tree_leaves(results) if isinstance(x, Tensor)]
    return max((bounds.of(x) if bounds.depends(x) else math.inf for x in found), default=math.inf)


class AlwaysFinite:
    """For which sizes of input a network is proved to give finite numbers; each is looked into once, with the first input."""

    def __init__(self, network: Callable[[Tensor], Any], bound: float) -> None:
        """``bound``: no input is larger."""
        self._network, self._bound = network, bound
        self._largest: dict[tuple[int, ...], float] = {}

    def largest(self, rows_B: Tensor) -> float:
        """Return what no result for rows [B, ...] of this size exceeds; infinite without a proof."""
        size = tuple(rows_B.shape[1:])
        if size not in self._largest:
            self._largest[size] = largest_of(self._network, (rows_B[:1], self._bound))
        return self._largest[size]

    @property
    def worst(self) -> float:
        """What no result exceeds for rows of any size so far."""
        return max(self._largest.values(), default=math.inf)

    def __call__(self, rows_B: Tensor) -> bool:
        """Tell whether the results for these rows are finite without a look at them."""
        return math.isfinite(self.largest(rows_B))


# Rules: the bound of a result, from the operation's arguments

Rule = Callable[..., float]


def _largest_given(bounds: Bounds, *args: Any, **kwargs: Any) -> float:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dtype != torch.bool]
    return max((bounds.of(x) for x in given), default=1.0)


def _first_given(bounds: Bounds, x: Tensor, *_: Any, **__: Any) -> float:
    return bounds.of(x)


def _bicubic(bounds: Bounds, x: Tensor, *_: Any, **__: Any) -> float:
    return 2.5 * bounds.of(x)  # its weights are negative in part; their absolute sum is at most 1.25² along both sides


def _one(bounds: Bounds, x: Tensor, *_: Any, **__: Any) -> float:
    return 1.0 if math.isfinite(bounds.of(x)) else math.inf


def _either(bounds: Bounds, x: Any) -> float:
    return bounds.of(x) if isinstance(x, Tensor) else abs(float(x))


def _add(bounds: Bounds, x: Any, y: Any, *rest: Any, alpha: float = 1.0, **_: Any) -> float:
    return _either(bounds, x) + abs(float(alpha)) * _either(bounds, y)


def _mul(bounds: Bounds, x: Any, y: Any, **_: Any) -> float:
    for a, b in ((x, y), (y, x)):
        inverse = getattr(b, _STEP, None)
        if inverse is not None and inverse[0] == "inverse" and inverse[1] is a:
            return math.sqrt(a.shape[-1])
    return _either(bounds, x) * _either(bounds, y)


_STEP = "_streambank_step"
"""On tensors of which more is known: what (a step to a norm, shares, a least value), of which tensor, and a number."""


def _inverse_root(bounds: Bounds, x: Tensor, **_: Any) -> float:
    step, _of, least = getattr(x, _STEP, (None, None, 0.0))
    return least**-0.5 if step == "added" and math.isfinite(bounds.of(x)) else math.inf


def _div(bounds: Bounds, x: Tensor, y: Any, **_: Any) -> float:
    if isinstance(y, Tensor):
        step, _of, least = getattr(y, _STEP, (None, None, 0.0))
        known = least / _SLACK if step == "at least" else 0.0
        least = known if bounds.depends(y) else float(y.abs().min())
    else:
        least = abs(float(y))
    return bounds.of(x) / least if least > 0 else math.inf


def _product(bounds: Bounds, a: Tensor, b: Tensor) -> float:
    """Of rows of ``a`` with columns of ``b``."""
    if not bounds.depends(b):
        return bounds.of(a) * bounds.sums(b, -2 if b.dim() > 1 else 0)
    if not bounds.depends(a):
        return bounds.of(b) * bounds.sums(a, -1)
    shares = getattr(a, _STEP, (None,))[0] == "shares"  # an average is no larger than what it is of
    return bounds.of(b) if shares else bounds.of(a) * bounds.of(b) * a.shape[-1]


def _mm(bounds: Bounds, a: Tensor, b: Tensor, **_: Any) -> float:
    return _product(bounds, a, b)


def _addmm(bounds: Bounds, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> float:
    return abs(beta) * bounds.of(c) + abs(alpha) * _product(bounds, a, b)


def _linear(bounds: Bounds, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    if bounds.depends(weight):
        return math.inf
    return bounds.of(x) * bounds.sums(weight, -1) + (0.0 if bias is None else bounds.of(bias))


def _convolution(bounds: Bounds, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> float:
    transposed = len(settings) > 3 and settings[3]
    if transposed or bounds.depends(weight):
        return math.inf
    flat = weight.flatten(1)
    return bounds.of(x) * bounds.sums(flat, -1) + (0.0 if bias is None else bounds.of(bias))


def _norm(bounds: Bounds, x: Tensor, n: int, weight: Tensor | None, bias: Tensor | None) -> float:
    size = bounds.of(x)
    if not math.isfinite(size) or n * size * size > 1e37:  # its variance is a float32
        return math.inf
    return math.sqrt(n) * (1.0 if weight is None else bounds.of(weight)) + (0.0 if bias is None else bounds.of(bias))


def _layer_norm(bounds: Bounds, x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any) -> float:
    return _norm(bounds, x, math.prod(shape), weight, bias)


def _rms_norm(bounds: Bounds, x: Tensor, shape: Sequence[int], weight: Any = None, *_: Any) -> float:
    return _norm(bounds, x, math.prod(shape), weight, None)


def _group_norm(bounds: Bounds, x: Tensor, weight: Any, bias: Any, n: int, c: int, hxw: int, group: int, *_: Any) -> float:
    return _norm(bounds, x, c * hxw // group, weight, bias)


def _batch_norm(bounds: Bounds, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> float:
    training, eps = (rest[0], rest[-1]) if len(rest) > 2 else (False, rest[-1])
    if training or mean is None or any(bounds.depends(part) for part in (weight, bias, mean, var)):
        return math.inf
    scale = (var.float() + float(eps)).rsqrt()
    factor = float((scale if weight is None else scale * weight.float()).abs().max())
    return (bounds.of(x) + bounds.of(mean)) * factor + (0.0 if bias is None else bounds.of(bias))


def _power(bounds: Bounds, x: Tensor, exponent: Any, **_: Any) -> float:
    if isinstance(exponent, Tensor) or float(exponent) < 0 or float(exponent) != int(exponent):
        return math.inf
    return max(bounds.of(x), 1.0) ** int(exponent) if bounds.of(x) < 1e60 else math.inf


def _sum(bounds: Bounds, x: Tensor, dims: Any = None, *_: Any, **__: Any) -> float:
    along = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return bounds.of(x) * math.prod(x.shape[d] for d in along)


def _exp(bounds: Bounds, x: Tensor, **_: Any) -> float:
    return math.exp(bounds.of(x)) if bounds.of(x) < 80 else math.inf


def _clamp(bounds: Bounds, x: Tensor, low: Any = None, high: Any = None, **_: Any) -> float:
    edges = [_either(bounds, edge) for edge in (low, high) if edge is not None]
    return max(edges) if len(edges) == 2 else max(bounds.of(x), *edges)


def _pad(bounds: Bounds, x: Tensor, pad: Any, value: float = 0.0) -> float:
    return max(bounds.of(x), abs(float(value)))


def _fill(bounds: Bounds, x: Tensor, mask: Tensor, value: Any) -> float:
    return max(bounds.of(x), _either(bounds, value))


def _attention(bounds: Bounds, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> float:
    mask = named.get("attn_mask", next((x for x in rest if isinstance(x, Tensor)), None))
    if mask is not None:
        if bounds.depends(mask):
            return math.inf
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        if not bool(seen.any(-1).all()) or (mask.is_floating_point() and bool(mask.isnan().any())):
            return math.inf  # a query that sees nothing
    scale = named.get("scale") or q.shape[-1] ** -0.5
    logits = bounds.of(q) * bounds.of(k) * q.shape[-1] * max(abs(scale), 1.0)
    return bounds.of(v) if logits < 1e37 else math.inf


def _no_bound_needed(bounds: Bounds, *_: Any, **__: Any) -> float:
    return 1.0


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_AT_MOST_INPUT, _largest_given),
    **dict.fromkeys(("index", "index_select", "gather", "embedding"), _first_given),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), _bicubic),
    **dict.fromkeys(_AT_MOST_ONE, _one),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "isfinite", "argmax"), _no_bound_needed),
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    "mul": _mul,
    "div": _div,
    **dict.fromkeys(("mm", "bmm", "matmul"), _mm),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "linear": _linear,
    **dict.fromkeys(("convolution", "_convolution", "cudnn_convolution"), _convolution),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **dict.fromkeys(("rms_norm", "_fused_rms_norm"), _rms_norm),
    "native_group_norm": _group_norm,
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm"), _batch_norm),
    "pow": _power,
    "rsqrt": _inverse_root,
    "square": lambda bounds, x: bounds.of(x) ** 2,
    "sum": _sum,
    "exp": _exp,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamp),
    "constant_pad_nd": _pad,
    "masked_fill": _fill,
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
}
_ALIKE = {"split", "split_with_sizes", "chunk", "unbind"}
"""Of more than one result, all of which have the bound."""
