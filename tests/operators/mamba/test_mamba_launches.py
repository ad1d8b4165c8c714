"""MAMBA on a device: the host waits once per step, for the result, and the result is that of the CPU."""

import mamba_streams
import pytest
import torch
from launches import DEVICE, Launches, on_device
from mamba_streams import detections_difference, frames, interleaved
from torchvision.ops import nms

from models.mamba.suppression import suppress
from operators.banks import Fills, RowSpec, SlotBank, random_replacement, sample_without_replacement
from operators.base import Context
from operators.mamba import MambaOperator


def operator_on(device: torch.device, monkeypatch: pytest.MonkeyPatch, **options: object) -> MambaOperator:
    with monkeypatch.context() as patch:
        patch.setattr(mamba_streams, "Context", lambda name: Context(name=name, device=device))
        return mamba_streams.operator(**options)


def require_no_stop(launches: Launches) -> None:
    assert not launches.stops(), launches.places("read")
    assert not [event for event in launches.events if event.waits]


@pytest.mark.parametrize("options", [{}, {"pixel": True}], ids=["instance", "pixel"])
def test_a_step_reads_nothing_between_upload_and_download(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [frames(interleaved(["a", "b", "c"][: 2 + k % 2], 1, start=k)) for k in range(4)]  # c is younger than the others
    cpu = operator_on(torch.device("cpu"), monkeypatch, **options)
    wanted = [out for batch in batches for out in cpu.process(batch)]
    with on_device() as launches:
        there = operator_on(DEVICE, monkeypatch, **options)
        found = []
        for batch in batches:
            launches.clear()
            found += there.process(batch)
            assert launches.kernels > 100
            if batch is not batches[1]:  # where c comes it makes a step of its own
                require_no_stop(launches)
    for a, b in zip(wanted, found, strict=True):
        assert detections_difference(a.column("detections"), b.column("detections")) is None
        for name in ("bank_size", "keys_used", "status"):
            assert a.column(name).equals(b.column(name)), name


def test_suppression_by_rounds_keeps_what_the_greedy_one_keeps() -> None:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(3, 120, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 8 + torch.rand(3, 120, 2, generator=generator) * 12), dim=2)
    wanted = torch.rand(3, 120, generator=generator) > 0.2
    kept = suppress(boxes, wanted, 0.4)
    for some, keep, there in zip(boxes, kept, wanted, strict=True):
        index = there.nonzero()[:, 0]
        greedy = index[nms(some[index], -torch.arange(len(index), dtype=torch.float32), 0.4)]
        assert keep.nonzero()[:, 0].tolist() == greedy.sort().values.tolist()


def test_chains_longer_than_the_rounds_keep_too_few_rather_than_too_many() -> None:
    left = torch.arange(200.0) * 3  # each overlaps its neighbors only
    boxes = torch.stack((left, torch.zeros(200), left + 10, torch.full((200,), 10.0)), dim=1)[None]
    kept = suppress(boxes, torch.ones(1, 200, dtype=torch.bool), 0.4)[0].nonzero()[:, 0]
    greedy = nms(boxes[0], -torch.arange(200.0), 0.4)
    assert set(kept.tolist()) <= set(greedy.tolist()) and len(kept) >= 24


@pytest.mark.parametrize("known", [(3, 9), (9, 9), (1, 9), (0, 9)])
def test_draws_do_not_depend_on_what_the_host_knows(known: tuple[int, int]) -> None:
    fill = torch.tensor([9, max(known[0], 1), known[0]])
    seeds = {"seed_B": torch.tensor([5, 6, 7]), "step_B": torch.tensor([1, 2, 3]), "purpose": 0}
    for k in (1, 3, 8, 9, 12):
        assert torch.equal(
            sample_without_replacement(fill, k, **seeds), sample_without_replacement(fill, k, **seeds, known=known)
        )


def test_a_write_without_a_look_stores_what_one_with_a_look_stores() -> None:
    contents = []
    for blind in (False, True):
        with on_device():
            device = DEVICE if blind else torch.device("cpu")
            bank = SlotBank("rows", {"x": RowSpec((2,)), "n": RowSpec(())}, slots=4, capacity=6, device=device)
            generator = torch.Generator().manual_seed(2)
            slots = torch.tensor([3, 0, 2]).to(device)
            bank.open(slots, torch.tensor([1, 2, 3]))
            for step in range(6):
                rows = {"x": torch.randn(3, 4, 2, generator=generator), "n": torch.randn(3, 4, generator=generator)}
                count = torch.tensor([step % 5, 4, 0])
                known = Fills(0, 6) if blind else None
                there = {name: row.to(device) for name, row in rows.items()}
                bank.write(slots, there, count.to(device), random_replacement(6), known=known)
                bank.advance(slots)
            contents.append([bank.rows["x"].cpu(), bank.rows["n"].cpu(), bank.fill(slots).cpu()])
    for a, b in zip(*contents, strict=True):
        assert torch.equal(a, b)
