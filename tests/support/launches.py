"""A device that is not there: tensors that claim to lie on CUDA, compute on the CPU, and count what a GPU would be asked for.

Within :func:`on_device` tensors with ``device="cuda"`` are :class:`DeviceTensor`. Code takes the path that it takes on a GPU,
and all that would launch a kernel, stop the host or move bytes is noted in order. Operations are counted one kernel each, views
and allocations none. Mixing devices raises, as CUDA does: an operator that passes here has no tensor in the wrong place.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["DEVICE", "DeviceTensor", "Event", "Launches", "on_device", "on_host"]

DEVICE = torch.device("cuda", 0)
_HOST = torch.device("cpu")
_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(f"{_ROOT}/{folder}/" for folder in ("models", "operators", "benchmarks"))

_FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}
_FREE |= {"_unsafe_view"}
_FREE |= {"resize_", "set_", "is_pinned", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "is_same_size"}
_ONE = {"scaled_dot_product_attention", "rms_norm"}
"""Made of others, but fused on a GPU."""
_SIZED_BY_CONTENT = {"nonzero", "masked_select", "nms", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
"""Their results are as large as the content says, so the host waits for it."""
_FLASH = {"_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"}


class Event(NamedTuple):
    """One thing that a GPU would have been asked for."""

    kind: str
    """``kernel``, ``read`` (the host waits for the device) or ``upload``."""
    name: str
    """Of the operation."""
    place: str
    """Where in this project it was called."""
    bytes: int = 0
    waits: bool = False
    """An upload of pageable memory: the host waits until everything before it is done."""


@dataclass(slots=True)
class Launches:
    """Everything that happened, in order."""

    events: list[Event] = field(default_factory=list)

    def of(self, kind: str) -> list[Event]:
        """Return the events of a kind."""
        return [event for event in self.events if event.kind == kind]

    @property
    def kernels(self) -> int:
        """How many kernels were launched."""
        return len(self.of("kernel"))

    def stops(self) -> list[Event]:
        """Return the reads after which the device had more to do: those that no download at the end explains."""
        last = max((i for i, event in enumerate(self.events) if event.kind == "kernel"), default=-1)
        return [event for event in self.events[:last] if event.kind == "read"]

    def uploaded(self) -> int:
        """Return the bytes that went to the device."""
        return sum(event.bytes for event in self.of("upload"))

    def places(self, kind: str) -> str:
        """Return a table of the events of a kind by operation and place, for the message of an assertion."""
        counted = Counter((event.name, event.place) for event in self.of(kind))
        return "\n".join(f"{count:5} {name:32} {place}" for (name, place), count in counted.most_common())

    def clear(self) -> None:
        """Forget all that happened."""
        self.events.clear()


class DeviceTensor(torch.Tensor):
    """A tensor on the device; its content lies in ``inner``, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Launches(), nullcontext())


class _Mode(TorchDispatchMode):
    def __init__(self, launches: Launches) -> None:
        super().__init__()
        # The key under which torch makes tensors of a device without starting its driver.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.launches, self)


@contextmanager
def on_device() -> Iterator[Launches]:
    """Let tensors be made on ``DEVICE`` and note what happens there."""
    if not torch.cuda.is_available():
        torch._C._ensureCUDADeviceGuardSet()  # indexing asks which device is current
    launches = Launches()
    before = torch.__future__.get_overwrite_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's memory cannot become another kind
    torch._C._set_only_lift_cpu_tensors(True)  # ``torch.tensor`` makes tensors on the CPU, then moves them
    try:
        with _Mode(launches):
            yield launches
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before[0])
        torch._C._set_only_lift_cpu_tensors(before[1])


def on_host(value: Any) -> Any:
    """Return the content of tensors in any nest of lists, tuples and dicts, uncounted."""
    return tree_map(lambda x: x.inner if isinstance(x, DeviceTensor) else x, value)


@dataclass(frozen=True, slots=True)
class _Operation:
    """What is known of an operation before it is called. An operator asks for tens of thousands, of a hundred kinds."""

    name: str
    composite: bool
    free: bool


