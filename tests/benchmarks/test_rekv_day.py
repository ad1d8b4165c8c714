"""The simulated day in its short form: enough frames that blocks of the first minute have left device and host."""

from pathlib import Path

import pytest
import torch

from benchmarks import rekv_day


@pytest.mark.slow
def test_memory_stays_flat_and_the_first_minute_exact(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = rekv_day.simulate(2400, tmp_path)
    torch.set_num_threads(threads)
    assert 2400 > rekv_day.HOST_PAGES > rekv_day.DEVICE_PAGES > rekv_day.MINUTE
    assert result["frames"] == 2400
    assert [name for name, holds in result["checks"].items() if not holds] == []
