"""Golden: buckets, sums and SDIM's interest from the banks themselves, without an operator."""

# n rows, Q queries, K arrays, V value columns, T entries of a history

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from golden_cases import golden, read_npz

from operators.banks import SignHash, SketchBank, mean_direction

ERROR_MEMORY = ("cfg", "W", "H", r"bucket_[HQ]", r"sk0/.*", "sk_final")
HASHED = ("cfg", r"sd/random_rotations", r"in/mask", r"out/lsh_attention", r"out/\w+_bucket", r"out/\w+_emb")
ATOL = 1e-6  # the README's, for fp32 implementations; counts and buckets are exact
INTEREST = 1e-5  # the README's, for the base models


@golden("reloop2", ".npz", *ERROR_MEMORY)
def test_buckets_counts_and_sums_are_those_recorded(path: Path):
    case = read_npz(path)
    cuts = json.loads(case["cfg"].tobytes())["writes_cut_at"]
    hash_ = SignHash.from_weights(torch.from_numpy(case["W"]))
    bucket_nK, bucket_QK = (hash_.hash(torch.from_numpy(case[name])) for name in ("H", "Q"))
    assert np.array_equal(bucket_nK.numpy(), case["bucket_H"])
    assert np.array_equal(bucket_QK.numpy(), case["bucket_Q"])
    values_nV = torch.from_numpy(np.stack([case["y"], case["y_base"]], axis=1))
    bank = SketchBank(hash_.arrays, hash_.bits, ("label", "base"))
    for block, (start, stop) in enumerate(itertools.pairwise(cuts)):
        bank.write(bucket_nK[start:stop], values_nV[start:stop])
        found = bank.read(bucket_QK)
        count_QK = found.count_BK.numpy()
        assert np.array_equal(count_QK, case[f"sk{block}/count"])
        np.testing.assert_allclose(count_QK / int(bank.written), case[f"sk{block}/s"], rtol=1e-12)
        for column, name in enumerate(("y", "y_base")):
            mean_QK = found.sums_BKV[..., column].numpy() / np.maximum(count_QK, 1)
            held = count_QK > 0
            np.testing.assert_allclose(mean_QK[held], case[f"sk{block}/{name}"][held], rtol=0, atol=ATOL)
    table_BK = torch.arange(1 << hash_.bits)[:, None].expand(-1, hash_.arrays)
    found = bank.read(table_BK)
    table = torch.cat([found.count_BK[..., None].double(), found.sums_BKV], dim=2).transpose(0, 1).numpy()
    assert np.array_equal(table[..., 0], case["sk_final"][..., 0])
    np.testing.assert_allclose(table, case["sk_final"], rtol=0, atol=ATOL * len(values_nV))  # sums, not means


@golden("reloop2", ".npz", *HASHED)
def test_interest_is_that_of_the_official_code(path: Path):
    case = read_npz(path)
    # [1, D, K, L] in the official layout.
    hash_ = SignHash.from_weights(torch.from_numpy(case["sd/random_rotations"][0]).permute(1, 2, 0))
    target_BD, history_BTD = torch.from_numpy(case["out/target_emb"]), torch.from_numpy(case["out/seq_emb"])
    users, entries, width = history_BTD.shape
    target_BK = hash_.hash(target_BD)
    history_BTK = hash_.hash(history_BTD.flatten(0, 1)).view(users, entries, -1)
    held_BT = torch.from_numpy(case["in/mask"]) > 0
    assert np.array_equal(target_BK.numpy(), case["out/target_bucket"][:, 0])
    assert np.array_equal(history_BTK[held_BT].numpy(), case["out/seq_bucket"][held_BT.numpy()])
    # One sketch per user; the history arrives entry by entry, over all users.
    bank = SketchBank(hash_.arrays, hash_.bits, [f"d{i}" for i in range(width)], slots=users)
    for entry in range(entries):
        user_b = held_BT[:, entry].nonzero()[:, 0]
        bank.write(history_BTK[user_b, entry], history_BTD[user_b, entry], slots_B=user_b)
    found = bank.read(target_BK, slots_B=torch.arange(users))
    normalized = json.loads(case["cfg"].tobytes())["l2_norm"]
    interest_BV = mean_direction(found) if normalized else found.sums_BKV.mean(1)
    wanted = case["out/lsh_attention"]
    np.testing.assert_allclose(interest_BV.numpy(), wanted, rtol=0, atol=INTEREST * max(1.0, np.abs(wanted).max()))
