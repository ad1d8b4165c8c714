"""Golden: a bank of rows reproduces the published trace of reads and writes, with the recorded draws handed in."""

from pathlib import Path

import mamba_cases
import numpy as np
import torch
from golden_cases import golden, read_npz

from operators.banks import RowSpec, SlotBank, append, random_replacement


@golden("mamba", ".npz", *mamba_cases.BANK)
def test_bank_reproduces_the_recorded_trace(path: Path):
    arrays = read_npz(path)
    limit, keys = int(arrays["max_length"]), int(arrays["key_length"])
    steps = [t for t in range(int(arrays["n_steps"])) if f"s{t}_new" in arrays]
    widest = max(len(arrays[f"s{t}_new"]) for t in steps)
    order: list[int] = []  # our position of each entry of the published list
    drawn: dict[str, np.ndarray] = {}

    def recorded(fill_B, k, *, seed_B, step_B, purpose):
        positions = [order[i] for i in drawn["read" if purpose == 0 else "keep"]][:k]
        return torch.tensor([positions + [0] * (k - len(positions))])

    bank = SlotBank(
        "bank",
        {"row": RowSpec(arrays["init"].shape[1:])},
        slots=2,
        capacity=max(limit + widest - 1, len(arrays["init"])),
        sampler=recorded,
    )
    slot = torch.tensor([1])
    policy = random_replacement(limit, overshoot=True)
    bank.write(slot, {"row": torch.from_numpy(arrays["init"])[None]}, torch.tensor([len(arrays["init"])]), append)
    order = list(range(len(arrays["init"])))
    for t in steps:
        if f"s{t}_read_perm" in arrays:
            drawn["read"] = arrays[f"s{t}_read_perm"]
        read = bank.sample(slot, keys, purpose=0).rows["row"][0]
        wanted = arrays[f"s{t}_read"]
        if len(order) <= keys:  # all rows: we do not draw, the order differs
            assert sorted(map(tuple, read.numpy())) == sorted(map(tuple, wanted))
        else:
            assert np.array_equal(read.numpy(), wanted)
        new = torch.from_numpy(arrays[f"s{t}_new"])
        replaced: list[int] = []
        if f"s{t}_keep_perm" in arrays:
            permutation = arrays[f"s{t}_keep_perm"]
            replaced = [order[i] for i in permutation[-len(new) :]]
            drawn["keep"] = permutation[-len(new) :]
        position, valid = bank.write(slot, {"row": new[None]}, torch.tensor([len(new)]), policy, purpose=1)
        assert valid.all()
        if replaced:  # of more rows than the bank holds the first are appended
            assert position[0].tolist() == [*range(len(order), len(new)), *replaced]
            order = [order[i] for i in permutation[: -len(new)]] + position[0].tolist()
        else:
            order += position[0].tolist()
        assert np.array_equal(bank.read(slot).rows["row"][0, order].numpy(), arrays[f"s{t}_after"])
