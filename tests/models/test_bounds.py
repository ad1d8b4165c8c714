"""Bounds of what networks give: never too low, infinite where nothing is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.bounds import AlwaysFinite, largest_of

WIDTH = 6


class WrittenOutNorm(nn.Module):
    """As transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """``spelled``: by products and a softmax, else by PyTorch's own."""

    def __init__(self, *, spelled: bool) -> None:
        super().__init__()
        self.spelled = spelled
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x) for part in self.parts)
        if not self.spelled:
            return torch.nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


class Beside(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Image(nn.Module):
    """Convolution, batch norm and activation in place, as torchvision's residual networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm1d(WIDTH)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.convolution(x.transpose(1, 2)))
        out = torch.relu_(out)
        out += x.transpose(1, 2)
        return out.transpose(1, 2)


LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "no bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "written out norm": WrittenOutNorm,
    "attention": lambda: Attention(spelled=False),
    "spelled attention": lambda: Attention(spelled=True),
    "beside": lambda: Beside(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())),
    "image": Image,
    "sigmoid": nn.Sigmoid,
}


def network_of(names: list[str], seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(*(LAYERS[name]() for name in names))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(3.0)
    return network.eval()


@pytest.mark.heavy
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6), st.integers(0, 99), st.sampled_from([0.1, 3.0, 1e3]))
@settings(max_examples=60, deadline=None)
def test_no_result_exceeds_the_bound(names: list[str], seed: int, size: float) -> None:
    network = network_of(names, seed)
    bound = largest_of(network, (torch.zeros(1, 5, WIDTH), size))
    assert bound < math.inf
    generator = torch.Generator().manual_seed(seed)
    for x in (
        (torch.rand(50, 5, WIDTH, generator=generator) * 2 - 1) * size,
        (torch.randint(0, 2, (50, 5, WIDTH), generator=generator) * 2.0 - 1) * size,  # at the edge of what is allowed
    ):
        with torch.no_grad():
            assert float(network(x).abs().max()) <= bound


def test_a_chain_of_norms_has_a_bound_that_does_not_grow_with_the_input() -> None:
    network = network_of(["written out norm"] * 40, 0)
    assert largest_of(network, (torch.zeros(1, 5, WIDTH), 1e15)) < 1e3


@pytest.mark.parametrize(
    "network",
    [
        lambda x: 1 / x,
        lambda x: x.log(),
        lambda x: x.exp(),
        lambda x: x * x * x * x * x * x * x * x,
        lambda x: x.to(torch.float16) * 1e3,
        lambda x: x * torch.tensor(torch.inf),
        lambda x: torch.fft.rfft(x).abs(),
        lambda x: torch.ones(5),  # depends on nothing
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.bool)),
    ],
    ids=["inverse", "logarithm", "exponential", "power", "half", "infinite weight", "no rule", "no input", "sees nothing"],
)
def test_what_may_not_be_finite_is_not_proved(network) -> None:
    assert largest_of(network, (torch.zeros(1, 5, WIDTH), 1e5)) == math.inf


def test_memory_that_is_written_through_a_view_is_not_proved() -> None:
    def network(x: Tensor) -> Tensor:
        kept = x * 1.0
        kept.view(-1)[:3].mul_(1e30).mul_(1e30)
        return kept

    assert not torch.isfinite(network(torch.ones(1, 5, WIDTH))).all()
    assert largest_of(network, (torch.zeros(1, 5, WIDTH), 1.0)) == math.inf


def test_into_memory_that_depends_on_nothing_yet_no_input_is_written_unseen() -> None:
    def network(x: Tensor) -> Tensor:
        made = torch.zeros(1, 5, WIDTH)
        made[:, 1:] = x[:, 1:] * 1e30 * 1e30
        return made + x

    assert largest_of(network, (torch.zeros(1, 5, WIDTH), 1.0)) == math.inf


def test_each_size_is_looked_into_once() -> None:
    calls = []

    def network(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return x * 2

    finite = AlwaysFinite(network, 255.0)
    assert finite.worst == math.inf
    for size in (3, 3, 4, 3):
        assert finite(torch.zeros(7, size, dtype=torch.uint8).float())
    assert calls == [(1, 3), (1, 4)]
    assert 510 <= finite.worst <= 600
