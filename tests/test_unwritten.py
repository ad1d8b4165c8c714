"""What guards the other tests: whoever reads memory that nobody has written gets NaN, or a number that stands out."""

import numpy as np
import torch
from launches import DEVICE, on_device, on_host


def test_memory_that_nobody_has_written_holds_no_number():
    for made in (torch.empty(3), torch.zeros(3).new_empty(3), torch.empty_like(torch.zeros(3)), torch.empty(3).half()):
        assert made.isnan().all()
    assert torch.empty(2, dtype=torch.int64).tolist() == [2**63 - 1] * 2
    assert np.isnan(np.empty(3)).all() and np.isnan(np.empty_like(np.zeros(3))).all()
    with torch.inference_mode():
        assert torch.empty(3).isnan().all()


def test_so_does_that_of_the_simulated_device_at_no_kernel():
    with on_device() as launches:
        made = torch.empty(3, device=DEVICE)
    assert on_host(made).isnan().all() and launches.kernels == 0


def test_a_default_device_is_that_of_new_memory_as_ever():
    with torch.device("meta"):
        assert torch.empty(3).is_meta and torch.nn.Linear(2, 3).weight.is_meta
