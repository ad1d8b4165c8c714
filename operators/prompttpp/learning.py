"""Learning from the stream without replay: Adam steps on the intervals that keys have had since the last step.

Only what has a gradient moves: of a pool the rows that were chosen; all others stay bit for bit as they are, with their
moments. Before its updates a step may note what all keys look like, and give prompts to what is like none (``_meet``). A step
whose loss or gradient is not finite is left out. The order of keys within a step does not depend on slots, so a restored run
takes the same steps. Knows no Arrow and no streams.
"""

# B keys, L events of a window, C learned intervals, G grid points, J pools, M prompts

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from connectors.errors import RecoveryError
from models.prompttpp.integral import integrate, shares
from models.prompttpp.process import Heard, PointProcess, Run, pick
from models.prompttpp.prompts import Common, TensorPrompts, unit
from models.prompttpp.recurrent import RecurrentProcess
from operators.prompttpp.prompts import PromptBank
from operators.state import State

__all__ = ["Learner", "Windows", "row_adam"]

_CLIP = 5.0  # of the gradient's norm
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Windows(NamedTuple):
    """The latest events of some keys, and which intervals are to be learned."""

    time_BL: Tensor
    """float64, model units since the key's first event; padding at the end repeats the last."""
    type_BL: Tensor
    before_B: Tensor
    """Events of the key before the window."""
    after_BC: Tensor
    """Places of events; the intervals behind them are learned."""
    real_BC: Tensor
    heard: Heard | None
    """What prompts are looked up by in the stream, beyond these events; None without prompts."""


class Moments(NamedTuple):
    """Adam's state of one parameter; ``step`` counts per row of a pool, else per parameter."""

    first: Tensor
    second: Tensor
    step: Tensor


def row_adam(parameter: Tensor, gradient: Tensor, moments: Moments, rate: float, share: Tensor | None = None) -> None:
    """Update in place, by Adam's rule, the rows that have a gradient; rows are what ``moments.step`` counts.

    ``share``: how much of the rate each row gets, of the shape of ``moments.step``; rows with 0 stay as they are.
    """
    rows = moments.step.dim()
    shape = (*moments.step.shape, *[1] * (gradient.dim() - rows))
    moved = (
        gradient.flatten(rows).any(rows).view(shape) if rows else torch.ones(shape, dtype=torch.bool, device=gradient.device)
    )
    if share is not None:
        moved = moved & (share > 0).view(shape)
    step = moments.step + moved.view(moments.step.shape)
    first = _BETA1 * moments.first + (1 - _BETA1) * gradient
    second = _BETA2 * moments.second + (1 - _BETA2) * gradient.square()
    count = step.clamp_min(1).view(shape).to(gradient.dtype)
    scale = rate if share is None else rate * share.view(shape)
    update = scale * (first / (1 - _BETA1**count)) / ((second / (1 - _BETA2**count)).sqrt() + _EPSILON)
    for held, new in zip((parameter, moments.first, moments.second), (parameter - update, first, second), strict=True):
        held.copy_(torch.where(moved, new, held))
    moments.step.copy_(step)


