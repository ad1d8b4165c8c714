"""Golden: the slow reference repeats the recorded vectors, and the cases of other sizes that it makes pass the same tests."""

import json
from pathlib import Path

import numpy as np
import pytest
import reloop2_made_cases as made
import reloop2_reference as reference
import test_golden_reloop2_knn
import test_golden_reloop2_memory
import test_golden_reloop2_models
import test_golden_reloop2_sketch
import torch
from golden_cases import checks_of, golden, read_npz
from reloop2_model_cases import ERROR_MEMORY, NETWORK, assert_close, settings

ATOL = 1e-9  # both sides are float64


@golden("reloop2", ".npz", *ERROR_MEMORY)
def test_reference_repeats_the_error_memory(path: Path):
    arrays = read_npz(path)
    cfg = json.loads(arrays["cfg"].tobytes())
    sigmas = [float(name.removeprefix("knn_sigma").split("/")[0]) for name in arrays if name.startswith("knn_sigma")]
    got = reference.sketch(cfg, arrays) | reference.neighbors(cfg, arrays, sorted(set(sigmas)))
    outputs = [name for name in arrays if name.startswith(("bucket_", "sk", "knn_"))]
    assert set(outputs) <= set(got)
    for name in outputs:
        block, last = name.split("/")[0], name.split("/")[-1]
        counts = np.ones(arrays[name].shape, bool)  # what is read from empty buckets alone means nothing
        if block.startswith("sk") and last in ("y", "y_base"):
            counts = arrays[f"{block}/count"] > 0
        elif block.startswith("sk") and last in ("ybar", "ybase_bar"):
            counts = arrays[f"{block}/hit"]
        np.testing.assert_allclose(got[name][counts], arrays[name][counts], rtol=0, atol=ATOL, err_msg=name)


@golden("reloop2", ".npz", *NETWORK)
def test_reference_repeats_the_networks(path: Path):
    arrays = read_npz(path)
    if settings(arrays)["model"] == "SDIM":
        got = reference.long_interest(settings(arrays), arrays)
        held = arrays["in/mask"] > 0
        assert np.array_equal(got["out/target_bucket"], arrays["out/target_bucket"])
        assert np.array_equal(got["out/seq_bucket"][held], arrays["out/seq_bucket"][held])
        for name in ("out/target_emb", "out/seq_emb", "out/lsh_attention"):
            assert_close(torch.from_numpy(got[name]), arrays[name], name)
        return
    hidden, probability = reference.network(settings(arrays), arrays)
    assert_close(torch.from_numpy(hidden), arrays["out/h"], "h")
    assert_close(torch.from_numpy(probability), arrays["out/y_base"].reshape(-1), "y_base", scale=1.0)


@pytest.mark.heavy
@pytest.mark.golden
def test_memories_networks_and_hashes_of_other_sizes(tmp_path: Path):
    modules = (test_golden_reloop2_memory, test_golden_reloop2_models, test_golden_reloop2_sketch)
    seen: set[str] = set()
    for path in made.write_cases(tmp_path):
        checks = checks_of(path, modules)
        assert checks, f"no check takes {path.name}"
        for check in checks:
            check(path)
        if "H" in read_npz(path):
            for coarse in ("float32", "bfloat16"):
                test_golden_reloop2_knn.test_neighbors_weights_and_corrections(path, coarse)
        seen |= {check.__name__ for check in checks}
    assert len(seen) == 6, seen  # all that take arrays: two of memories, two of networks, two of banks