@functools.cache
def _operation(func: Any) -> _Operation:
    name = func._schema.name.split("::")[1]
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return _Operation(name, name not in _ONE and composite, _is_free(func, name))


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any], launches: Launches, mode: AbstractContextManager[Any]) -> Any:
    flat = [*_leaves(args), *_leaves(kwargs.values())]
    device = any(isinstance(x, DeviceTensor) for x in flat)
    wanted = next((x for x in flat if isinstance(x, torch.device)), None)
    if not device and (wanted is None or wanted.type == "cpu"):
        return func(*args, **kwargs)
    operation = _operation(func)
    name = operation.name
    if operation.composite:
        with mode:  # so that its parts come here too
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
    to = DEVICE if wanted is not None and wanted.type == "cuda" else wanted
    if name in ("_to_copy", "copy_"):
        source = args[0] if name == "_to_copy" else args[1]
        target = (to or source.device) if name == "_to_copy" else args[0].device
        from_device, to_device = isinstance(source, DeviceTensor), target.type == "cuda"
        size = source.numel() * source.element_size()
        if not size:
            pass  # nothing is copied, and nobody waits
        elif from_device and not to_device:
            launches.events.append(Event("read", name, _place(), size))
        elif to_device and not from_device:
            waits = not bool(kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False))
            launches.events.append(Event("upload", name, _place(), size, waits))
        elif from_device:
            launches.events.append(Event("kernel", name, _place()))
        result_device = to_device
    else:
        result_device = True
        _same_device(name, flat)
        if name in ("index", "index_put_", "index_put"):
            indices = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, DeviceTensor) and x.dim()]
            if indices:
                size = sum(x.numel() * x.element_size() for x in indices)
                launches.events.append(Event("upload", name, _place(), size, True))
        if name == "_local_scalar_dense":
            launches.events.append(Event("read", name, _place(), args[0].element_size()))
            return args[0].inner.item()
        masked = name in ("index", "index_put_") and any(_is_mask(x) for x in args[1])
        if name == "repeat_interleave":
            masked = kwargs.get("output_size") is None
        if not operation.free:
            launches.events.append(Event("kernel", name, _place()))
            if name in _SIZED_BY_CONTENT or masked:
                launches.events.append(Event("read", name, _place()))
    inner_args = _changed(_inner, args)
    inner_kwargs = {key: _changed(_inner, value) for key, value in kwargs.items()}
    if wanted is not None:
        inner_kwargs["device"] = _HOST
    inner_kwargs.pop("non_blocking", None)
    if name in _FLASH:
        result = _flash(*inner_args, efficient="efficient" in name, **inner_kwargs)
    else:
        result = func(*inner_args, **inner_kwargs)
    if name == "copy_":
        return args[0]
    if not result_device:
        return result
    known = {id(x.inner): x for x in flat if isinstance(x, DeviceTensor)}

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in known:
            return known[id(x)]
        with torch.inference_mode(x.is_inference()):  # a view must be of the kind of what it views
            return DeviceTensor(x)

    return _changed(wrap, result)


def _inner(x: Any) -> Any:
    """Return what the CPU gets for an argument."""
    if isinstance(x, DeviceTensor):
        return x.inner
    return _HOST if isinstance(x, torch.device) else x


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """Yield what stands in the lists and tuples of arguments, the only nests that an operation takes."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _changed(change: Callable[[Any], Any], value: Any) -> Any:
    """Return a value, or a list or tuple of values, with each changed."""
    if isinstance(value, list):
        return [_changed(change, x) for x in value]
    if isinstance(value, tuple):
        return tuple(_changed(change, x) for x in value)
    return change(value)


def _is_mask(x: Any) -> bool:
    return isinstance(x, DeviceTensor) and x.dtype in (torch.bool, torch.uint8)


def _is_free(func: Any, name: str) -> bool:
    """Tell whether an operation launches nothing: a view, or memory without content."""
    if name in _FREE:
        return True
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _same_device(name: str, flat: Sequence[Any]) -> None:
    """Raise what CUDA raises for tensors of two devices; a number in a tensor without dimensions may lie anywhere."""
    if name in ("index", "index_put_", "index_put"):
        return
    strangers = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, DeviceTensor) and x.dim()]
    if strangers and any(isinstance(x, DeviceTensor) for x in flat):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu, at {_place()}")


def _flash(query: Tensor, key: Tensor, value: Tensor, *args: Any, efficient: bool, **kwargs: Any) -> tuple[Any, ...]:
    """Return output and log-sum-exp of a fused kernel of CUDA, in the places where it returns them."""
    args = args[2:] if efficient else args  # no bias, log-sum-exp wanted
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, sums = kernel(query, key, value, *args, scale=kwargs.get("scale"))
    none = torch.empty(0)
    return (output, sums, none, none) if efficient else (output, sums, none, none, 0, 0, none, none, none)


def _place() -> str:
    """Return the innermost line of this project that is being run, tests excepted."""
    frame = sys._getframe(2)
    while frame is not None:
        file = _named(frame.f_code.co_filename)
        if file is not None:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"


@functools.cache
def _named(path: str) -> str | None:
    """Return the name of a file of this project, and nothing for other files."""
    return str(Path(path).relative_to(_ROOT)) if path.startswith(_OURS) else None