class Learner:
    """What is learned (``prompts``, ``prompts+head``, ``all``), its moments, and the step."""

    def __init__(
        self,
        model: PointProcess,
        prompts: PromptBank | None,
        *,
        scope: str,
        rate: float,
        network_rate: float | None = None,
        alpha: float,
        points: int,
        steps: int,
        common_share: float = 0.0,
        novelty: float = 0.0,
    ) -> None:
        self._common_share, self._novelty = common_share, novelty
        self._model, self._prompts = model, prompts
        self._rate, self._network_rate = rate, 0.2 * rate if network_rate is None else network_rate
        self._alpha, self._points, self._steps = alpha, points, steps
        self.version = 0
        """Steps so far."""
        self._reads_M = torch.zeros(0, dtype=torch.int64)
        """Reads of each prompt, in the training and for what was learned; where ``novelty`` is to tell which are free."""
        if novelty:
            assert model.prompts is not None and model.prompts.reads is not None
            self._reads_M = model.prompts.reads[0].clone()
        self._moments: dict[str, Moments] = {}
        if prompts is not None:
            for name, tensor in zip(("prompts.key", "prompts.value"), prompts.tensors(), strict=True):
                zeros = torch.zeros_like(tensor)
                count_JM = torch.zeros(tensor.shape[:2], dtype=torch.int64, device=tensor.device)
                self._moments[name] = Moments(zeros, zeros.clone(), count_JM)
        learned = {"prompts": None, "prompts+head": model.head, "all": model}[scope]
        inside = set() if learned is None else set(learned.parameters())
        self._weights = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter in inside and not name.startswith("prompts.")
        }
        for name, parameter in self._weights.items():
            parameter.requires_grad_(True)
            count = torch.zeros((), dtype=torch.int64, device=parameter.device)
            self._moments[name] = Moments(torch.zeros_like(parameter), torch.zeros_like(parameter), count)

    def learn(self, windows: Windows) -> int:
        """Take the steps for some windows; return how many were left out since something was not finite."""
        skipped = 0
        if self._common_share:
            self._meet(windows)
        with torch.enable_grad():
            for _ in range(self._steps):
                skipped += not self._step(windows)
        self.version += 1
        return skipped

    @torch.no_grad()
    def _meet(self, windows: Windows) -> None:
        """Note what all keys look like in the events to be learned, and give prompts to it where it is like none."""
        prompts, model = self._prompts, self._model
        assert prompts is not None and isinstance(model, RecurrentProcess)
        token_BLQ = model.query_tokens(windows.time_BL, windows.type_BL)
        next_BC = (windows.after_BC + 1).clamp_max(token_BLQ.shape[1] - 1)
        query_Q = model.query(pick(token_BLQ, next_BC)[windows.real_BC].mean(0))
        if not bool(torch.isfinite(query_Q).all()):
            return
        prompts.common = Common(query_Q[None], self._common_share)
        if self._novelty:
            self._recruit(query_Q, windows)

    def _recruit(self, query_Q: Tensor, windows: Windows) -> None:
        """Give the prompts that were read least to a query that is like no key; they begin with what it has read so far."""
        prompts, reads_M = self._prompts, self._reads_M
        assert prompts is not None
        key_JMQ, value_JMZD = prompts.tensors()
        key_MQ, value_MZD = key_JMQ[0], value_JMZD[0]
        count_M = self._count(self._loss(windows, self._reader(key_JMQ, value_JMZD))[1], windows)[0]
        if float((unit(key_MQ) @ unit(query_Q)).max()) < self._novelty:
            value_ZD = torch.tensordot(count_M / count_M.sum().clamp_min(1), value_MZD, dims=1)
            # As many as are read: another one beside it would be pulled along.
            least_N = reads_M.sort(stable=True).indices[: prompts.top_k]
            key_MQ[least_N], value_MZD[least_N] = key_MQ.norm(dim=1).mean() * unit(query_Q), value_ZD
            prompts.write(key_JMQ, value_JMZD)
            reads_M[least_N] = 0
            for name in ("prompts.key", "prompts.value"):
                for tensor in self._moments[name]:
                    tensor[0, least_N] = 0
            count_M = self._count(self._loss(windows, self._reader(key_JMQ, value_JMZD))[1], windows)[0]
        reads_M += count_M.to(reads_M.dtype)

    def _reader(self, key_JMQ: Tensor, value_JMZD: Tensor) -> TensorPrompts:
        assert self._prompts is not None
        return TensorPrompts(key_JMQ, value_JMZD, self._prompts.top_k, detached=True, common=self._prompts.common)

    def loss(self, windows: Windows, reader: TensorPrompts | None) -> Tensor:
        """Return minus the log-likelihood per learned interval, minus alpha times the cosines of the look-ups."""
        return self._loss(windows, reader)[0]

    def _loss(self, windows: Windows, reader: TensorPrompts | None) -> tuple[Tensor, Run]:
        after_BC = windows.after_BC
        every_B1 = torch.arange(len(after_BC), device=after_BC.device)[:, None]
        next_BC = (after_BC + 1).clamp_max(windows.time_BL.shape[1] - 1)
        gap_BC = windows.time_BL[every_B1, next_BC] - windows.time_BL[every_B1, after_BC]
        share_G = shares(self._points, "graded").to(gap_BC.device)
        run = self._model.run(
            windows.time_BL,
            windows.type_BL,
            gap_BC[:, :, None] * share_G,
            prompts=reader,
            after_BC=after_BC,
            before_B=windows.before_B,
            heard=windows.heard,
        )
        type_BC = windows.type_BL[every_B1, next_BC].clamp_max(self._model.config.types - 1)
        own_BC = run.rate_BLGK[:, :, -1].gather(2, type_BC[:, :, None])[:, :, 0]
        event_BC = own_BC.clamp_min(torch.finfo(own_BC.dtype).tiny).log()
        integral_BC = integrate(run.rate_BLGK.sum(3), gap_BC.to(own_BC.dtype), "graded")
        each_BC = integral_BC - event_BC - self._alpha * run.cosine_BL
        return each_BC.masked_fill(~windows.real_BC, 0.0).sum() / windows.real_BC.sum().clamp_min(1), run

    def _shares(self, run: Run, windows: Windows) -> Tensor:
        """Return how often each prompt was read for the learned intervals, [J, M], as a share of the one read most.

        Adam's steps are as long for a prompt that one stray history has read as for one that all have; so other regimes'
        prompts would be overwritten by strays.
        """
        count_JM = self._count(run, windows)
        return count_JM / count_JM.amax(1, keepdim=True).clamp_min(1)

    def _count(self, run: Run, windows: Windows) -> Tensor:
        """Return how often each prompt was read for the learned intervals, [J, M]."""
        assert self._prompts is not None
        size = len(self._prompts.pools), self._prompts.pools[0].key_MD.shape[0]
        count_JM = torch.zeros(size, device=windows.real_BC.device)
        for pool, index_BLN in run.chosen.items():
            read = pick(index_BLN, windows.after_BC)[windows.real_BC]
            count_JM[pool] = torch.bincount(read.flatten(), minlength=size[1])
        return count_JM

    def _step(self, windows: Windows) -> bool:
        learned: dict[str, Tensor] = dict(self._weights)
        reader = None
        if self._prompts is not None:
            key_JMQ, value_JMZD = (tensor.requires_grad_(True) for tensor in self._prompts.tensors())
            learned |= {"prompts.key": key_JMQ, "prompts.value": value_JMZD}
            reader = self._reader(key_JMQ, value_JMZD)
        loss, run = self._loss(windows, reader)
        gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
        found = {name: gradient for name, gradient in zip(learned, gradients, strict=True) if gradient is not None}
        norm = torch.stack([gradient.square().sum() for gradient in found.values()]).sum().sqrt()
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            return False
        scale = (_CLIP / (norm + 1e-6)).clamp_max(1.0)
        with torch.no_grad():
            for name, gradient in found.items():
                if name in self._weights:
                    row_adam(learned[name], gradient * scale, self._moments[name], self._network_rate)
                else:
                    row_adam(learned[name], gradient * scale, self._moments[name], self._rate, self._shares(run, windows))
            if self._prompts is not None:
                self._prompts.write(learned["prompts.key"], learned["prompts.value"])
        return True

    # Snapshots

    def export(self, state: State) -> None:
        """Add moments, learned weights and the version to ``state``; prompts are the bank's."""
        state.shared["learner.version"] = torch.tensor([self.version])
        if self._novelty:
            state.shared["learner.reads"] = self._reads_M.cpu().clone()
        for name, moments in self._moments.items():
            for part, tensor in moments._asdict().items():
                state.shared[f"learner.{part}.{name}"] = tensor.detach().cpu().clone()
        for name, parameter in self._weights.items():
            state.shared[f"learner.weight.{name}"] = parameter.detach().cpu().clone()

    def load(self, state: State, name: str) -> None:
        """Take them from a full ``state``. Raise ``RecoveryError`` where it does not fit."""
        wanted = {
            f"learner.{part}.{key}": held for key, moments in self._moments.items() for part, held in moments._asdict().items()
        }
        wanted |= {"learner.reads": self._reads_M} if self._novelty else {}
        wanted |= {f"learner.weight.{key}": parameter for key, parameter in self._weights.items()}
        wrong = [key for key, held in wanted.items() if key not in state.shared or state.shared[key].shape != held.shape]
        if wrong or "learner.version" not in state.shared:
            raise RecoveryError(
                f"{name}: the snapshot lacks {len(wrong)} tensors of what is learned ({', '.join(wrong[:3])}); resume with the "
                "options of the first run"
            )
        with torch.no_grad():
            for key, held in wanted.items():
                held.copy_(state.shared[key])
        self.version = int(state.shared["learner.version"][0])
